"""Names of files, folders and categories: names with two Unicode spellings, and the meaning of folder names."""

import os
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from afclip_lightning.results import MEAN
from afclip_runtime.errors import DatasetError, shown

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

# YAML reads names such as 01, no and null as a number, a truth value and nothing. The parser passes them on to the
# constructors, whose message says how to quote them.
Scalar = str | int | float | bool | None
Names = Sequence[Scalar] | str | None
ClassNames = Mapping[str, Scalar] | None

FEW_BYTES = 40  # a class name of at most this length is short, so its tokens are not counted
LONGEST_CLASS_NAME = 48  # tokens: CLIP's text towers have 77, which include the sentence around it and learnable tokens
_NORMAL = frozenset(
    {
        "good",
        "ok",
        "okay",
        "io",
        "normal",
        "normals",
        "fine",
        "healthy",
        "intact",
        "clean",
        "perfect",
        "flawless",
        "pass",
    }
    | {"passed", "undamaged", "unblemished", "defectfree", "nodefect", "nodefects", "nodamage", "nonedefective"}
    | {"nondefective", "nondefect", "undefective", "faultless", "nofault", "anomalyfree", "noanomaly", "nonanomalous"}
    | {"negative", "gut", "inordnung", "fehlerfrei", "bon", "bueno", "buono", "goed"}
)
_NO_PICTURES = frozenset(
    {"mask", "masks", "label", "labels", "gt", "gts", "groundtruth", "annotation", "annotations", "segmentation"}
    | {"segmentations", "segmentationmask", "segmentationmasks", "xyz", "depth"}
)


def normal_form(name: str) -> str:
    """Returns a name in Unicode's composed form. Systems write `ü` as one character or as two, which look alike."""
    return unicodedata.normalize("NFC", name)


def find(root: Path, relative: str | Path) -> Path:
    """Returns the path of a file or folder under `root`, spelt as on disk.

    An exact name has priority over the same name in another Unicode form. A missing path is returned as it was given.

    Raises:
        DatasetError: Two names on disk differ only by their Unicode form, and neither is the given name.
    """
    path = root / relative
    if str(relative).isascii() or os.path.lexists(path):
        return path
    found = root
    for part in Path(relative).parts:
        found = _child(found, part)
    return found


def _child(folder: Path, name: str) -> Path:
    if os.path.lexists(folder / name) or not os.path.isdir(folder):
        return folder / name
    twins = sorted(other for other in os.listdir(folder) if normal_form(other) == normal_form(name))
    if len(twins) > 1:
        raise DatasetError(f"{folder}: {twice(*twins[:2])} Rename one.")
    return folder / (twins[0] if twins else name)


def twice(one: str, other: str) -> str:
    """Returns a sentence on two names that look alike."""
    return f"the names {one!a} and {other!a} differ by their Unicode form only (é as one character or two)."


def refuse_twins(folder: Path, names: Iterable[str]) -> None:
    """Checks that no two names look alike.

    Raises:
        DatasetError: Two names differ only by their Unicode form.
    """
    seen: dict[str, str] = {}
    for name in names:
        twin = seen.setdefault(normal_form(name), name)
        if twin != name:
            raise DatasetError(f"{folder}: {twice(twin, name)} Rename one.")


def means_normal(folder: str) -> bool:
    """Returns whether the name of a folder says that its images are normal: `good`, `OK`, `defect-free`, `normal_2`."""
    return _bare(folder) in _NORMAL


def holds_no_pictures(folder: str) -> bool:
    """Returns whether the name of a folder says that it holds masks, labels or depths instead of photographs."""
    return _bare(folder) in _NO_PICTURES


def _bare(name: str) -> str:
    return "".join(character for character in normal_form(name).casefold() if character.isalpha())


def checked_names(argument: str, names: Names) -> list[str] | None:
    """Returns names, each in its composed form, as a list.

    Args:
        argument: Name of the argument, for messages.
        names: Value that the user gave.

    Raises:
        ValueError: The value is not a list, an element is not text, or a name is listed twice.
    """
    if names is None:
        return None
    if isinstance(names, str):
        raise ValueError(f"{argument} must be a list, such as '[\"{names.strip('[]') or 'bottle'}\"]'; got {names!r}")
    found = [normal_form(_text(argument, name)) for name in names]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"{argument} must be named once each, or left out for all; got {list(names)}")
    return found


def checked_class_names(class_names: ClassNames) -> dict[str, str]:
    """Returns the class names of categories, the categories in their composed form.

    Raises:
        ValueError: A category or its class name is not text, or a class name is empty.
    """
    found = {}
    for category, class_name in (class_names or {}).items():
        name, text = normal_form(_text("class_names", category)), _text("class_names", class_name).strip()
        if not text:
            raise ValueError(
                f"class_names: the one of {category!r} is empty. Leave it out for the category's own name."
            )
        found[name] = text
    return found


def class_name_tokens(class_name: str) -> int:
    """Returns the number of CLIP tokens of a class name; for a short name its number of bytes, which is not smaller."""
    size = len(class_name.encode(errors="replace"))
    return size if size <= FEW_BYTES else len(_tokenizer().encode(class_name))


@lru_cache
def _tokenizer() -> "SimpleTokenizer":
    from open_clip.tokenizer import SimpleTokenizer  # takes a second, and is rarely needed

    return SimpleTokenizer()


def _text(argument: str, value: object) -> str:
    if isinstance(value, str):
        return value
    kind = {bool: "a truth value", int: "a number", float: "a number", type(None): "nothing"}.get(
        type(value), "no text"
    )
    quoted = '{"01": "plug"}' if argument == "class_names" else '["01"]'
    raise ValueError(
        f"{argument}: {value!r} is {kind}, not a name. YAML reads names such as 01, 1e3, no and null so: quote them, "
        f"{quoted} in a file, '{quoted}' on the command line."
    )


def check_class_names(
    dataset: str, known: Sequence[str], used: Mapping[str, str], given: Collection[str], elsewhere: Collection[str]
) -> list[str]:
    """Checks the names of a dataset's categories and their class names. Returns warnings.

    Args:
        dataset: Name of the dataset.
        known: Categories of the dataset.
        used: Class names of the categories in use.
        given: Categories for which class names are given.
        elsewhere: Categories of other datasets.

    Raises:
        DatasetError: A category has a name with another meaning in tables, or a class name belongs to no category.
    """
    if MEAN in known:
        raise DatasetError(
            f"{dataset}: a category is called {MEAN!r}, as the row of the mean over categories is. Rename it."
        )
    warnings = []
    for category, class_name in used.items():
        if (tokens := class_name_tokens(class_name)) > LONGEST_CLASS_NAME:  # an error only in prompts
            warnings.append(
                f"{dataset}: the class name of {shown(category[:80])!r} has {tokens} tokens, and prompts have room for "
                f"about {LONGEST_CLASS_NAME}. Give it a shorter one, `class_names` of the dataset."
            )
    stray = set(given) - set(known)
    if typos := sorted(stray - set(elsewhere)):
        raise DatasetError(
            f"{dataset}: class names are given for {', '.join(typos)}, which the dataset does not have. "
            f"It has: {', '.join(known)}."
        )
    if stray:
        warnings.append(
            f"{dataset}: class names are given for {', '.join(sorted(stray))}, which it does not have. These are not "
            "used."
        )
    return warnings
