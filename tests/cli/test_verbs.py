"""The commands as a whole: found by their files, help without heavy imports, old flags still accepted."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import afclip_lightning.cli
from afclip_lightning import __main__
from afclip_lightning.backbones.store_files import SPEC_FILE, statement
from afclip_lightning.cli import evaluate, verbs
from afclip_lightning.metrics.pro import DEFINITIONS
from afclip_runtime.cli.parser import RENAMED, with_new_names
from tests.support.layouts.mvtec import write_mvtec
from tests.support.options import options_of
from tests.support.run_folders import write_run

RUNS = ("demo", "fit", "validate", "test", "predict")  # whose options are Lightning's
HEAVY = ("torch", "lightning", "open_clip", "albumentations", "torchmetrics", "jsonargparse", "optuna", "fastapi")


GREET = '''
"""`python -m afclip_lightning greet`: say hello to a name."""


def main(args):
    print("Hello", *args)
    return 3
'''


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["afclip", *args])
    return __main__.main()


def test_all_commands_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = verbs.verbs()
    files = {path.stem for path in Path(verbs.__file__).parent.glob("*.py") if "\ndef main(" in path.read_text()}
    assert {verb.name for verb in found} == files
    assert files >= {*RUNS, "inspect", "sweep", "knowledge"}
    for option in ("--help", "-h"):
        assert run(monkeypatch, option) == 0
        listed, _ = capsys.readouterr()
        lines = [line.split() for line in listed.splitlines() if line.startswith("  ")]
        assert [line[0] for line in lines] == [verb.name for verb in found]
        assert all(len(line) > 3 for line in lines)
        assert max(map(len, listed.splitlines())) <= 120
        assert "75 stopped" in listed
    assert run(monkeypatch) == 2
    assert capsys.readouterr() == ("", listed)
    names = [verb.name for verb in found]
    assert names.index("datasets") < names.index("fit") < names.index("test") < names.index("report")
    assert names.index("calibrate") < names.index("inspect")


@pytest.mark.parametrize(("name", "near"), [("inpsect", "inspect"), ("dataset", "datasets"), ("Fit", "fit"), ("x", "")])
def test_a_mistyped_command_is_told_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, near: str
) -> None:
    assert run(monkeypatch, name, "--checkpoint", "x") == 2
    (line,) = capsys.readouterr().err.splitlines()
    hint = f" Did you mean {near}?" if near else ""
    assert line == f'error: there is no command "{name}".{hint} All commands: python -m afclip_lightning --help'


@pytest.mark.parametrize("name", ["parser", "verbs", "run", "model_options", "__init__", "fit.main", "../cli/fit"])
def test_files_that_are_not_commands_are_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run(monkeypatch, name) == 2
    assert "there is no command" in capsys.readouterr().err


def test_a_file_is_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "greet.py").write_text(GREET)
    monkeypatch.setattr(afclip_lightning.cli, "__path__", [*afclip_lightning.cli.__path__, str(tmp_path)])
    assert run(monkeypatch, "--help") == 0
    assert "  greet      say hello to a name\n" in capsys.readouterr().out
    assert run(monkeypatch, "greet", "Ada") == 3
    assert capsys.readouterr().out == "Hello Ada\n"
    sys.modules.pop("afclip_lightning.cli.greet")


@pytest.mark.parametrize("verb", sorted(set(RENAMED) - {*RUNS, "features"}))
def test_an_old_flag_is_accepted_and_reported(verb: str) -> None:
    options = options_of(importlib.import_module(f"afclip_lightning.cli.{verb}")._parser())
    for old, new in RENAMED[verb].items():
        assert new in options
        assert old not in options
        args, notes = with_new_names(verb, [old, "x", f"{old}=y", "--", old])
        assert args == [new, "x", f"{new}=y", "--", old]
        assert notes == [f"note: {old} is called {new} now."]
    assert with_new_names(verb, ["--device", "cpu"]) == (["--device", "cpu"], [])


@pytest.mark.parametrize(("command", "message"), [
    ("inspect --chekpoint=x a.png", "unrecognized arguments: --chekpoint=x. Did you mean --checkpoint?"),
    ("inspect --nothing a.png", "unrecognized arguments: --nothing"),
    ("inspect photos --save overlay map",
     "unrecognized arguments: map. Name all images in one place, and join several kinds of pictures with commas: "
     "--save overlay,map"),
    ("calibrate photos",
     "unrecognized arguments: photos. Name the folder of normal images with its option: --normal DIR"),
    ("features info --jsno store", "unrecognized arguments: --jsno. Did you mean --json?"),
    ("features prune store --days many", "argument --days: must be 0 or more, got many"),
    ("benchmark --config x --jobs many", "argument --jobs: must be at least 1, got many"),
    ("benchmark --config x --time_limit inf", "argument --time_limit: must be a number of seconds above 0, got inf"),
    ("sweep --config x --trials 1.5", "argument --trials: must be from 1 to 1000000, got 1.5"),
    ("sweep --config x --seed -1", "argument --seed: must be from 0 to 2147483647, got -1"),
    ("report run --threshold nan", "argument --threshold: must be a finite number, got nan"),
])  # fmt: skip
def test_a_wrong_flag_or_number_is_answered_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *command.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[0] == f"error: {message}"


def test_a_mistyped_command_of_features_is_told_all_four(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "features", "biuld")
    assert "choose from 'build', 'info', 'verify', 'prune'" in capsys.readouterr().err.replace("(", "").replace(")", "")


def test_flags_are_of_one_kind() -> None:
    for verb in verbs.verbs():
        if verb.name not in RUNS:
            flags = options_of(importlib.import_module(f"afclip_lightning.cli.{verb.name}")._parser()) - {"-h"}
            assert [flag for flag in flags if "-" in flag[2:]] == [], verb.name
            assert not flags & {"--output", "--folder", "--csv", "--run_dir", "--shots", "--ckpt_path"}, verb.name


def test_old_flags_of_a_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, value in (("maps", 7), ("masks", 255)):
        (tmp_path / folder).mkdir()
        image = np.zeros((8, 8), np.uint8)
        image[2:4, 2:4] = value
        Image.fromarray(image).save(tmp_path / folder / "0.png")
    where = ["--maps", f"{tmp_path}/maps", "--masks", f"{tmp_path}/masks"]
    assert run(monkeypatch, "evaluate", *where, "--csv", f"{tmp_path}/t.csv", f"--json={tmp_path}/t.json") == 0
    told = capsys.readouterr().err.splitlines()
    assert told[:2] == ["note: --csv is called --out now.", "note: --json is called --out now."]
    assert (tmp_path / "t.csv").read_text().startswith("dataset,")
    assert json.loads((tmp_path / "t.json").read_text())["rows"]
    assert run(monkeypatch, "evaluate", *where, "--out", f"{tmp_path}/t.txt") == 2
    assert "the name of a table ends in .csv or .json" in capsys.readouterr().err


def test_evaluate_names_what_the_metrics_take() -> None:
    assert evaluate.PRO == DEFINITIONS


def write_store(root: Path) -> None:
    """Writes a store of one image's features."""
    path = root / "key" / "layer-01" / "ab" / "abcd.safetensors"
    path.parent.mkdir(parents=True)
    row = {"layer-01": np.ones((5, 4), np.float16)}
    save_file(row, path, metadata=statement(path, row))
    spec = {"model": "m", "weights_hash": "h", "activation": "gelu", "image_size": 28, "pos_embed": "bicubic"}
    spec |= {"mean": [0, 0, 0], "std": [1, 1, 1], "compute": "float32", "dtype": "float16"}
    (root / "key" / SPEC_FILE).write_text(json.dumps(spec))


@pytest.mark.slow
def test_light_commands_import_nothing_heavy(tmp_path: Path) -> None:
    """Runs the commands in one process, and checks the imported modules after each."""
    write_store(tmp_path / "store")
    write_run(tmp_path / "run")
    bottles = str(write_mvtec(tmp_path / "mvtec", ["bottle"], by_name=True))  # some are in training and in test
    helps = [[verb.name, "--help"] for verb in verbs.verbs() if verb.name not in RUNS]
    store = str(tmp_path / "store")
    commands = [["--help"], ["--version"], *helps, ["report", str(tmp_path / "run")]]
    commands += [["features", "info", store], ["features", "verify", store], ["features", "prune", store, "--days=1"]]
    commands += [["datasets", "list"], ["datasets", "check", "MVTecLayout", "--root", bottles]]
    commands += [["datasets", "show", "MVTecLayout", "--root", bottles, "--out", str(tmp_path / "shown")]]
    code = f"""
import contextlib, io, json, sys
from afclip_lightning.__main__ import main
found = []
for command in {commands!r}:
    sys.argv[1:] = command
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            code = main()
        except SystemExit as end:
            code = end.code
    found.append([command, code, [name for name in {HEAVY!r} if name in sys.modules], out.getvalue()])
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    for command, result, heavy, said in json.loads(done.stdout):
        of_a_class = command[1:2] in (["check"], ["show"])  # whose options jsonargparse reads
        assert set(heavy) <= ({"jsonargparse"} if of_a_class else set()), command
        assert result == (1 if "check" in command else 0), (command, said)
        assert said
