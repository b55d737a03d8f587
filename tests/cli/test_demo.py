"""Tests of the command `demo`: its own help, and what it names next."""

import pytest

from afclip_lightning.cli import demo


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Command lines that reach `fit`. The last argument is taken as its exit code."""
    found: list[list[str]] = []

    def run(args: list[str]) -> int:
        found.append(args)
        return int(args[-1])

    monkeypatch.setattr(demo, "run", run)
    return found


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_says_what_the_demo_is(option: str, calls: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([option]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m afclip_lightning demo [OPTION OF fit ...]\n")
    assert "python -m afclip_lightning fit --help" in said
    assert calls == []


@pytest.mark.parametrize("code", [0, 2, 75])
def test_what_to_do_next_is_named_after_success(
    code: int, calls: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--out", str(code)]) == code
    assert calls == [["fit", "--config=configs/afclip_demo.yaml", "--out", str(code)]]
    said = capsys.readouterr().out
    for words in (
        "python -m afclip_lightning report RUN (RUN: the folder of the table)",
        "python -m afclip_lightning inspect --model real PHOTOS --save overlay",
    ):
        assert (words in said) == (code == 0)
