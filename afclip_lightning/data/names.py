"""Names of files, folders and categories: equal names under two spellings, and what a folder's name says."""

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

# YAML makes numbers, truth values and nothing of names such as 01, no and null. The parser lets them through to the
# constructors, which say how to quote them.
Scalar = str | int | float | bool | None
Names = Sequence[Scalar] | str | None
ClassNames = Mapping[str, Scalar] | None

FEW_BYTES = 40  # of a class name that is taken for short without a look at its tokens
LONGEST_CLASS_NAME = 48  # tokens: CLIP's text towers take 77; the sentence around it and learnable tokens have theirs
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
    """Returns a name in Unicode's composed form: systems write `ü` as one character or as two, and both look alike."""
    return unicodedata.normalize("NFC", name)


def find(root: Path, relative: str | Path) -> Path:
    """Returns the path of what lies under `root`, spelt as on disk.

    What is there under the very name is taken; else what has the same name in another Unicode form. What is not there
    is returned as it was asked for.

    Raises:
        DatasetError: Two names on disk differ by their Unicode form only, and neither is the one asked for.
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
        DatasetError: Two differ by their Unicode form only.
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
    """Returns whether a folder's name says that it holds masks, labels or depths in place of photographs."""
    return _bare(folder) in _NO_PICTURES


def _bare(name: str) -> str:
    return "".join(character for character in normal_form(name).casefold() if character.isalpha())


def checked_names(argument: str, names: Names) -> list[str] | None:
    """Returns names, each in its composed form, as a list.

    Args:
        argument: Name of the argument that they were given for, for messages.
        names: What the user gave.

    Raises:
        ValueError: They are no list, or something in it is no text, or is there twice.
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
        ValueError: A category or its class name is no text, or a class name is empty.
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
    """Returns how many tokens CLIP's tokenizer makes of a class name, or the bytes of a short one; not fewer."""
    size = len(class_name.encode(errors="replace"))
    return size if size <= FEW_BYTES else len(_tokenizer().encode(class_name))


@lru_cache
def _tokenizer() -> "SimpleTokenizer":
    from open_clip.tokenizer import SimpleTokenizer  # takes a second, and few class names are long

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
    """Checks the names of a dataset's categories and what prompts call them; returns warnings.

    Args:
        dataset: Name of the dataset.
        known: Its categories.
        used: Class names of the categories in use.
        given: Categories that class names are given for.
        elsewhere: Categories of other datasets.

    Raises:
        DatasetError: A category has a name that means something else in tables, or a class name is for none of them.
    """
    if MEAN in known:
        raise DatasetError(
            f"{dataset}: a category is called {MEAN!r}, as the row of the mean over categories is. Rename it."
        )
    warnings = []
    for category, class_name in used.items():
        if (tokens := class_name_tokens(class_name)) > LONGEST_CLASS_NAME:  # refused where a prompt has it: few do
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
        warnings.append(f"{dataset}: class names are given for {', '.join(sorted(stray))}, which it has not: not used.")
    return warnings
