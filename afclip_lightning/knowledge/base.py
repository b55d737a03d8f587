"""Knowledge bases: files with sentences on the look of abnormal items, per category of a dataset.

A base is a YAML file. Only `sentences` is required:

    provenance: {generator: written by hand, date: 2026-11-24}
    sentences:
      bottle:
        - A tiny chip interrupts the smooth circular edge of the bottle neck.
    images:
      bottle/test/broken_small/000.png: The bottle has a small bright chip at the upper left of its rim.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import yaml

from afclip_runtime.errors import UserError
from afclip_runtime.files import read_yaml

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

MAX_TOKENS = 75  # of a sentence; CLIP's context of 77 also holds a start and an end token

_FOLDER = Path(__file__).parent
_KEYS = ("provenance", "sentences", "images")


def bases() -> list[str]:
    """Returns the names of the bases of this package. Each is named like its dataset."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_knowledge(source: str | Path, categories: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Returns the sentences of each category, checked, in the order of `categories`.

    Only training reads a base, and it passes its training categories. Sentences of other categories are not returned,
    so a zero-shot model never sees a word about a test category.

    Args:
        source: One of `bases()`, or the path of your own file, ending in `.yaml` or `.yml`.
        categories: Categories to return; by default all categories of the file.

    Raises:
        UserError: The base does not exist or lacks one of the categories, or a sentence is empty or has more than
            `MAX_TOKENS` tokens.

    Reference: KAnoCLIP, Sec. 2.2.1.
    """
    path, content = _read(source)
    table = content.get("sentences")
    if not isinstance(table, dict) or not table:
        raise UserError(f"{path}: has no `sentences`. Put a list of sentences per category under that key.")
    wanted = list(table) if categories is None else list(categories)
    for category in wanted:
        if category not in table:
            raise UserError(
                f"{path}: has no sentences for the category {category!r}. Add some, or choose another base; this one "
                f"has: {', '.join(map(str, table))}."
            )
    return {category: _sentences(table[category], f"{path}: {category}") for category in wanted}


def load_image_sentences(source: str | Path) -> dict[str, str]:
    """Returns a base's sentences about single images, by the image's path in its dataset. Many bases have none.

    Args:
        source: See `load_knowledge`.

    Raises:
        UserError: The base does not exist, or a sentence is empty or too long.
    """
    path, content = _read(source)
    table = content.get("images", {})
    if not isinstance(table, dict):
        raise UserError(f"{path}: `images` must hold one sentence per image path, got {type(table).__name__}.")
    return {str(key): _sentence(text, f"{path}: {key}") for key, text in table.items()}


def load_provenance(source: str | Path) -> dict[str, Any]:
    """Returns the stated origin of a base; empty if it states none.

    Args:
        source: See `load_knowledge`.

    Raises:
        UserError: The base does not exist.
    """
    path, content = _read(source)
    origin = content.get("provenance", {})
    if not isinstance(origin, dict):
        raise UserError(f"{path}: `provenance` must be a mapping, got {type(origin).__name__}.")
    return origin


def image_sentence(sentences: Mapping[str, str], image_path: PurePath) -> str | None:
    """Returns the sentence about an image, for any folder of its dataset; `None` if there is none.

    Args:
        sentences: Result of `load_image_sentences`.
        image_path: Path of the image. Its last parts are the path in the dataset.
    """
    parts = image_path.parts
    tails = ("/".join(parts[first:]) for first in range(len(parts)))
    return next((sentences[tail] for tail in tails if tail in sentences), None)


def knowledge_digest(sentences: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of sentences by key, independent of the order, for checkpoints and records of runs."""
    return hashlib.sha256(json.dumps(sentences, sort_keys=True).encode()).hexdigest()


def render_base(
    sentences: Mapping[str, Sequence[str]], images: Mapping[str, str], provenance: Mapping[str, Any]
) -> str:
    """Returns a base as the text of its file."""
    content: dict[str, Any] = {
        "provenance": dict(provenance),
        "sentences": {category: list(lines) for category, lines in sentences.items()},
    }
    if images:
        content["images"] = dict(images)
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=116)
    return text


def count_tokens(text: str) -> int:
    """Returns the number of tokens of a text by CLIP's tokenizer, without the start and the end token."""
    return len(_tokenizer().encode(text))


@cache
def _tokenizer() -> "SimpleTokenizer":
    from open_clip.tokenizer import SimpleTokenizer  # imports torch, which a list of the bases does not need

    return SimpleTokenizer()


def _read(source: str | Path) -> tuple[Path, dict[str, Any]]:
    path = Path(source).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        if str(source) not in bases():
            raise UserError(
                f"There is no knowledge base {str(source)!r}. There are: {', '.join(bases())}; or give the path of a "
                "file of your own, ending in .yaml."
            )
        path = _FOLDER / f"{source}.yaml"
    if not path.exists():
        raise UserError(
            f"{path}: cannot be read: there is no such file. Give a name of {', '.join(bases())} or a file."
        )
    content = read_yaml(path, dict[str, Any], remedy="It must hold `sentences`, by category: correct the file.")
    if stray := [key for key in content if key not in _KEYS]:
        raise UserError(f"{path}: has {stray[0]!r}, which is not a key of a base. Categories stand under `sentences`.")
    return path, content


def _sentences(lines: Any, where: str) -> list[str]:
    if not isinstance(lines, list) or not lines:
        raise UserError(f"{where}: must be a list of sentences, got {lines!r}.")
    return [_sentence(line, f"{where}, sentence {number}") for number, line in enumerate(lines, 1)]


def _sentence(text: Any, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: must be text, got {text!r}. Write it, in quotes if it holds a colon, or remove it.")
    # CLIP's tokenizer splits other alphabets into bytes; multilingual towers have another one and count themselves
    if text.isascii() and (tokens := count_tokens(text)) > MAX_TOKENS:
        raise UserError(f"{where}: has {tokens} tokens, and CLIP takes {MAX_TOKENS}. Shorten it: {text}")
    return text.strip()
