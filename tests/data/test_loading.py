"""Few-shot draws, and loaders on one process and on several."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.metrics import region_areas
from afclip_lightning.types import Batch
from afclip_runtime.errors import DatasetError
from tests.support.layouts import write_image
from tests.support.layouts.mvtec import write_mvtec

K = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_mvtec(tmp_path_factory.mktemp("sets") / "parts", ["bolt", "nut", "pin"], train=12)
    write_image(root / "pin/test/good/001.png")  # 13 test images: no number of processes divides them
    return root


def names(root: Path, seed: int = 0, categories: list[str] | None = None, k_shot: int = K) -> dict[str, list[str]]:
    drawn = MVTecLayout(root, name="parts", categories=categories).few_shot(k_shot, seed)
    assert all(s.label == 0 and s.split == "train" for samples in drawn.values() for s in samples)
    return {category: [s.image_path.name for s in samples] for (_, category), samples in drawn.items()}


def test_draw_is_reproducible_and_seeded(root: Path) -> None:
    assert names(root) == names(root)
    assert len({str(names(root, seed)) for seed in range(5)}) == 5
    for picked in names(root).values():
        assert len(set(picked)) == K
        assert picked == sorted(picked)
    assert len({tuple(picked) for picked in names(root).values()}) == 3  # each category has its own stream


def test_draw_is_the_recorded_one(root: Path) -> None:
    assert names(root, seed=0) == {
        "bolt": ["001.png", "002.png", "004.png"],
        "nut": ["003.png", "004.png", "010.png"],
        "pin": ["001.png", "005.png", "006.png"],
    }


def test_draw_does_not_depend_on_other_categories(root: Path) -> None:
    everything = names(root)
    for category in ("bolt", "nut", "pin"):
        assert names(root, categories=[category]) == {category: everything[category]}
    assert list(names(root, categories=["pin", "bolt"])) == ["pin", "bolt"]


def test_draw_does_not_depend_on_the_order_files_were_made_in(root: Path, tmp_path: Path) -> None:
    for path in sorted(root.rglob("*.png"), reverse=True):
        copied = tmp_path / "parts" / path.relative_to(root)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copied)
    assert names(tmp_path / "parts") == names(root)


def test_draw_of_all_images_and_of_more(root: Path) -> None:
    assert len(names(root, k_shot=12)["nut"]) == 12
    with pytest.raises(DatasetError, match=r"k_shot is 13, but parts/bolt .* has 12 normal training images"):
        names(root, k_shot=13)
    with pytest.raises(ValueError, match="k_shot must be at least 1"):
        names(root, k_shot=0)


def loader(root: Path, batch_size: int = 2) -> DataLoader[Batch]:
    dataset = MVTecLayout(root, batch_size=batch_size, num_workers=0)
    dataset.connect(Preprocess(14))
    return dataset.test_dataloader()


@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
def test_every_image_once_over_several_processes(root: Path, replicas: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [s.image_path for s in MVTecLayout(root).samples("test")]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: replicas > 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: replicas)
    seen: list[list[Path]] = []
    for rank in range(replicas):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        seen.append([s.image_path for batch in loader(root) for s in batch.samples])
    assert sorted(path for part in seen for path in part) == expected
    assert seen == [expected[rank::replicas] for rank in range(replicas)]


def test_regions_are_labelled_by_the_evaluation_loader_alone(root: Path) -> None:
    data = MVTecLayout(root, name="parts", batch_size=4, num_workers=0)
    data.connect(Preprocess(28))
    for batch in data.test_dataloader():
        assert batch.region_area is not None
        assert batch.region_area.dtype == torch.int32
        for area, mask in zip(batch.region_area.numpy(), batch.mask.numpy(), strict=True):
            np.testing.assert_array_equal(area, region_areas(mask))
        moved = batch.to(torch.device("meta")).region_area
        assert moved is not None
        assert moved.is_meta
    assert any(area.any() for area in batch.region_area)
    assert next(iter(data.train_dataloader())).region_area is None


def test_training_reads_the_test_split_shuffled(root: Path) -> None:
    dataset = MVTecLayout(root, batch_size=64, num_workers=0)
    dataset.connect(Preprocess(14))
    expected = [s.image_path for s in dataset.samples("test")]
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        (batch,) = dataset.train_dataloader()
        orders.append([s.image_path for s in batch.samples])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == expected != orders[0]


def test_training_can_read_the_training_split(root: Path) -> None:
    dataset = MVTecLayout(root, train_split="train", batch_size=64, num_workers=0)
    dataset.connect(Preprocess(14))
    (batch,) = dataset.train_dataloader()
    assert len(batch.samples) == 36
    assert {s.split for s in batch.samples} == {"train"}


def test_loader_without_preprocess(root: Path) -> None:
    with pytest.raises(RuntimeError, match=r"data\.connect\(model\.preprocess\)"):
        MVTecLayout(root).test_dataloader()
    assert len(MVTecLayout(root, num_workers=0).connect(Preprocess(14)).test_dataloader())


def test_own_categories_need_no_list(tmp_path: Path) -> None:
    write_image(tmp_path / "b/test/good/0.png")
    write_image(tmp_path / "a/test/good/0.png")
    (tmp_path / "notes").mkdir()
    assert MVTecLayout(tmp_path / ".").selected_categories() == ["a", "b"]
    assert MVTecLayout(tmp_path).name == tmp_path.name


def test_samples_of_a_loader_carry_their_class_name(root: Path) -> None:
    data = MVTecLayout(root, name="parts", class_names={"nut": "steel nut"}, num_workers=0)
    data.connect(Preprocess(28))
    for loader in (data.test_dataloader(), data.train_dataloader()):
        class_names = {(s.category, s.class_name) for batch in loader for s in batch.samples}
        assert class_names == {("bolt", "bolt"), ("nut", "steel nut"), ("pin", "pin")}
