"""A preset is replaced by its values, at its place, unless they are given explicitly."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from afclip_lightning.backbones.presets import PRESETS, Preset
from afclip_lightning.engine import app
from afclip_lightning.engine.factory import load_head, method_class
from afclip_lightning.engine.presets import fill_in, tap_arguments, with_presets
from afclip_runtime.errors import UserError

TINY = Preset("tiny", "tiny-8-112", "embedded", 112, 112, 8, (2, 4, 6, 8), "mit", None, layers_from="")
OTHER = {"model": "ViT-L-14-336", "weights": "openai", "image_size": 518, "vision_weights": "old.safetensors"}


@pytest.fixture
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", TINY)


def config(path: Path, backbone: dict[str, Any], name: str = "NearestNeighbours", **arguments: Any) -> str:
    section = {"class_path": name, "init_args": {"backbone": backbone, **arguments}}
    path.write_text(yaml.safe_dump({"model": section, "data": {"class_path": "MVTecAD"}}))
    return str(path)


def parsed(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit):
        app.main([*args, "--print_config"])
    arguments: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    return arguments


def test_a_preset_on_the_command_line_takes_the_place_of_what_a_config_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = config(tmp_path / "base.yaml", {**OTHER, "pos_embed": "bicubic"}, layers=[6, 12, 18, 24], k_shot=1)
    found = parsed(["test", "--config", base, "--model.backbone.preset", "dinov3-b"], capsys)
    backbone = found["backbone"]
    assert backbone["model"] == "timm:vit_base_patch16_dinov3"
    assert backbone["weights"] == "timm:vit_base_patch16_dinov3.lvd1689m"
    assert (backbone["vision_weights"], backbone["image_size"], backbone["pos_embed"]) == (None, 512, "bicubic")
    assert found["layers"] == [9, 10, 11, 12]
    assert "preset" not in backbone  # what is recorded are the values
    found = parsed(["test", "--config", base, "--model.backbone.preset=clip-b"], capsys)
    assert found["backbone"]["vision_weights"] is None


@pytest.mark.parametrize("given_first", [True, False])
def test_what_is_given_beside_it_stays_whatever_the_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given_first: bool
) -> None:
    given, preset = (
        ["--model.backbone.image_size", "448", "--model.layers=[1, 2]"],
        ["--model.backbone.preset", "dinov2-b"],
    )
    args = given + preset if given_first else preset + given
    found = parsed(["test", "--config", config(tmp_path / "base.yaml", OTHER), *args], capsys)
    assert found["backbone"]["image_size"] == 448
    assert found["backbone"]["model"] == "timm:vit_base_patch14_dinov2"
    assert found["layers"] == [1, 2]


def test_a_preset_in_a_config_gives_way_to_later_configs_and_takes_the_place_of_earlier_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_PRESET", "dinov3-l")
    base = config(tmp_path / "base.yaml", OTHER, layers=[6, 12, 18, 24])
    one = config(tmp_path / "one.yaml", {"preset": "${oc.env:SOME_PRESET}", "image_size": 256}, k_shot=2)
    two = config(tmp_path / "two.yaml", {"image_size": 384})
    found = parsed(["test", "--config", base, "--config", one, f"--config={two}"], capsys)
    assert found["backbone"]["model"] == "timm:vit_large_patch16_dinov3"
    assert found["backbone"]["image_size"] == 384
    assert found["layers"] == [21, 22, 23, 24]
    assert found["k_shot"] == 2


@pytest.mark.usefixtures("tiny_preset")
def test_a_method_is_built_from_a_config_or_an_argument_with_a_preset(tmp_path: Path) -> None:
    path = config(tmp_path / "one.yaml", {"preset": "tiny"}, "PatchRarity")
    method = load_head(path)
    assert method.spec.model == "tiny-8-112"
    assert method.spec.layers == (2, 4, 6, 8)
    other = config(tmp_path / "other.yaml", OTHER, "PatchRarity", layers=[6, 12, 18, 24])
    method = load_head(other, {"backbone.preset": "tiny", "layers": [3]})
    assert method.spec.layers == (3,)
    assert method.spec.weights == "embedded"


@pytest.mark.parametrize(
    ("name", "preset", "expected"),
    [
        ("AFCLIP", "dinov3-l", {"layers": [21, 22, 23, 24]}),
        ("MuSc2", "clip-l", {"layers": [6, 12, 18, 24]}),
        ("AnomalyCLIP", "clip-b", {"layers": [12], "vv_from": 3}),
        ("FAPrompt", "siglip2-so400m", {"layer": 27, "vv_from": 7}),
        ("KAnoCLIP", "laion-h", {"layers": [8, 16, 24, 32], "vv_from": 8}),
        ("AnoVL", "laion-h", {}),
    ],
)
def test_blocks_are_counted_for_the_tower_of_the_preset(name: str, preset: str, expected: dict[str, Any]) -> None:
    assert tap_arguments(method_class(name), PRESETS[preset].depth, PRESETS[preset].layers) == expected


def test_on_the_papers_tower_a_preset_changes_no_tap() -> None:
    for name in ("AFCLIP", "AnomalyCLIP", "FAPrompt", "KAnoCLIP", "APRILGAN", "MuSc"):
        filled = fill_in({"backbone.preset": "clip-l-336"}, method_class(name))
        signature = {k: v.default for k, v in inspect.signature(method_class(name)).parameters.items()}
        for argument in filled.keys() - {key for key in filled if key.startswith("backbone.")}:
            default = signature[argument]
            assert filled[argument] == (default if isinstance(default, int) else list(default))


def test_an_unknown_preset_ends_in_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = config(tmp_path / "base.yaml", OTHER)
    assert app.main(["test", "--config", base, "--model.backbone.preset", "dino"]) == 2
    assert "There is no preset 'dino'." in capsys.readouterr().err
    with pytest.raises(UserError, match="no preset 'dino'"):
        load_head(base, {"backbone.preset": "dino"})


def test_arguments_without_a_preset_stay_as_they_are(tmp_path: Path) -> None:
    args = ["test", "--config", config(tmp_path / "base.yaml", OTHER), "--model.k_shot", "1", "--test_before_fit"]
    assert with_presets(args) == args
