"""Errors that a user can correct: shown as one message without a traceback, with exit code 2."""

import errno
import os
import re
import shlex
import unicodedata
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from typing import Any

PROGRAM = "python -m afclip_lightning"
"""Command of the program in messages."""

_SECRET = re.compile(  # user:PASSWORD@host, ?X-Amz-Signature=…, ?sig=…
    r"(://[^/\s:@]*:)[^/\s]*(?=@)|([?&](?:[^=&\s]*(?:signature|credential|token|secret|password)|sig)=)[^&\s]+",
    re.IGNORECASE,
)


def shown(text: object) -> str:
    r"""Returns a printable name: control characters, invisible characters and bytes that are not UTF-8 are escaped.

    Names come from outside, and a terminal would execute control sequences in them. Secrets in URLs are hidden.
    """
    name = os.fspath(text) if isinstance(text, os.PathLike) else text
    name = without_secrets(name if isinstance(name, str) else str(text))
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else escape(c) for c in name)


def without_secrets(text: str) -> str:
    """Returns a text with `***` in place of the passwords and signatures of its URLs: others may read messages."""
    return _SECRET.sub(r"\1\2***", text) if "://" in text else text


def escape(char: str) -> str:
    r"""Returns a character as an ASCII escape: `\x1b`, `\u202e`, or `\xff` for a byte that is not UTF-8."""
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def typed(*words: object) -> str:
    """Returns a command of the program as typed into a shell. Words with spaces or special characters are quoted.

    Args:
        words: Arguments of the command. Words in capitals (`IMAGES`) are placeholders.
    """
    return f"{PROGRAM} {shlex.join(map(shown, words))}"


def install_extra(extra: str) -> str:
    """Returns the command that installs an extra of the installed package, afclip_lightning or afclip_runtime.

    A bundle holds the runtime as a plain folder, not installed by pip. Its requirements.txt lists the packages.

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
        number: Number of things.
        noun: Noun in the singular.
        plural: Noun in the plural. By default the singular with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def indented(text: str) -> str:
    """Returns a text with each line indented by two spaces."""
    return "\n".join("  " + line for line in text.strip("\n").splitlines())


class UserError(Exception):
    """An error of the input, such as a path or a file. The message says what is wrong, where, and the remedy.

    Characters of the message that cannot be printed are escaped (`shown`), since it may contain names of files.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__("\n".join(map(shown, str(message).split("\n"))))


class WriteError(UserError):
    """A file cannot be written at present: the disk is full, or a folder is not mounted.

    A later attempt may succeed.
    """


class MissingPackageError(UserError):
    """A package that the sources need is not installed. The message has the command that installs it."""


def is_for_want_of_space(message: str) -> bool:
    """Returns whether a message says that a disk is full or that the user's quota is used up."""
    return any(os.strerror(code) in message for code in (errno.ENOSPC, errno.EDQUOT))


class DatasetError(UserError):
    """A dataset is missing, incomplete or damaged. The message names the file or folder."""


class DatasetNotFoundError(DatasetError):
    """A dataset is not at the expected place. The message says what is there instead, and how to get the dataset.

    Args:
        dataset: The `AnomalyDataModule`.
        problem: What is wrong.
        hint: What the folder seems to contain instead.
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
        hint: Possible common cause, for the message.
    """

    def __init__(self, problems: list[str], hint: str = "") -> None:
        self.problems = problems
        more = f"\n{len(problems) - 1} more files are unpaired; the command `datasets check` lists them."
        super().__init__(problems[0] + hint + (more if len(problems) > 1 else ""))


class WeightsError(UserError):
    """Backbone weights are not available or do not fit. The message says how to use a local file."""


class CheckpointError(UserError):
    """A checkpoint cannot be written or read, or does not fit the model. The message names the difference."""


class TrainingError(UserError):
    """Training cannot continue because a loss is not finite. The message names the step and the images."""


def message_of(error: BaseException) -> str:
    """Returns the message without the traceback in which a data loader process wraps it."""
    return str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()
