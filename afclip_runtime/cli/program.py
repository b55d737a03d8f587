"""The common end of all commands: exit codes and messages."""

import io
import os
import sys
import sysconfig
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

INTERNAL_ERROR = 70  # as in sysexits.h
INTERRUPTED = 130  # as in shells: 128 plus the number of the signal, here SIGINT
OURS = ("afclip_lightning", "afclip_runtime")
READER_GONE = 141  # 128 plus SIGPIPE


def run_program(run: Callable[[list[str]], int], named: str) -> int:
    """Runs a command and returns its exit code.

    For every command, it is 130 after Ctrl-C, 141 without a message if the reader of the output has ended (`| head`),
    and 70 after an unexpected error.

    Args:
        run: Function from the arguments of the command line to an exit code.
        named: Package and version, for the message of an error.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that the encoding lacks must not end a command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again at exit
        return READER_GONE
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        import traceback

        traceback.print_exc()
        frames = traceback.extract_tb(error.__traceback__)
        print(f"\n{_whose_fault([(frame.filename, frame.lineno) for frame in frames], named)}", file=sys.stderr)
        return INTERNAL_ERROR
    return code


def _whose_fault(lines: Sequence[tuple[str, int | None]], named: str) -> str:
    """Returns what to do about an unexpected error.

    Args:
        lines: File and number of each line of its traceback, the innermost last.
        named: Package and version.
    """
    what = "with the lines above and the command."
    for file, number in reversed(lines):
        if not _is_installed(file):
            return f"Check line {number} of {file}, a file of your own. If it is right, report the error {what}"
    return f"This is a fault of {named}, not of yours: please report it {what}"


def _is_installed(file: str) -> bool:
    """Returns whether a source file belongs to Python, to an installed package or to this program."""
    path = Path(file)
    folders = [sysconfig.get_path("stdlib")]
    folders += [os.path.dirname(sys.modules[name].__file__ or "") for name in OURS if name in sys.modules]
    return (
        file.startswith("<")  # <frozen runpy>
        or any(path.is_relative_to(folder) for folder in folders)
        or not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    )
