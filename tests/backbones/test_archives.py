"""Weights from files: no code in them is run, and damaged or non-finite content is rejected."""

import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from afclip_lightning.backbones.archives import is_finite, read_torchscript
from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.weights import load_vision_weights
from afclip_runtime.errors import WeightsError
from tests.support.clips import openai_archive, small_clip, small_config

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


class Part(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        self.register_buffer("steps", torch.arange(3))
        self.sizes = [1, 2]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Restoring(torch.nn.Module):
    """A module with its own code for restoring, which `torch.jit.load` would run."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.zeros(2)

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        self.weight = state[0] + 7.0
        self.training = state[1]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


def test_tensors_of_a_torchscript_archive_are_those_that_torch_reads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for number, module in enumerate((torch.jit.script(Part()), torch.jit.trace(Part(), torch.zeros(1, 3)))):
        path = tmp_path / f"{number}.pt"
        torch.jit.save(module, path)
        with path.open("rb") as file:
            tensors = read_torchscript(file)
        wanted = torch.jit.load(path).state_dict()
        assert tensors.keys() == wanted.keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, wanted[name])
            assert tensor.dtype == wanted[name].dtype


def test_code_in_an_archive_is_not_run(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Restoring()), tmp_path / "w.pt")
    assert torch.jit.load(tmp_path / "w.pt").weight.tolist() == [7.0, 7.0]  # torch runs it
    with pytest.raises(WeightsError, match="a module stores its tensors in an unknown way"):
        ClipBackbone(small_config(tmp_path), str(tmp_path / "w.pt"), image_size=None)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    openai_archive(small_clip(seed=7), tmp_path / "w.pt")
    return tmp_path / "w.pt"


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def largest_entry(path: Path) -> int:
    """Returns the position at which the content of the largest entry begins."""
    with zipfile.ZipFile(path) as file:
        entry = max(file.infolist(), key=lambda entry: entry.file_size)
    with path.open("rb") as content:
        content.seek(entry.header_offset + 26)
        name, extra = struct.unpack("<HH", content.read(4))
    return entry.header_offset + 30 + name + extra


def test_a_flipped_bit_is_found_in_every_archive(tmp_path: Path, archive: Path) -> None:
    torch.save(small_clip().state_dict(), tmp_path / "plain.pt")
    for path in (archive, tmp_path / "plain.pt"):
        flip(path, largest_entry(path) + 6)
        with pytest.raises(WeightsError, match=rf"{path.name}: is damaged"):
            ClipBackbone(small_config(tmp_path), str(path), image_size=None, activation="gelu")


def broken(path: Path) -> Iterator[bytes]:
    content = path.read_bytes()
    yield from (content[: len(content) * part // 4] for part in range(4))
    yield content[:-1]
    yield content + content


@pytest.mark.slow
def test_truncated_files_are_one_error(tmp_path: Path, archive: Path) -> None:
    save_file({k: v.contiguous() for k, v in small_clip().state_dict().items()}, tmp_path / "a.safetensors")
    torch.save(small_clip().state_dict(), tmp_path / "plain.pt")
    for path in (archive, tmp_path / "a.safetensors", tmp_path / "plain.pt"):
        for content in list(broken(path))[:-1]:
            path.write_bytes(content)
            with pytest.raises(WeightsError, match=path.name) as caught:
                ClipBackbone(small_config(tmp_path), str(path), image_size=None)
            assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    state = {name: tensor.contiguous() for name, tensor in small_clip().state_dict().items()}
    state["visual.proj"][1, 1] = value
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        with pytest.raises(WeightsError, match=rf"{name}: visual\.proj holds NaN or infinity"):
            ClipBackbone(small_config(tmp_path), str(tmp_path / name), image_size=None)
    tower = torch.nn.Linear(2, 2)
    torch.save({"weight": torch.full((2, 2), value), "bias": torch.zeros(2)}, tmp_path / "v.pt")
    with pytest.raises(WeightsError, match=r"v\.pt: weight holds NaN or infinity"):
        load_vision_weights(tower, str(tmp_path / "v.pt"))


def test_files_without_a_state_dict_give_one_error(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    os.mkfifo(tmp_path / "pipe.pt")
    for number, content in enumerate(([1], {}, {"state_dict": 3}, {"visual.proj": "x"}, torch.zeros(2), {1: 2})):
        torch.save(content, tmp_path / f"{number}.pt")
    save_file({"token_ids": torch.tensor([10**6])}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    for name in (*(f"{i}.pt" for i in range(6)), "pipe.pt", "a.safetensors", "b.safetensors"):
        with pytest.raises(WeightsError, match=name) as caught:
            ClipBackbone(config, str(tmp_path / name), image_size=None)
        assert len(str(caught.value)) < 1000
        assert "\n" not in str(caught.value)


def test_a_shape_that_does_not_fit_is_named(tmp_path: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in small_clip().state_dict().items()}
    save_file({**state, "visual.proj": torch.zeros(3, 3)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"size mismatch for visual\.proj"):
        ClipBackbone(small_config(tmp_path), str(tmp_path / "a.safetensors"), image_size=None)


def test_finite() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert is_finite(torch.ones(3, dtype=dtype))
        for value in ("nan", "inf", "-inf"):
            assert not is_finite(torch.tensor([1.0, float(value), 2.0], dtype=dtype))
    assert is_finite(torch.tensor([], dtype=torch.float32))
    assert is_finite(torch.arange(3))
