"""What all commands of a package have in common: how they end."""

import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress

INTERNAL_ERROR = 70  # as sysexits.h has it
INTERRUPTED = 130  # as shells have it: 128 and the number of the signal, here SIGINT
READER_GONE = 141  # SIGPIPE


def run_program(run: Callable[[list[str]], int], named: str) -> int:
    """Runs a command and returns its exit code.

    What every command has in common: 130 after Ctrl-C, 141 and no word where its reader has gone (`| head`), 70 where
    it ends in an error that nobody caught.

    Args:
        run: Is given the arguments of the command line, and returns an exit code.
        named: Package and version, for the message of an error.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that its encoding does not have must not end a command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
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
