"""Checkpoints: damaged, mistyped and foreign files are rejected with one error, and no code in them is run."""

import io
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.engine.checkpoint import read_checkpoint
from afclip_lightning.engine.factory import load_head
from afclip_runtime.errors import CheckpointError, UserError
from tests.support.small_head import write_head


@pytest.fixture(scope="module")
def backbones() -> dict[str, ClipBackbone]:
    return {}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, backbones: dict[str, ClipBackbone]) -> Path:
    return write_head(tmp_path_factory.mktemp("head") / "head.ckpt", backbones)


def changed(head: Path, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    checkpoint = torch.load(head, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    return path


def first(checkpoint: dict[str, Any]) -> str:
    return next(iter(checkpoint["state_dict"]))


def put(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(checkpoint: dict[str, Any]) -> None:
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        checkpoint[keys[-1]] = value

    return change


def put_tensor(make: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda c: c["state_dict"].update({first(c): make(c["state_dict"][first(c)])})


ENTRIES = ("state_dict", "method", "feature_spec", "method_hyperparameters", "model")


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("value", [[1], "word", 3, torch.zeros(2), None, {1: 2}])
def test_an_entry_of_another_type_is_named(
    tmp_path: Path, head: Path, backbones: dict[str, ClipBackbone], entry: str, value: Any
) -> None:
    if (entry, value) == ("method", "word"):
        pytest.skip("is text")
    path = changed(head, tmp_path / "bad.ckpt", put(entry, value=value))
    with pytest.raises(CheckpointError, match=r"bad\.ckpt") as caught:
        load_head(path, backbones=backbones)
    assert entry in str(caught.value) or "how its method is built" in str(caught.value)


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_that_is_missing_is_named(
    tmp_path: Path, head: Path, backbones: dict[str, ClipBackbone], entry: str
) -> None:
    path = changed(head, tmp_path / "bad.ckpt", lambda c: c.pop(entry))
    with pytest.raises(CheckpointError, match=r"bad\.ckpt"):
        load_head(path, backbones=backbones)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put_tensor(lambda t: t * torch.nan), "holds NaN or infinity"),
        (put_tensor(lambda t: t.double() * 1e300 * 1e300), "holds NaN or infinity"),
        (put_tensor(lambda t: t.flatten()[:1].expand(10**12)), "is not a plain tensor"),
        (put_tensor(lambda t: t.to_sparse()), "is not a plain tensor"),
        (put_tensor(lambda t: t.long()), r"of torch\.int64 in the checkpoint"),
        (put_tensor(lambda t: t + 0j), r"of torch\.complex64 in the checkpoint"),
        (put_tensor(lambda t: t[:1]), "does not fit the model"),
        (put_tensor(lambda t: t.tolist()), "expected a tensor, got a list"),
        (
            put("feature_spec", "image_size", value="112"),
            r"feature_spec\.image_size: expected a whole number or a list, got text",
        ),
        (put("feature_spec", "layers", value=[2, "x"]), "expected a whole number, got text"),
        (put("model", "class_path", value=3), r"model\.class_path: expected text, got a whole number"),
        (put("model", "class_path", value="Nothing"), "its method 'Nothing' is not one of ours"),
        (put("model", "class_path", value="..."), "its method '...' is not one of ours"),
        (put("model", "init_args", "layers", value="all"), "AFCLIP"),
        (put("model", "init_args", "adapter_heads", value=torch.zeros(2)), "model holds more than text, numbers"),
        (put("model", "init_args", "adapter_heads", value="${"), "AFCLIP"),
        (put("model", "init_args", "adapter_heads", value=2**60), "AFCLIP"),
        (put("model", "init_args", "unknown", value=1), "unknown"),
        (put("model", "init_args", "backbone", value="tiny"), "backbone: expected a mapping"),
        (put("model", "init_args", "backbone", "image_size", value=2**40), "image_size must be at most 8192"),
        (put("model", "init_args", "backbone", "image_size", value="large"), "image_size"),
        (put("model", "init_args", "backbone", "model", value=["x"]), "model"),
        (put("model", "init_args", "map_size", value={"class_path": "this.s", "init_args": {}}), "name a class"),
        (
            put("method_hyperparameters", "temperature", value=torch.zeros(2)),
            "method_hyperparameters holds more than text, numbers",
        ),
        (put("method_hyperparameters", "temperature", value="0.07"), "trained with other arguments"),
    ],
)
def test_a_misfit_is_one_error(
    tmp_path: Path,
    head: Path,
    backbones: dict[str, ClipBackbone],
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_head(changed(head, tmp_path / "bad.ckpt", change), backbones=backbones)
    assert "weights_only" not in str(caught.value)


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path: Path, head: Path) -> None:
    content = bytearray(head.read_bytes())
    with zipfile.ZipFile(head) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        tensor = archive.read(largest)
    content[bytes(content).index(tensor) + 5] ^= 1
    (tmp_path / "bad.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.ckpt: is damaged: the checksum of .* differs"):
        read_checkpoint(tmp_path / "bad.ckpt")


class Harmless:
    """Unpickling it would write a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("was_run"),)


def test_nothing_is_unpickled_and_torch_gives_no_advice(
    tmp_path: Path, head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changed(head, tmp_path / "objects.ckpt", put("model", value=Harmless()))
    (tmp_path / "legacy.ckpt").write_bytes(pickle.dumps({"feature_spec": Harmless()}))
    torch.save({"feature_spec": {}}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    for name in ("objects.ckpt", "legacy.ckpt", "old.ckpt"):
        with pytest.raises(CheckpointError, match=re.escape(name)) as caught:
            read_checkpoint(tmp_path / name)
        assert "weights_only" not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not Path("was_run").exists()


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><html></html>", b"PK\x05\x06" + bytes(18), b"\x80\x02}q\x00.", bytes(1000)]
)
def test_files_that_are_not_archives_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.ckpt"):
        read_checkpoint(tmp_path / "bad.ckpt")


def test_paths_that_are_not_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ckpt")
    for name, message in (("", "is a folder"), ("pipe.ckpt", "is a named pipe"), ("none.ckpt", "does not exist")):
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / name)


def test_a_compressed_archive_is_not_expanded(tmp_path: Path, head: Path) -> None:
    with zipfile.ZipFile(head) as old, zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) + bytes(10**6))
    with pytest.raises(CheckpointError, match="compressed zip file"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_a_checkpoint_truncated_anywhere_is_reported(tmp_path: Path, head: Path) -> None:
    content = head.read_bytes()
    for size in (1, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "bad.ckpt").write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"bad\.ckpt"):
            read_checkpoint(tmp_path / "bad.ckpt")


def test_no_module_is_imported_for_a_checkpoint(
    tmp_path: Path, head: Path, backbones: dict[str, ClipBackbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stranger.py").write_text("from pathlib import Path\nPath('was_run').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for keys, value in (
        (("model", "class_path"), "stranger.Method"),
        (("model", "init_args", "map_sigma"), {"class_path": "stranger.Sigma"}),
        (("model", "init_args", "layers"), [{"class_path": "stranger.Sigma"}]),
    ):
        with pytest.raises(CheckpointError):
            load_head(changed(head, tmp_path / "bad.ckpt", put(*keys, value=value)), backbones=backbones)
    changed(head, tmp_path / "other.ckpt", put("model", "init_args", "optimizer", value="stranger.adam"))
    load_head(tmp_path / "other.ckpt", backbones=backbones)  # the optimiser is not asked for
    assert "stranger" not in sys.modules
    assert not Path("was_run").exists()


def test_a_class_that_the_user_imported_is_taken(
    tmp_path: Path, head: Path, backbones: dict[str, ClipBackbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from afclip_lightning.methods.afclip import AFCLIP\n\nclass Mine(AFCLIP): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def change(checkpoint: dict[str, Any]) -> None:
        checkpoint["method"] = checkpoint["model"]["class_path"] = "mine.Mine"

    path = changed(head, tmp_path / "mine.ckpt", change)
    with pytest.raises(CheckpointError, match=r"'mine\.Mine' is not one of ours"):
        load_head(path, backbones=backbones)
    import mine  # type: ignore[import-not-found]

    assert isinstance(load_head(path, backbones=backbones), mine.Mine)
    del sys.modules["mine"]


def test_a_whole_checkpoint_is_read(head: Path, backbones: dict[str, ClipBackbone]) -> None:
    stored = read_checkpoint(head)["state_dict"]
    state = load_head(head, backbones=backbones).state_dict()
    assert state.keys() == stored.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, stored[name])


def test_a_checkpoint_in_half_precision_is_taken(
    tmp_path: Path, head: Path, backbones: dict[str, ClipBackbone]
) -> None:
    path = changed(head, tmp_path / "half.ckpt", put_tensor(torch.Tensor.half))
    assert load_head(path, backbones=backbones) is not None


def test_sizes_that_no_memory_holds_are_one_error(tmp_path: Path, head: Path) -> None:
    path = changed(head, tmp_path / "a.ckpt", put("model", "init_args", "backbone", "image_size", value=2**31 - 8))
    with pytest.raises(UserError, match="image_size must be at most"):
        load_head(path)
    buffer = io.BytesIO()
    torch.save({"feature_spec": {"image_size": "large"}}, buffer)
    (tmp_path / "b.ckpt").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match=r"b\.ckpt: feature_spec.image_size: expected a whole number"):
        load_head(tmp_path / "b.ckpt")
