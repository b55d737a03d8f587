"""Loaders with unreadable files, drafts and caches."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.data.dataset import AnomalyDataset, PixelCache
from afclip_lightning.data.loading_options import Loading
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.engine.app import main
from afclip_runtime.errors import DatasetError
from tests.support.clips import small_config
from tests.support.commands import arguments
from tests.support.layouts import write_image, write_mask
from tests.support.layouts.mvtec import write_mvtec


def data(root: Path, loading: Loading, num_workers: int = 0, batch_size: int = 2) -> MVTecLayout:
    dataset = MVTecLayout(root, name="parts", batch_size=batch_size, num_workers=num_workers)
    return dataset.connect(Preprocess(28), loading)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A set of 4 test images: the first one damaged, the mask of the second of another size."""
    root = write_mvtec(tmp_path / "set", ["a"])
    (root / "a/test/crack/000.png").write_text("damaged")
    Image.new("L", (5, 5), 255).save(root / "a/ground_truth/crack/001_mask.png")
    return root


def options(*extra: str) -> list[str]:
    """Returns the arguments that run AF-CLIP with a small random backbone on the set in the folder `set`."""
    chosen = ["--model=AFCLIP", "--data=MVTecLayout", "--data.root=set", "--data.num_workers=0"]
    return chosen + [a for a in arguments() if not a.startswith(("--data", "--config"))] + list(extra)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_skipped_images_are_left_out_and_noted(num_workers: int, root: Path) -> None:
    dataset = data(root, Loading(on_error="skip"), num_workers)
    (batch,) = dataset.test_dataloader()  # nothing of the first batch can be read
    assert [s.image_path.parent.name for s in batch.samples] == ["good", "stain"]
    assert batch.image.shape[0] == batch.label.shape[0] == 2
    assert batch.region_area is not None
    assert [path.name for path in dataset.skipped] == ["000.png", "001.png"]
    first, second = dataset.skipped.values()
    assert "crack/000.png: cannot be read" in first
    assert "001_mask.png: the mask is 5×5" in second


def test_raising_is_the_default_and_names_the_file(root: Path) -> None:
    assert Loading().on_error == "raise"
    dataset = data(root, Loading())
    with pytest.raises(DatasetError, match=r"crack/000\.png: cannot be read"):
        list(dataset.test_dataloader())
    assert not dataset.skipped


def test_a_set_of_which_nothing_can_be_read_is_an_error(root: Path) -> None:
    for path in root.glob("a/test/*/*.png"):
        path.write_text("damaged")
    with pytest.raises(DatasetError, match=r"None of the images can be read\. The first: .*crack/000\.png"):
        list(data(root, Loading(on_error="skip")).test_dataloader())


def test_training_leaves_them_out_too(root: Path) -> None:
    dataset = data(root, Loading(on_error="skip"), batch_size=4)
    (batch,) = dataset.train_dataloader()
    assert sorted(s.image_path.parent.name for s in batch.samples) == ["good", "stain"]
    assert batch.region_area is None
    assert len(dataset.skipped) == 2


def test_several_processes_do_not_train_and_skip(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    dataset = data(root, Loading(on_error="skip"))
    with pytest.raises(DatasetError, match=r"on_error is skip.*several processes.*--loading\.on_error raise"):
        dataset.setup("fit")
    dataset.setup("test")  # each process tests its own images, and none waits before the end
    data(root, Loading()).setup("fit")
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    dataset.setup("fit")


@pytest.mark.slow
def test_a_run_lists_what_it_skipped(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    small_config(tmp_path)
    assert main(["test", *options("--loading.on_error=skip")]) == 0
    listed = json.loads((tmp_path / "run/skipped.json").read_text())
    assert listed["count"] == 2
    assert [Path(file["path"]).name for file in listed["files"]] == ["000.png", "001.png"]
    assert "cannot be read" in listed["files"][0]["reason"]
    rows = json.loads((tmp_path / "run/results.json").read_text())["rows"]
    assert (rows[0]["normal"], rows[0]["anomalous"]) == (1, 1)
    assert not (tmp_path / "run/few_shot.json").exists()
    # batches of one: in training too, whole batches are left out in the middle of an epoch
    alone = "--test_after_fit=false"
    assert main(["fit", *options(alone, "--loading.on_error=skip", "--out=fit", "--data.batch_size=1")]) == 0
    assert json.loads((tmp_path / "fit/skipped.json").read_text())["count"] == 2
    assert main(["fit", *options(alone, "--out=raise")]) == 2
    write_mvtec(root, ["a"])
    assert main(["fit", *options(alone, "--loading.on_error=skip", "--out=whole", "--loading.cache_mb=1")]) == 0
    assert not (tmp_path / "whole/skipped.json").exists()


@pytest.mark.slow
def test_few_shot_images_of_a_run_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    small_config(tmp_path)
    write_mvtec(tmp_path / "set", ["b", "a"], train=9)
    assert main(["test", *options("--model.k_shot=2")]) == 0
    listed = json.loads((tmp_path / "run/few_shot.json").read_text())
    drawn = MVTecLayout(tmp_path / "set").few_shot(2, seed=0)
    assert [(part["dataset"], part["category"], part["seed"]) for part in listed] == [("set", "a", 0), ("set", "b", 0)]
    for part in listed:
        expected = [s.image_path.relative_to(tmp_path / "set").as_posix() for s in drawn["set", part["category"]]]
        assert part["images"] == expected == sorted(expected)

    for name in ("a/0.png", "a/1.png", "b/0.png"):
        write_image(tmp_path / "mine" / name)
    by_hand = options("--model.k_shot=2", "--out=by_hand", "--few_shot_dir=mine")
    assert main(["test", *by_hand]) == 2  # b has one image only
    write_image(tmp_path / "mine/b/1.png")
    assert main(["test", *by_hand, "--out=by_hand_2"]) == 0
    listed = json.loads((tmp_path / "by_hand_2/few_shot.json").read_text())
    assert [(part["root"], part["seed"], part["images"]) for part in listed] == [
        ("mine", None, ["a/0.png", "a/1.png"]),
        ("mine", None, ["b/0.png", "b/1.png"]),
    ]


def test_few_shot_images_by_hand(tmp_path: Path) -> None:
    dataset = MVTecLayout(write_mvtec(tmp_path / "set", ["a", "b"]), name="parts", categories=["a"])
    dataset.few_shot_dir = tmp_path / "mine"
    write_image(tmp_path / "mine/flat.png")
    (flat,) = dataset.few_shot(1, seed=0)["parts", "a"]
    assert (flat.image_path.name, flat.label, flat.split) == ("flat.png", 0, "train")
    write_image(tmp_path / "mine/a/0.png")
    assert [s.image_path.name for s in dataset.few_shot(1, seed=0)["parts", "a"]] == ["0.png"]
    write_image(tmp_path / "mine/parts/a/nearest.png")
    assert [s.image_path.name for s in dataset.few_shot(1, seed=0)["parts", "a"]] == ["nearest.png"]
    dataset.categories = ["b"]
    (tmp_path / "mine/b").mkdir()
    with pytest.raises(DatasetError, match=r"k_shot is 1, but .*mine/b, .* holds 0 images"):
        dataset.few_shot(1, seed=0)


def test_cache_gives_the_same_and_decodes_once(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path, ["a"])
    samples = MVTecLayout(root).samples("test")
    plain = AnomalyDataset(samples, Preprocess(28))
    expected = [plain[i] for i in range(4)]
    dataset = data(root, Loading(cache_mb=1), num_workers=1)
    loader = dataset.test_dataloader()
    for epoch in range(2):
        found = [row for batch in loader for row in zip(batch.image, batch.mask, strict=True)]
        for (image, mask), (expected_image, expected_mask, _) in zip(found, expected, strict=True):
            assert torch.equal(image, expected_image)
            assert torch.equal(mask, expected_mask)
        if not epoch:  # what another process decoded is there for the next one
            for sample in samples:
                sample.image_path.unlink()


def test_cache_is_bounded() -> None:
    side = 512  # of 1 MB an image, and one byte
    cache = PixelCache(count=100, shape=(side, side), limit_mb=3)
    image, mask = np.full((side, side, 3), 7, np.uint8), np.full((side, side), 1, np.uint8)
    for index in (0, 1, 2, 50):
        cache.put(index, image, mask)
    assert [cache.get(index) is not None for index in (0, 1, 2, 50)] == [True, True, False, False]
    kept_image, kept_mask = cache.get(1) or (None, None)
    assert np.array_equal(kept_image, image)
    assert np.array_equal(kept_mask, mask)
    assert pickle.loads(pickle.dumps(cache)).get(0) is None  # a process that is not forked has its own
    assert PixelCache(count=9, shape=(side, side), limit_mb=0).get(0) is None
    with pytest.raises(ValueError, match="cache_mb must not be negative, got -1"):
        Loading(cache_mb=-1)


def test_draft_changes_pixels_little_and_keeps_the_check_of_sizes(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path, ["a"])
    smooth = np.tile(np.linspace(0, 255, 120).astype(np.uint8), (84, 1))
    (root / "a/test/crack/000.png").unlink()
    Image.fromarray(smooth).save(root / "a/test/crack/000.jpg", quality=95)
    mask = np.zeros((84, 120), np.uint8)
    mask[20:50, 30:90] = 255
    path = root / "a/ground_truth/crack/000_mask.png"
    Image.fromarray(mask).save(path)
    full, draft = (data(root, loading).test_dataloader().dataset[0] for loading in (Loading(), Loading(draft=True)))
    assert 0 < (full[0] - draft[0]).abs().max() < 0.1
    assert torch.equal(full[1], draft[1])
    write_mask(path)
    with pytest.raises(DatasetError, match=r"000_mask\.png: the mask is 20×14 pixels .*000\.jpg is 120×84"):
        data(root, Loading(draft=True)).test_dataloader().dataset[0]
    Image.fromarray(mask[::2, ::2]).save(path)  # of the draft's own size
    with pytest.raises(DatasetError, match="the mask is 60×42"):
        data(root, Loading(draft=True)).test_dataloader().dataset[0]


def test_persistent_workers_are_for_training_alone(tmp_path: Path) -> None:
    dataset = data(write_mvtec(tmp_path, ["a"]), Loading(persistent_workers=True), num_workers=1)
    assert dataset.train_dataloader().persistent_workers
    assert not dataset.test_dataloader().persistent_workers
    assert not data(tmp_path, Loading(persistent_workers=True)).train_dataloader().persistent_workers


@pytest.mark.slow
def test_a_set_alone_is_not_trained_on_and_tested_on_unless_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small_config(tmp_path)
    write_mvtec(tmp_path / "set", ["a"])
    assert main(["fit", *options("--out=both")]) == 2
    assert "the same images, which is not zero-shot" in capsys.readouterr().err
    assert not (tmp_path / "both/head.ckpt").exists()
    assert main(["fit", *options("--out=alone", "--test_after_fit=false")]) == 0
    assert (tmp_path / "alone/head.ckpt").exists()
    assert main(["fit", *options("--out=split", "--data.train_split=train")]) == 0
