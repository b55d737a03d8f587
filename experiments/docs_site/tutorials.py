"""Tutorials: scripts in docs/tutorials, run when the site is built; a page shows prose, code, output and pictures.

A script is in the percent format, which editors show as a notebook: `# %% [markdown]` begins prose in comments, `# %%`
begins code. Pictures that a cell writes as PNG stand below it.
"""

import contextlib
import io
import os
import re
import sys
import tempfile
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from experiments.docs_site.repository import ROOT

FOLDER = ROOT / "docs/tutorials"


@dataclass
class Page:
    """The result of a script.

    Attributes:
        text: The page, Markdown.
        pictures: Its pictures by their names.
    """

    text: str = ""
    pictures: dict[str, bytes] = field(default_factory=dict)


def scripts() -> list[Path]:
    """Returns the tutorials."""
    return sorted(FOLDER.glob("*.py"))


def cells(source: str) -> Iterator[tuple[bool, str]]:
    """Yields each cell of a script: whether it is prose, and its text."""
    for kind, text in re.findall(r"^# %%( \[markdown\])?\n(.*?)(?=^# %%|\Z)", source, re.MULTILINE | re.DOTALL):
        yield bool(kind), re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE) if kind else text.strip()


def run(script: Path) -> Page:
    """Returns the page of a script, which runs in an empty folder.

    Raises:
        Exception: Whatever a cell raises.
    """
    page = Page()
    module = types.ModuleType("tutorial")
    with tempfile.TemporaryDirectory() as name, _working_in(Path(name)), _module(module):
        for is_prose, text in cells(script.read_text(encoding="utf-8")):
            if is_prose:
                page.text += f"{text}\n\n"
                continue
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):  # progress bars
                exec(compile(text, str(script), "exec"), vars(module))
            page.text += f"```python\n{text}\n```\n\n"
            if output := printed.getvalue().rstrip():
                page.text += f"```text\n{output}\n```\n\n"
            for picture in sorted(set(Path().glob("*.png")) - {Path(known) for known in page.pictures}):
                page.pictures[picture.name] = picture.read_bytes()
                page.text += f"![{picture.stem.replace('_', ' ')}]({script.stem}-{picture.name})\n\n"
    return page


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _module(module: types.ModuleType) -> Iterator[None]:
    """Makes the classes of a script importable while it runs, like those of a module."""
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        del sys.modules[module.__name__]
