"""The command line as a whole: exit codes, the version, readers that close early."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from afclip_lightning import __main__, __version__
from afclip_lightning.engine import app
from afclip_runtime.cli.verbs import Verbs


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["afclip", *args])
    return __main__.main()


def let(monkeypatch: pytest.MonkeyPatch, what: BaseException | int) -> None:
    """Makes every command end with an error, as if code of a library raised it, or with an exit code."""
    command = Mock(side_effect=what) if isinstance(what, BaseException) else Mock(return_value=what)
    monkeypatch.setattr(Verbs, "find", lambda self, name: command)


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for code in (0, 1, 2, 75):
        let(monkeypatch, code)
        assert run(monkeypatch, "datasets") == code
    assert capsys.readouterr() == ("", "")
    let(monkeypatch, KeyError("threshold"))
    assert run(monkeypatch, "datasets") == 70
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "KeyError: 'threshold'" in error
    assert f"a fault of afclip_lightning {__version__}" in error.splitlines()[-1]
    let(monkeypatch, KeyboardInterrupt())
    assert run(monkeypatch, "datasets") == 130
    assert capsys.readouterr().err == "Interrupted.\n"


@pytest.mark.parametrize(("error", "message"), [
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "use fewer num_workers"),
    (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "use fewer num_workers"),
    (torch.OutOfMemoryError("CUDA out of memory."), "too little memory for this batch_size"),
    (MisconfigurationException("No such\nstrategy"), "No such strategy"),
    (OSError(28, "No space left on device"), "No space left"),
])  # fmt: skip
def test_errors_that_a_user_can_correct_are_one_line(
    capsys: pytest.CaptureFixture[str], error: Exception, message: str
) -> None:
    def command(args: list[str] | None) -> app.AnomalyCLI:
        raise error

    assert app.main([], command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_an_unexpected_error_in_a_file_of_the_user_names_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "off_centre.py").write_text(
        "import torch\n\ndef score(args):\n    return torch.zeros(2) @ torch.ones(3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Verbs, "find", lambda self, name: importlib.import_module("off_centre").score)
    assert run(monkeypatch, "datasets") == 70
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"Check line 4 of {tmp_path / 'off_centre.py'}, a file of your own.")


def test_unknown_errors_are_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(args: list[str] | None) -> app.AnomalyCLI:
        raise RuntimeError("shapes do not match")

    def interrupted(args: list[str] | None) -> app.AnomalyCLI:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)  # as Lightning does

    with pytest.raises(RuntimeError, match="shapes"):
        app.main([], fails)
    with pytest.raises(KeyboardInterrupt):
        app.main([], interrupted)


def test_features_build_has_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--help", "-h"):
        assert run(monkeypatch, "features", "build", option) == 0
        assert "All other options are those of fit" in capsys.readouterr().out
    assert run(monkeypatch, "features", "build") == 2
    assert "--features.cache DIR" in capsys.readouterr().err


@pytest.mark.parametrize("threads", ["0", "-1", "many", "1e9", "100000"])
def test_threads(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], threads: str) -> None:
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "datasets", "check", "MVTecAD", f"--threads={threads}")
    assert stop.value.code == 2
    assert f"must be from 1 to 1024, got {threads}" in capsys.readouterr().err


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"afclip_lightning {__version__}\n"


def test_a_reader_that_goes_away_ends_it_without_a_word() -> None:
    code = "import sys; sys.argv = ['afclip', 'datasets', 'list']\n"
    code += "from afclip_lightning.__main__ import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 141
    process.stderr.close()


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "--checkpoint", "x.ckpt"),
        ("calibrate", "--nothing"),
        ("serve", "--port", "many"),
        ("export", "--nothing"),
        ("report",),
        ("evaluate", "--nothing"),
        ("datasets", "chekc"),
        ("features", "prune", "store", "--days", "many"),
        ("features", "prune", "store", "--days", "-1"),
        ("features", "prune", "store", "--days", "nan"),
        ("knowledge", "shwo"),
        ("benchmark", "--nothing"),
        ("sweep", "--nothing"),
    ],
)
def test_a_wrong_option_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *arguments)
    assert stop.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ")
    assert second.startswith(f"All options: python -m afclip_lightning {arguments[0]}")
    assert second.endswith("--help")
