"""The command line as a whole: exit codes, the version, readers that go away."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from afclip_lightning import __main__, __version__


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["afclip", *args])
    return __main__.main()


def let(monkeypatch: pytest.MonkeyPatch, what: BaseException | int) -> None:
    """Lets the command `datasets` end in an error or with a code."""

    def command(args: list[str]) -> int:
        if isinstance(what, BaseException):
            raise what
        return what

    monkeypatch.setattr(__main__.importlib, "import_module", lambda name: SimpleNamespace(main=command))


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
