"""Head files: written files are read back, and damaged or foreign files are rejected with one error."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.engine.checkpoint import head_in, read_checkpoint
from afclip_lightning.engine.factory import load_head
from afclip_lightning.heads.card import Card, Measured, TrainedOn, read_card
from afclip_lightning.heads.file import ENTRY, is_head_file, read_head_card, read_head_file, write_head_file
from afclip_lightning.heads.pack import pack, read_head
from afclip_runtime.errors import CheckpointError, UserError
from afclip_runtime.thresholds import DefaultThreshold, DefaultThresholds
from tests.support.small_head import write_head

CARD = Card(
    title="A small head",
    trained_on=(TrainedOn("drawn", ("cloth", "gear"), 180, "Apache-2.0"),),
    seeds=(0, 1),
    epochs=2,
    results=(Measured("visa", {"image_auroc": 0.75}, {"image_auroc": 0.01}, images=20, note="kept back"),),
    thresholds=DefaultThresholds("By hand.", DefaultThreshold(0.5, 0.1), DefaultThreshold(0.25)),
    limits=("It has seen drawn pictures only.",),
    licence="Apache-2.0",
    version="0.1.0",
    date="2026-01-31",
)


@pytest.fixture(scope="module")
def backbones() -> dict[str, ClipBackbone]:
    return {}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, backbones: dict[str, ClipBackbone]) -> Path:
    return write_head(tmp_path_factory.mktemp("head") / "head.ckpt", backbones)


@pytest.fixture(scope="module")
def packed(checkpoint: Path) -> Path:
    out = checkpoint.with_name("packed.safetensors")
    pack(checkpoint, out, CARD)
    return out


def test_a_head_file_builds_the_method_of_its_checkpoint(
    checkpoint: Path, packed: Path, backbones: dict[str, ClipBackbone]
) -> None:
    one, other = (load_head(path, backbones=backbones) for path in (checkpoint, packed))
    assert type(one) is type(other)
    assert {k: v for k, v in one.hparams.items() if k != "optimizer"} == dict(other.hparams.items()) | {
        k: v for k, v in one.hparams.items() if isinstance(v, tuple)
    }
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_all_is_read_back(packed: Path) -> None:
    assert read_head_file(packed).card == read_head_card(packed) == CARD
    assert is_head_file(packed)
    assert read_checkpoint(packed)["card"] == CARD.to_dict()


def test_the_same_head_gives_the_same_bytes(tmp_path: Path, packed: Path) -> None:
    pack(packed, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == packed.read_bytes()


def test_tensors_of_a_memory_bank_stay_apart(tmp_path: Path, checkpoint: Path) -> None:
    head = replace(read_head(checkpoint), memory={"0": torch.arange(6.0).view(2, 3), "1": torch.ones(2).half()})
    write_head_file(tmp_path / "head.safetensors", head)
    again = read_head_file(tmp_path / "head.safetensors")
    assert again.tensors.keys() == head.tensors.keys()
    assert torch.equal(again.memory["0"], head.memory["0"])
    assert again.memory["1"].dtype == torch.float16
    assert read_checkpoint(tmp_path / "head.safetensors")["memory"].keys() == {"0", "1"}


def test_a_checkpoint_is_not_a_head_file_under_any_name(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "head.safetensors").write_bytes(checkpoint.read_bytes())
    assert not is_head_file(tmp_path / "head.safetensors")
    assert read_checkpoint(tmp_path / "head.safetensors")["model"]["class_path"] == "AFCLIP"


def test_a_folder_has_one_head(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has neither head\.ckpt nor head\.safetensors: .* Check the path\."):
        head_in(tmp_path)
    (tmp_path / "head.safetensors").touch()
    assert head_in(tmp_path).name == "head.safetensors"
    (tmp_path / "head.ckpt").touch()
    with pytest.raises(CheckpointError, match=r"two heads, head\.ckpt and head\.safetensors: name one"):
        head_in(tmp_path)


def entry_of(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    index = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    entry: dict[str, Any] = json.loads(index["__metadata__"][ENTRY])
    return entry


def with_entry(packed: Path, out: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    entry = entry_of(packed)
    change(entry)
    save_file(dict(read_head_file(packed).tensors), out, {ENTRY: json.dumps(entry)})
    return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.update(format=2), r"by a later version of afclip_lightning \(format 2; this one reads 1\)"),
        (lambda e: e.update(format="1"), "format: expected a whole number, got text"),
        (lambda e: e.update(extra=1), "there is an unknown field extra"),
        (lambda e: e.pop("model"), "there is no model"),
        (lambda e: e["model"].update(class_path=3), "model.class_path: expected text"),
        (lambda e: e["features"].update(image_size="112"), "features.image_size: expected a whole number or a"),
        (lambda e: e["features"].update(rotated=True), "rotated is not known here: a later version"),
        (lambda e: e["card"].update(author="x"), "card: there is an unknown field author"),
        (lambda e: e["card"]["results"][0]["metrics"].update(accuracy=1), "there is no metric accuracy"),
        (lambda e: e["card"]["results"][0]["metrics"].update(image_auroc=1.5), "expected a number <= 1"),
        (lambda e: e["card"]["thresholds"]["image"].update(value=float("nan")), "expected a finite number"),
        (lambda e: e["card"]["thresholds"]["image"].update(scale=0), "expected a number > 0"),
        (lambda e: e.update(digest="0" * 64), "the checksum of its tensors differs"),
    ],
)
def test_an_entry_that_is_wrong_is_named(
    tmp_path: Path, packed: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=r"bad\.safetensors.*") as caught:
        read_checkpoint(with_entry(packed, tmp_path / "bad.safetensors", change))
    assert caught.match(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "index", "bit", "empty", "long", "foreign"])
def test_a_damaged_file_is_one_error(tmp_path: Path, packed: Path, damage: str) -> None:
    content = bytearray(packed.read_bytes())
    path = tmp_path / "bad.safetensors"
    if damage == "cut":
        content = content[:-10]
    elif damage == "index":
        content[20] ^= 0xFF
    elif damage == "bit":
        content[-5] ^= 1
    elif damage == "empty":
        content = bytearray()
    elif damage == "long":
        content[:6] = b"\xff" * 6
    path.write_bytes(content)
    if damage == "foreign":
        save_file({"x": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        read_checkpoint(path)


def test_numbers_that_are_not_finite_are_neither_written_nor_read(tmp_path: Path, checkpoint: Path) -> None:
    head = read_head(checkpoint)
    name = next(iter(head.tensors))
    broken = replace(head, tensors={**head.tensors, name: head.tensors[name] * torch.nan})
    with pytest.raises(CheckpointError, match="holds NaN or infinity"):
        write_head_file(tmp_path / "bad.safetensors", broken)
    with pytest.raises(CheckpointError, match=r"the card: epochs: expected a number >= 0"):
        write_head_file(tmp_path / "bad.safetensors", replace(head, card=Card(epochs=-1)))
    assert not list(tmp_path.iterdir())


def test_a_card_is_read_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    path.write_text("title: One\nseeds: [0]\nresults: [{dataset: visa, metrics: {image_auroc: 0.9}}]\n")
    assert read_card(path) == Card(title="One", seeds=(0,), results=(Measured("visa", {"image_auroc": 0.9}),))
    path.write_text("titel: One\n")
    with pytest.raises(UserError, match=r"card\.yaml: there is an unknown field titel"):
        read_card(path)
