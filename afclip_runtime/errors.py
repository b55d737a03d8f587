"""Errors that a user can mend: shown as one message without a traceback, with exit code 2."""

import errno
import os
import shlex
import unicodedata
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from typing import Any

PROGRAM = "python -m afclip_lightning"
"""How messages call the program."""


def shown(text: object) -> str:
    r"""Returns a name as it can be printed: control and invisible characters escaped, and bytes that are no UTF-8.

    Names come from outside, and a terminal would obey what stands in them.
    """
    name = os.fspath(text) if isinstance(text, os.PathLike) else text
    name = name if isinstance(name, str) else str(text)
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else escape(c) for c in name)


def escape(char: str) -> str:
    r"""Returns a character in ASCII: `\x1b`, `\u202e`, and `\xff` for a byte that is no UTF-8, as Python keeps it."""
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def typed(*words: object) -> str:
    """Returns a command of the program as it is typed into a shell: what holds spaces or signs is quoted.

    Args:
        words: Its arguments; capitals (`IMAGES`) stand for what the reader fills in.
    """
    return f"{PROGRAM} {shlex.join(map(shown, words))}"


def install_extra(extra: str) -> str:
    """Returns how optional packages of what is installed here are installed: of afclip_lightning or of the runtime.

    A bundle holds the runtime as a folder, which pip knows nothing of: its requirements.txt lists them.

    Args:
        extra: Name of the extra.
    """
    if find_spec("afclip_lightning"):
        return f"pip install 'afclip_lightning[{extra}]'"
    try:
        distribution("afclip_runtime")
    except PackageNotFoundError:
        return f"install what requirements.txt of the bundle lists for {extra}"
    return f"pip install 'afclip_runtime[{extra}]'"


def counted(number: int, noun: str, plural: str = "") -> str:
    """Returns a number of things, as `1 image` or `1,200 categories`.

    Args:
        number: How many.
        noun: What one of them is called.
        plural: What several are; by default the noun with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def indented(text: str) -> str:
    """Returns a text with each line two spaces to the right."""
    return "\n".join("  " + line for line in text.strip("\n").splitlines())


class UserError(Exception):
    """Something outside the code is wrong (a path, a file); the message says what, where and what to do.

    What cannot be printed in the message is escaped (`shown`): it may hold names of files.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__("\n".join(map(shown, str(message).split("\n"))))


class WriteError(UserError):
    """A file cannot be written as things are: the disk is full, or a folder is away. The same may succeed later."""


def is_for_want_of_space(message: str) -> bool:
    """Returns whether a message says that a disk is full, or that a user may take no more of it."""
    return any(os.strerror(code) in message for code in (errno.ENOSPC, errno.EDQUOT))


class DatasetError(UserError):
    """A dataset is absent, incomplete or damaged; the message names the file or folder."""


class DatasetNotFoundError(DatasetError):
    """A dataset does not lie where it should; the message says what is there instead, and how to get the dataset.

    Args:
        dataset: The `AnomalyDataModule`.
        problem: What is wrong.
        hint: What the folder seems to hold instead.
    """

    def __init__(self, dataset: Any, problem: str, hint: str = "") -> None:
        self.dataset, self.problem = dataset, problem
        root = dataset.root
        if root.is_dir():
            names = sorted(path.name for path in root.iterdir())
            problem += f"; {root} contains: {', '.join(names[:8]) or 'nothing'}" + (" …" if len(names) > 8 else "")
        super().__init__(
            f"Dataset {dataset.name!r} was not found: {problem}.{hint}\n\n"
            f"Expected in {root}:\n{indented(dataset.layout)}\n\n"
            f"How to get it:\n{indented(dataset.source)}\n"
            f"  Licence: {dataset.licence or 'not known, see there'}\n\n"
            "Another place: set `root` of the dataset, or the variable AFCLIP_DATA to the folder that holds all "
            "datasets.\nTo see the project work without any dataset: make demo."
        )


class UnpairedError(DatasetError):
    """Images without masks or masks without images.

    Args:
        problems: One sentence per file.
        hint: What may be behind all of them, for the message.
    """

    def __init__(self, problems: list[str], hint: str = "") -> None:
        self.problems = problems
        more = f"\n{len(problems) - 1} more files are unpaired; the command `datasets check` lists them."
        super().__init__(problems[0] + hint + (more if len(problems) > 1 else ""))


class WeightsError(UserError):
    """Backbone weights cannot be had or do not fit; the message names the local-file way."""


class CheckpointError(UserError):
    """A checkpoint cannot be written, read or does not fit the model; the message names the difference."""


class TrainingError(UserError):
    """Training cannot go on (a loss that is not finite); the message names the step and the images."""


def message_of(error: BaseException) -> str:
    """Returns the message alone: a loader process wraps it in its own traceback."""
    return str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()
