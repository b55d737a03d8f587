"""References in configs: filled in when every file and option is known; one line per unresolved one."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import yaml

from afclip_lightning.engine.app import main
from afclip_lightning.engine.factory import load_head
from afclip_lightning.engine.interpolation import resolve
from afclip_runtime.errors import UserError

CONFIG = """
model: {class_path: AFCLIP, init_args: {temperature: 0.3, map_sigma: "${model.init_args.temperature}"}}
data: {class_path: MVTecAD, init_args: {root: "${oc.env:AFCLIP_TEST_ROOT}/mvtec", num_workers: "${oc.env:N,3}"}}
heads: {other: "${oc.env:AFCLIP_TEST_ROOT}/head.ckpt"}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFCLIP_TEST_ROOT", raising=False)
    monkeypatch.delenv("N", raising=False)
    Path("base.yaml").write_text(CONFIG)


def printed(*args: str) -> dict[str, Any]:
    """Returns the config that `--print_config` shows."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as stop:
        main(["test", "--config=base.yaml", *args, "--print_config"])
    assert stop.value.code in (0, None)
    config: dict[str, Any] = yaml.safe_load(output.getvalue())
    return config


@pytest.mark.slow
def test_a_reference_follows_options_and_later_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFCLIP_TEST_ROOT", "there")
    config = printed()
    assert config["model"]["init_args"]["map_sigma"] == 0.3
    assert config["data"]["init_args"]["root"] == "there/mvtec"
    assert config["data"]["init_args"]["num_workers"] == 3
    assert config["heads"] == {"other": "there/head.ckpt"}
    assert printed("--model.temperature=0.7")["model"]["init_args"]["map_sigma"] == 0.7
    Path("later.yaml").write_text("model: {init_args: {temperature: 0.9}}")
    assert printed("--config=later.yaml")["model"]["init_args"]["map_sigma"] == 0.9
    for reference in ("${model.init_args.temperature}", "${.temperature}", "${oc.select:model.init_args.temperature}"):
        arguments = printed(f"--model.map_sigma={reference}", "--model.temperature=0.5")
        assert arguments["model"]["init_args"]["map_sigma"] == 0.5


@pytest.mark.slow
def test_what_is_replaced_is_not_looked_up() -> None:
    replaced = ["--data.root=here", "--heads={other: here.ckpt}"]
    assert printed(*replaced)["data"]["init_args"]["root"] == "here"
    Path("later.yaml").write_text("data: {init_args: {root: elsewhere}}\nheads: {other: x.ckpt}")
    assert printed("--config=later.yaml")["data"]["init_args"]["root"] == "elsewhere"


@pytest.mark.slow
@pytest.mark.parametrize(("args", "message"), [
    ([], "Environment variable 'AFCLIP_TEST_ROOT' not found"),
    (["--data.root=x"], "heads.other: Environment variable 'AFCLIP_TEST_ROOT' not found"),
    (["--out=${out}"], "out: Recursive interpolation detected"),
    (["--model.map_sigma=${model.init_args.temprature}"], "'model.init_args.temprature' not found"),
    (["--model.map_sigma=${model.init_args.temperature"], "no viable alternative"),
    (["--model.map_sigma=${}"], "no viable alternative"),
    (["--model.map_sigma=${nothing:1}"], "Unsupported interpolation type nothing"),
    (["--model.map_sigma=${..........x}"], "resolving"),
    (["--model.map_sigma=${model.class_path}"], "model.map_sigma: expected a number"),
])  # fmt: skip
def test_one_line_for_each_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    if args and args[0].partition("=")[0] not in ("--data.root",):
        monkeypatch.setenv("AFCLIP_TEST_ROOT", "there")
    with pytest.raises(SystemExit) as stop:
        main(["test", "--config=base.yaml", *args])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert len(lines) <= 3  # the error, a near name, where all options are listed


def test_a_mistyped_key_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AFCLIP_TEST_ROOT", "there")
    with pytest.raises(SystemExit):
        main(["test", "--config=base.yaml", "--model.map_sigma=${model.init_args.temprature}"])
    assert "Did you mean 'model.init_args.temperature'" in capsys.readouterr().err


def test_resolve() -> None:
    assert resolve({"a": 1, "b": {"c": "${a}", "d": ["${a}", "x${a}"]}}) == {"a": 1, "b": {"c": 1, "d": [1, "x1"]}}
    for wrong in ({"a": "${b}", "b": "${a}"}, {"a": "${a}"}, {"a": "${b.c}", "b": 3}, {"a": "${b[7]}", "b": [3]}):
        with pytest.raises(UserError, match=r"^a: "):
            resolve(wrong)


def test_a_config_as_a_head(tmp_path: Path) -> None:
    Path("clip.yaml").write_text(
        "model: {class_path: CLIP, init_args: {backbone: {model: tiny-8-112, weights: '${oc.env:AFCLIP_TEST_ROOT}', "
        "image_size: '${size}'}}}\nsize: 112\n"
    )
    with pytest.raises(UserError, match=r"clip\.yaml: .*AFCLIP_TEST_ROOT"):
        load_head("clip.yaml")
    assert type(load_head("clip.yaml", {"backbone.weights": "embedded"})).__name__ == "CLIP"
