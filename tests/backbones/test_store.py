"""Features on disk: the same numbers as without a store; damaged, incomplete, read-only and full stores."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from afclip_lightning.backbones import store_files
from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.spec import union
from afclip_lightning.backbones.store import FeatureCache, FeatureStore, from_rows
from afclip_lightning.backbones.store_files import checksum, image_digest
from afclip_lightning.backbones.store_layout import feature_files
from afclip_lightning.cli import features
from afclip_lightning.engine.app import main
from afclip_lightning.engine.factory import methods
from afclip_lightning.types import ClipFeatures
from afclip_runtime.errors import DatasetError, UserError
from tests.support import REPOSITORY
from tests.support.cases import KEPT, command_line
from tests.support.clips import small_config
from tests.support.commands import arguments, subprocess_of
from tests.support.feature_files import calls, images, make_distinct


@pytest.fixture
def backbone(tmp_path: Path) -> ClipBackbone:
    return ClipBackbone(small_config(tmp_path), "random", image_size=None)


def tensors(features: ClipFeatures) -> Iterator[torch.Tensor]:
    yield from (*features.tokens, *features.vv_tokens)
    yield from (t for t in (features.class_token, features.image_embedding) if t is not None)


@pytest.fixture
def store(backbone: ClipBackbone, tmp_path: Path) -> FeatureStore:
    spec = backbone.spec((1, 3), image_embedding=True, vv_layers=(2, 3), vv_from=2)
    return FeatureStore(tmp_path / "store", spec, backbone.grid, dtype="float32")


def some_features(backbone: ClipBackbone, store: FeatureStore, count: int = 2) -> ClipFeatures:
    return backbone.encode_image(torch.randn(count, 3, 28, 28), store.spec)


def test_saved_features_are_loaded(backbone: ClipBackbone, store: FeatureStore) -> None:
    made = some_features(backbone, store)
    assert store.load("a1") is None
    store.save(["a1", "b2"], made)
    for i, digest in enumerate(["a1", "b2"]):
        row = store.load(digest)
        assert row is not None
        assert len(row) == 6
        for name, tokens in zip(("layer-01", "layer-03"), made.tokens, strict=True):
            assert torch.equal(row[name], tokens[i])
        for name, tokens in zip(("vv-02-from-02", "vv-03-from-02"), made.vv_tokens, strict=True):
            assert torch.equal(row[name], tokens[i])
        assert torch.equal(row["class_token"], made.class_token[i])
        assert torch.equal(row["image_embedding"], made.image_embedding[i])
    rows = [store.load("a1"), store.load("b2")]
    back = from_rows([row for row in rows if row], store.spec, store.grid)
    for one, other in zip(tensors(back), tensors(made), strict=True):
        assert torch.equal(one, other)
    half = FeatureStore(store.folder.parent, store.spec, store.grid, dtype="float16")
    assert half.folder != store.folder
    half.save(["a1", "b2"], made)
    assert half.path("a1", "layer-01").stat().st_size < 0.6 * store.path("a1", "layer-01").stat().st_size


def test_specs_of_one_backbone_share_their_taps(backbone: ClipBackbone, tmp_path: Path) -> None:
    wide = FeatureStore(tmp_path, backbone.spec((1, 2, 3), True, (2, 3), 2), backbone.grid, dtype="float32")
    made = some_features(backbone, wide)
    wide.save(["a1", "b2"], made)
    for spec in (backbone.spec((1, 3)), backbone.spec((2,), True), backbone.spec((3,), False, (3,), 2)):
        narrow = FeatureStore(tmp_path, spec, backbone.grid, dtype="float32")
        rows = [narrow.load("a1"), narrow.load("b2")]
        read = from_rows([row for row in rows if row], spec, narrow.grid)
        chosen = spec.select(made, wide.spec)
        for one, other in zip(tensors(read), tensors(chosen), strict=True):
            assert torch.equal(one, other)
        alone = backbone.encode_image(torch.zeros(1, 3, 28, 28), spec)
        assert len(list(tensors(alone))) == len(list(tensors(chosen)))
    elsewhere = backbone.spec((1,), False, (3,), 3)
    assert FeatureStore(tmp_path, elsewhere, backbone.grid, dtype="float32").load("a1") is None  # another V-V path


def test_the_pass_of_several_specs(backbone: ClipBackbone) -> None:
    one, other = backbone.spec((1, 3)), backbone.spec((2,), True, (3,), 2)
    both = union([one, other])
    assert both == backbone.spec((1, 2, 3), True, (3,), 2)
    image = torch.randn(2, 3, 28, 28)
    wide = backbone.encode_image(image, both)
    for spec in (one, other):
        chosen, alone = spec.select(wide, both), backbone.encode_image(image, spec)
        for left, right in zip(tensors(chosen), tensors(alone), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="blocks 2 and 3 cannot come from one pass"):
        union([other, backbone.spec((), False, (3,), 3)])
    with pytest.raises(ValueError, match="image_size: 56 the other, 28 one"):
        union([one, replace(other, image_size=56)])


def test_other_backbones_and_precisions_lie_elsewhere(backbone: ClipBackbone, tmp_path: Path) -> None:
    spec = backbone.spec((1,))
    stores = [FeatureStore(tmp_path, spec, (2, 2)), FeatureStore(tmp_path, replace(spec, pos_embed="bicubic"), (2, 2))]
    stores.append(FeatureStore(tmp_path, spec, (2, 2), compute="bfloat16"))
    stores.append(FeatureStore(tmp_path, spec, (2, 2), dtype="float32"))
    assert len({store.folder for store in stores}) == 4
    again = ClipBackbone(backbone.model, "random", image_size=None)
    assert FeatureStore(tmp_path, again.spec((1,)), (2, 2)).folder == stores[0].folder


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_file_is_removed_and_said(backbone: ClipBackbone, store: FeatureStore, damage: str) -> None:
    store.save(["a1", "b2"], some_features(backbone, store))
    path = store.path("a1", "layer-01")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes({"cut": bytes(content[: len(content) // 2]), "flip": content, "empty": b"", "text": b"x"}[damage])
    assert store_files.verify(store.folder.parent)[0].startswith(str(path))
    with pytest.warns(UserWarning, match=f"{path.name}: the features .* removed and computed again"):
        assert store.load("a1") is None
    assert not path.exists()
    assert store.load("b2") is not None
    assert store_files.verify(store.folder.parent) == []


def rewrite(path: Path, row: dict[str, torch.Tensor], like: Path | None = None) -> None:
    """Writes features with a right checksum, which say that they belong where `like` lies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = like or path
    of = f"{place.parts[-4]}/{place.parts[-3]}/{place.stem}"
    content = {name: tensor.reshape(-1).view(torch.uint8) for name, tensor in row.items()}  # of any type
    save_file(row, path, metadata={"of": f"{of} {checksum(content)}"})


def test_what_a_file_says_of_itself_is_compared_with_what_is_asked_for(
    backbone: ClipBackbone, store: FeatureStore
) -> None:
    store.channels = backbone.vision.width, backbone.embed_dim
    features_ = some_features(backbone, store)
    store.save(["a1", "b2"], features_)
    path, width = store.path("a1", "layer-01"), features_.tokens[0].shape[-1]
    content, whole = path.read_bytes(), load_file(path)["layer-01"]
    assert store.load("a1") is not None
    for write in (
        lambda: shutil.copy(store.path("b2", "layer-01"), path),  # of another image
        lambda: shutil.copy(store.path("a1", "layer-03"), path),  # of another layer
        lambda: rewrite(path, {"layer-03": whole}),
        lambda: rewrite(path, {"layer-01": whole, "layer-03": whole.clone()}),
        lambda: rewrite(path, {}),
        lambda: rewrite(path, {"layer-01": whole}, like=store.path("b2", "layer-01")),
        lambda: rewrite(path, {"layer-01": whole[1:].clone()}),
        lambda: rewrite(path, {"layer-01": whole[:, : width - 1].clone()}),
        lambda: rewrite(path, {"layer-01": whole.half()}),
        lambda: rewrite(path, {"layer-01": torch.tensor(1.0)}),
        lambda: rewrite(path, {"layer-01": whole.long()}),
        lambda: rewrite(path, {"layer-01": whole.to(torch.float8_e4m3fn)}),
        lambda: rewrite(path, {"layer-01": whole * torch.nan}),
        lambda: save_file({"layer-01": whole}, path, metadata={"of": str(checksum({"layer-01": whole}))}),
    ):
        write()
        with pytest.warns(UserWarning, match=f"{path.name}: the features .* removed and computed again"):
            assert store.load("a1") is None
        assert not path.exists()
    path.write_bytes(content)
    assert store.load("a1") is not None


def test_special_files_do_not_hang(backbone: ClipBackbone, store: FeatureStore, tmp_path: Path) -> None:
    store.save(["a1", "b2"], some_features(backbone, store))
    path = store.path("a1", "layer-01")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=f"{path.name} is a named pipe, not a file"):
        store.load("a1")
    assert "is a named pipe" in store_files.verify(store.folder.parent)[0]
    assert store_files.prune(store.folder.parent, None, None, damaged=True) == (0, 0)
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"a\.png is a named pipe"):
        image_digest(tmp_path / "a.png")


def test_features_that_are_not_finite_are_not_kept(backbone: ClipBackbone, store: FeatureStore) -> None:
    features_ = some_features(backbone, store).map(lambda tensor: tensor * 1e30)
    half = FeatureStore(store.folder.parent, store.spec, store.grid, dtype="float16")
    with pytest.raises(UserError, match=r"hold NaN or infinity.*Use --features\.dtype float32"):
        half.save(["a1", "b2"], features_)
    assert half.load("a1") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": "28"}, "image_size: expected a whole number or a list, got text"),
        ({"image_size": 56}, r"belongs to other features \(image_size: 56 there, 28 here\)"),
        ({"mean": [0.5]}, "mean: expected a list of length 3"),
        ({"std": [1, 1, float("nan")]}, "std: expected a finite number"),
        ({"dtype": "int8"}, "dtype: invalid enum value 'int8'"),
    ],
)
def test_an_edited_spec_is_reported(
    backbone: ClipBackbone, store: FeatureStore, change: dict[str, Any], message: str
) -> None:
    store.check_spec()
    store.save(["a1", "b2"], some_features(backbone, store))
    store.check_spec()
    file = store.folder / "spec.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=f"spec.json.*{message}.*Remove the folder"):
        store.check_spec()
    if "there" not in message:
        with pytest.raises(UserError, match=message):
            store_files.info(store.folder.parent)


def test_content_and_not_the_name_decides(tmp_path: Path) -> None:
    for name, content in (("a.png", b"1"), ("b.png", b"1"), ("c.png", b"2")):
        (tmp_path / name).write_bytes(content)
    digests = [image_digest(tmp_path / f"{name}.png") for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_too_little_space_is_reported_before_anything_is_computed(store: FeatureStore) -> None:
    an_image = (4 * (1 + store.grid[0] * store.grid[1]) + 2) * 4  # bytes per channel: tokens of 4 layers, the embedding
    with pytest.raises(UserError, match=r"Features of 10 images need .*e\+0\d GB in .*; the disk has .*features prune"):
        store.check_space(10, 10**13, None)
    with pytest.raises(UserError, match=r"need 2 GB .* limit_gb 1 leaves 1\."):
        store.check_space(2, 10**9 // an_image, 1.0)
    store.check_space(2, 10**6 // an_image, 1.0)
    with pytest.raises(ValueError, match="limit_gb must be positive"):
        FeatureCache(limit_gb=0)


def test_a_full_disk_leaves_the_store_whole(
    backbone: ClipBackbone, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = some_features(backbone, store)
    store.save(["a1"], some_features(backbone, store, 1))

    def full(tensors: dict[str, torch.Tensor], path: Path, **rest: Any) -> None:
        path.write_bytes(b"half of a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("afclip_lightning.backbones.store.save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        store.save(["a1", "b2"], made)
    assert {path.stem for path in feature_files(store.folder.parent)} == {"a1"}
    assert not list(store.folder.rglob("*.tmp"))
    assert store_files.verify(store.folder.parent) == []


def test_features_are_not_waited_for(
    backbone: ClipBackbone, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is not yet on disk when the power fails is incomplete, which its checksum reveals."""
    store.save(["a1"], some_features(backbone, store, 1))  # and the part common to all, which is waited for
    waited: list[int] = []
    monkeypatch.setattr(os, "fsync", waited.append)
    store.save(["b2", "c3"], some_features(backbone, store))
    assert not waited
    assert store_files.verify(store.folder.parent) == []


def table(run: Path) -> str:
    return (run / "results.csv").read_text()


def options(method: str = "AFCLIP", **extra: str) -> list[str]:
    given = dict(command_line(method))
    named = f"{method.lower()}_visa"
    shipped = (REPOSITORY / f"configs/{named}.yaml").is_file()
    config, *of_config = arguments(named if shipped else "uniadet_visa", **given, **extra)
    of_config = [config, *([] if shipped else [f"--model={method}"]), *of_config]
    kept = [a for a in of_config if not a.startswith("--model.layers=") or "model__layers" in given]
    return [*kept, "--data.test=[{class_path: MVTecAD, init_args: {root: data/mvtec, num_workers: 1}}]"]


@pytest.mark.slow
@pytest.mark.parametrize("method", KEPT)
def test_a_run_with_a_store_gives_the_same_and_walks_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    make_distinct(folder)
    epochs = {"trainer__max_epochs": "2"}
    assert main(["fit", *options(method, out="plain", **epochs)]) == 0
    cache = {"features__cache": "store", "features__dtype": "float32"}
    passes = calls(monkeypatch)
    assert main(["fit", *options(method, out="first", **epochs, **cache)]) == 0
    assert sum(passes) == len(images(folder / "store")) > 90  # each image once, whatever the epochs
    first = len(passes)
    assert main(["fit", *options(method, out="second", **epochs, **cache)]) == 0
    assert len(passes) == first
    assert table(folder / "plain") == table(folder / "first") == table(folder / "second")
    weights = [torch.load(folder / run / "head.ckpt", weights_only=True)["state_dict"] for run in ("plain", "second")]
    for name, tensor in weights[0].items():
        if methods()[method].trains_beside_normal:  # new images pass the backbone in smaller batches
            torch.testing.assert_close(tensor, weights[1][name], rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(tensor, weights[1][name]), name
    assert list((folder / "second/pictures").iterdir())  # drawn from the files
    victim = next(feature_files(folder / "store"))
    victim.write_bytes(victim.read_bytes()[:100])
    assert main(["test", *options(method, out="mended", **cache), "--ckpt_path=first/head.ckpt"]) == 0
    assert store_files.verify(folder / "store") == []


@pytest.mark.slow
def test_temporary_features_are_walked_once_and_gone_at_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_distinct(folder)
    run = {"trainer__max_epochs": "2", "test_before_fit": "true"}
    assert main(["fit", *options(out="plain", **run)]) == 0
    kept = {"features__temporary": "true", "features__dtype": "float32"}
    passes = calls(monkeypatch)
    assert main(["fit", *options(out="kept", **run, **kept)]) == 0
    first = sum(passes)
    assert table(folder / "plain") == table(folder / "kept")
    assert {path.name for path in (folder / "kept").iterdir()} == {path.name for path in (folder / "plain").iterdir()}
    assert main(["fit", *options(out="cached", features__cache="store", **run, **kept)]) == 0
    assert sum(passes) - first == len(images(folder / "store")) == first  # a cache that is named is kept


@pytest.mark.slow
def test_half_precision_moves_scores_a_little(folder: Path) -> None:
    plain, half = options(out="plain"), options(out="half", features__cache="s")
    assert main(["predict", *plain]) == 0
    assert main(["predict", *half]) == 0
    scores = []
    for run in ("plain", "half"):
        lines = next((folder / run).glob("predictions*.csv")).read_text().splitlines()[1:]
        scores.append(torch.tensor([float(line.split(",")[4]) for line in lines]))
    assert not torch.equal(*scores)
    torch.testing.assert_close(*scores, rtol=0, atol=1e-2)


@pytest.mark.slow
def test_build_info_verify_prune(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert features.main(["build", *options(features__cache="store")]) == 0
    passes = calls(monkeypatch)
    assert main(["fit", *options(out="fit", features__cache="store")]) == 0
    assert not passes
    capsys.readouterr()
    assert features.main(["info", "store"]) == 0
    shown = capsys.readouterr().out
    assert "small (" in shown
    assert "kept in float16" in shown
    assert features.main(["verify", "store"]) == 0
    victim = next(feature_files(folder / "store"))
    victim.write_bytes(b"")
    assert features.main(["verify", "store"]) == 1
    assert features.main(["prune", "store", "--damaged"]) == 0
    assert not victim.exists()
    assert features.main(["prune", "store", "--key", "nothing"]) == 2
    assert "features info" in capsys.readouterr().err
    entry = store_files.info(folder / "store")[0]
    assert list(entry["taps"]) == ["layer-01", "layer-03"]
    assert features.main(["prune", "store", "--key", f"{entry['key']}/layer-01"]) == 0
    assert list(store_files.info(folder / "store")[0]["taps"]) == ["layer-03"]
    assert features.main(["prune", "store", "--key", entry["key"]]) == 0
    assert features.main(["info", "store"]) == 2
    assert features.main(["build", *options()]) == 2
    assert "--features.cache DIR" in capsys.readouterr().err


@pytest.mark.slow
def test_build_needs_room_for_the_training_images_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needed = []
    for run, verb in ((features.main, "build"), (main, "fit"), (main, "test")):
        given = options(out=verb, features__cache="s", features__limit_gb="1e-9")
        assert run([verb, *given]) == 2
        needed.append(capsys.readouterr().err.split(" images need")[0])
    assert needed[0] == needed[1] != needed[2]


@pytest.mark.slow
def test_a_method_that_trains_nothing_needs_no_training_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model=PatchRarity", "--model.backbone.model=small.json", "--model.backbone.weights=random"]
    given += ["--model.backbone.image_size=28", "--model.layers=[1,3]", "--trainer.accelerator=cpu"]
    tested = "[{class_path: MVTecAD, init_args: {root: data/mvtec, num_workers: 0}}]"
    given += ["--data=CrossDataset", f"--data.test={tested}", "--pictures.count=0", "--features.cache=store"]
    assert features.main(["build", *given]) == 0
    kept = len(images(folder / "store"))
    assert main(["fit", *given, "--out=fit"]) == 0
    assert len(images(folder / "store")) == kept > 0
    assert main(["fit", *given, "--model=AFCLIP", "--test_before_fit=true", "--out=trained"]) == 2
    captured = capsys.readouterr()
    assert captured.err.strip().splitlines()[-1].startswith("error: There is no dataset to train on")
    assert "Test before training" not in captured.out
    assert features.main(["build", *given, "--model=AFCLIP"]) == 2


@pytest.mark.slow
def test_musc_reads_and_keeps_features_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_distinct(folder)
    model = ["--model=MuSc", "--model.backbone.model=small.json", "--model.backbone.weights=random"]
    model += ["--model.backbone.image_size=28", "--model.layers=[1,3]", "--trainer.accelerator=cpu"]
    given = [*model, "--data=MVTecAD", "--data.root=data/mvtec", "--data.num_workers=0", "--pictures.count=0"]
    cache = ["--features.cache=store", "--features.dtype=float32"]
    assert main(["test", *given, "--out=plain"]) == 0
    passes = calls(monkeypatch)
    assert features.main(["build", *given, *cache]) == 0
    assert sum(passes) == len(images(folder / "store")) > 40
    passes.clear()
    assert main(["test", *given, *cache, "--out=kept"]) == 0
    assert not passes
    assert table(folder / "plain") == table(folder / "kept")


@pytest.mark.slow
def test_what_cannot_be_kept_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *options(features__cache="s", loading__draft="true")]) == 2
    assert "changes the pixels" in capsys.readouterr().err
    assert main(["fit", *options(out="b", features__cache="s", features__limit_gb="1e-6")]) == 2
    assert "limit_gb 1e-06 leaves" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_build_leaves_a_whole_store_and_two_at_once_finish(folder: Path) -> None:
    command = ["features", "build", *options(features__cache="store", trainer__accelerator="cpu")]
    for wait in (0.0, 0.3):
        process = subprocess_of(command, cwd=folder)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not any(feature_files(folder / "store")):
            time.sleep(0.02)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert store_files.verify(folder / "store") == []
    pair = [subprocess_of(command, cwd=folder) for _ in range(2)]
    assert [process.wait(timeout=240) for process in pair] == [0, 0]
    assert store_files.verify(folder / "store") == []
    count = len(list(feature_files(folder / "store")))
    assert count == len(set(feature_files(folder / "store")))
    assert main(["fit", *options(out="fit", features__cache="store")]) == 0
    assert len(list(feature_files(folder / "store"))) == count
