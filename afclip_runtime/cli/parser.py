"""Common parts of all commands: the parser, exit codes of mistakes, and renamed flags."""

import argparse
import difflib
import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from afclip_runtime.errors import UserError, message_of

Command = Callable[[Sequence[str]], int]
Number = TypeVar("Number", int, float)
OptionGroup = argparse._ArgumentGroup  # what `add_argument_group` returns

_MODEL = {"--shots": "--few_shot_dir", "--ckpt_path": "--checkpoint"}  # names in Lightning and in run folders
_RUN = {"--run_dir": "--out"}
RENAMED: dict[str, dict[str, str]] = {
    "calibrate": {"--output": "--out", **_MODEL},
    "evaluate": {"--csv": "--out", "--json": "--out"},
    "export": {"--calibration-images": "--calibration_images", **_MODEL},
    "features": _RUN,
    "fit": _RUN,
    "inspect": {"--output": "--out", **_MODEL},
    "knowledge": {"--dry-run": "--dry_run", "--key-variable": "--key_variable", "--vision-model": "--vision_model"},
    "predict": _RUN,
    "serve": {"--max_examples": "--max_few_shot", **_MODEL},
    "sweep": {"--folder": "--out"},
    "test": _RUN,
    "validate": _RUN,
}
"""Renamed flags by command. The old names still work."""


class CommandParser(argparse.ArgumentParser):
    """The parser of a command.

    It keeps the lines of descriptions, allows no abbreviated flags, and prints short errors.

    Args:
        prog: Command line of the command.
        stray: Remedy for values that belong to no option, as one sentence.
        options: See `argparse.ArgumentParser`.
    """

    def __init__(self, prog: str, stray: str = "", **options: Any) -> None:
        self._stray = stray
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, **{"formatter_class": formatter, "allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Prints the message, a remedy where there is one, and where all flags are; ends with exit code 2."""
        near: list[str] = []
        stray = ""
        if message.startswith("unrecognized arguments: "):
            names = self._flags()
            unknown = [arg.partition("=")[0] for arg in message.split() if arg.startswith("--")]
            near = [close for name in unknown for close in difflib.get_close_matches(name, names, n=1)]
            stray = "" if unknown else self._stray
        hint = f". Did you mean {' and '.join(dict.fromkeys(near))}?" if near else f". {stray}" if stray else ""
        if message.endswith("expected one argument"):
            hint = f". A value that begins with - follows =, as in {message.split()[1].rstrip(':')}=-1"
        print(f"error: {message}{hint}\nAll options: {self.prog} --help", file=sys.stderr)
        sys.exit(2)

    def _flags(self) -> list[str]:
        """Returns the flags of this parser and of its subparsers."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                flags += [flag for parser in action.choices.values() for flag in parser._flags()]
        return flags


def numeric(kind: Callable[[str], Number], holds: Callable[[Number], bool], wanted: str) -> Callable[[str], Number]:
    """Returns the argparse type of a numeric option. For an invalid text, the parser reports "must be `wanted`".

    Args:
        kind: `int` or `float`.
        holds: Function that returns whether a number is allowed.
        wanted: Description of the allowed numbers.
    """

    def read(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not holds(value):
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text}")
        return value

    return read


finite = numeric(float, math.isfinite, "a finite number")
rate = numeric(float, lambda value: 0 < value <= 0.5, "above 0 and at most 0.5 (0.01 is 1 %)")


def command(interrupted: str = "Interrupted.") -> Callable[[Command], Command]:
    """Returns a decorator for a command's `main`. It prints a `UserError` and returns 2, and returns 130 after Ctrl-C.

    Args:
        interrupted: Message after Ctrl-C, unless the interrupt has a message.
    """

    def decorate(run: Command) -> Command:
        @functools.wraps(run)
        def main(args: Sequence[str]) -> int:
            try:
                return run(args)
            except UserError as error:
                print(f"error: {message_of(error)}", file=sys.stderr)
                return 2
            except KeyboardInterrupt as stop:
                print(str(stop) or interrupted, file=sys.stderr)
                return 130

        return main

    return decorate


@contextmanager
def before_inspection() -> Iterator[None]:
    """Sets the message after Ctrl-C while a command loads and lists: there is nothing yet from which to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise type(stop)("Stopped before this run inspected an image.") from stop


def with_new_names(verb: str, args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the arguments of a command with the current names of its flags, and a sentence per renamed flag.

    Args:
        verb: The command.
        args: Arguments of the command. Those after `--` are for other commands, and are not changed.
    """
    new = RENAMED.get(verb, {})
    end = list(args).index("--") if "--" in args else len(args)
    renamed: list[str] = []
    notes: dict[str, None] = {}
    for arg in args[:end]:
        name, equals, value = arg.partition("=")
        if name in new:
            notes[f"note: {name} is called {new[name]} now."] = None
        renamed.append(new.get(name, name) + equals + value)
    return [*renamed, *args[end:]], list(notes)
