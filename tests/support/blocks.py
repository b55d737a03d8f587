"""Blocks of code that README and docs show, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import REPOSITORY

FILES = ("README.md", "CONTRIBUTING.md", "data/README.md", "afclip_runtime/README.md", "docs/**/*.md")
BLOCK = re.compile(
    r"^(?:<!-- needs: (?P<needs>.+?) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
BREAKS = {"&&", ";", "|", ">", "<", "&"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: Its page, from the repository's root.
        line: Line of the page that it begins in.
        language: `bash`, `python` or another.
        needs: Requirements that tests lack, from the comment before it; empty if it runs in a test.
        text: Content of the block.
    """

    page: str
    line: int
    language: str
    needs: tuple[str, ...]
    text: str

    @property
    def place(self) -> str:
        """Returns its position in the page."""
        return f"{self.page}:{self.line}"


def blocks(language: str) -> list[Block]:
    """Returns every block of a language, page by page."""
    pages = sorted({path for pattern in FILES for path in REPOSITORY.glob(pattern)})
    return [block for page in pages for block in blocks_of(page) if block.language == language]


def blocks_of(path: Path) -> Iterator[Block]:
    """Yields the blocks of a page in order."""
    page = path.read_text(encoding="utf-8")
    for match in BLOCK.finditer(page):
        line = page.count("\n", 0, match.start("text"))
        needs = tuple(filter(None, re.split(r", *| and ", match["needs"] or "")))
        yield Block(path.relative_to(REPOSITORY).as_posix(), line, match["language"], needs, match["text"])


def commands(text: str) -> Iterator[list[str]]:
    """Yields the words of each command of a shell block; comments and redirections are left out."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        reader = shlex.shlex(line, posix=True, punctuation_chars="&;|<>")
        reader.whitespace_split = True
        words: list[str] = []
        for word in [*reader, ";"]:
            if word not in BREAKS:
                words.append(word)
            elif words:
                yield words
                words = []


def program_of(words: list[str]) -> tuple[str, list[str]]:
    """Returns the program that a command runs, and its arguments: `afclip` for `python -m afclip_lightning`."""
    while words and (words[0] == "sudo" or re.match(r"\w+=", words[0])):
        words = words[1:]
    if words[:1] in (["python"], ["python3"]) and words[1:2] == ["-m"]:
        return {"afclip_lightning": "afclip"}.get(words[2], words[2]), words[3:]
    return words[0] if words else "", words[1:]
