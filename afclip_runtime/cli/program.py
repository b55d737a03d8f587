"""The common end of all commands: exit codes and messages."""

import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress

INTERNAL_ERROR = 70  # as in sysexits.h
INTERRUPTED = 130  # as in shells: 128 plus the number of the signal, here SIGINT
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
    except Exception:
        import traceback

        traceback.print_exc()
        print(
            f"\nThis is a fault of {named}, not of yours: please report it with the lines above and the command.",
            file=sys.stderr,
        )
        return INTERNAL_ERROR
    return code
