"""Tutorials run, and their pages show their output and pictures."""

from pathlib import Path

import pytest

from experiments.docs_site import tutorials
from tests.support import REPOSITORY

PNG = b"\x89PNG"


@pytest.mark.slow
@pytest.mark.parametrize("script", tutorials.scripts(), ids=lambda script: script.stem)
def test_a_tutorial_runs(script: Path) -> None:
    before = Path.cwd()
    page = tutorials.run(script)
    assert Path.cwd() == before
    assert page.text.startswith("# ")
    assert "```text" in page.text
    assert page.pictures
    assert all(picture.startswith(PNG) for picture in page.pictures.values())
    assert all(f"({script.stem}-{name})" in page.text for name in page.pictures)


def test_cells() -> None:
    source = "# %% [markdown]\n# # Title\n#\n# Prose.\n\n# %%\na = 1  # no prose\nprint(a)\n"
    assert list(tutorials.cells(source)) == [(True, "# Title\n\nProse."), (False, "a = 1  # no prose\nprint(a)")]


def test_every_tutorial_stands_in_the_index() -> None:
    index = (REPOSITORY / "docs/tutorials/index.md").read_text(encoding="utf-8")
    assert len(tutorials.scripts()) >= 5
    assert [script.name for script in tutorials.scripts() if f"({script.name})" not in index] == []
