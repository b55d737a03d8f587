"""`datasets import`: each kind of export is a module, found by its name."""

import sys
from pathlib import Path

import pytest

import afclip_lightning.importers
from afclip_lightning.cli.datasets import main
from afclip_lightning.importers.command import kinds

KIND = '''
"""drawn: what somebody drew."""


def add_options(parser):
    parser.add_argument("--colour", default="red", help="of the pen")


def convert(options):
    print(options.file, options.out, options.colour)
    return 3
'''


@pytest.fixture
def _drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "drawn.py").write_text(KIND)
    path = [*afclip_lightning.importers.__path__, str(tmp_path)]
    monkeypatch.setattr(afclip_lightning.importers, "__path__", path)
    monkeypatch.delitem(sys.modules, "afclip_lightning.importers.drawn", raising=False)


@pytest.mark.usefixtures("_drawn")
def test_a_file_is_a_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert kinds()["drawn"] == "what somebody drew"
    assert main(["import", "a.json", "--from", "drawn", "--out", "set", "--colour", "blue"]) == 3
    assert capsys.readouterr().out == "a.json set blue\n"
    for where in (["--from", "drawn"], ["--from=drawn"]):
        with pytest.raises(SystemExit) as stop:
            main(["import", *where, "--help"])
        assert stop.value.code == 0
        assert "--colour" in capsys.readouterr().out


@pytest.mark.usefixtures("_drawn")
@pytest.mark.parametrize("args", [[], ["a", "--out", "b"], ["a", "--out", "b", "--from", "x"], ["a", "--from"]])
def test_missing_options_are_reported(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["import", *args])
    assert stop.value.code == 2
    assert "--from" in capsys.readouterr().err


@pytest.mark.usefixtures("_drawn")
def test_help_names_all_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["import", "--help"])
    listed, _ = capsys.readouterr()
    for name, line in kinds().items():
        assert any(row.split() == [name, *line.split()] for row in listed.splitlines())
    assert "command" not in kinds()


@pytest.mark.usefixtures("_drawn")
def test_a_place_that_may_not_be_read_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(_: object) -> int:
        raise PermissionError(13, "Permission denied", "a/b.png")

    assert main(["import", "a.json", "--from", "drawn", "--out", "set"]) == 3  # which imports the kind
    monkeypatch.setattr(sys.modules["afclip_lightning.importers.drawn"], "convert", closed)
    capsys.readouterr()
    assert main(["import", "a.json", "--from", "drawn", "--out", "set"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "a/b.png" in line
