"""`python -m afclip_lightning`."""

import io
import os
import sys
from contextlib import suppress

from afclip_lightning import __version__
from afclip_lightning.cli import verbs
from afclip_runtime.cli.parser import with_new_names

# Before torch is loaded: threads that wait by spinning starve the loader processes, and themselves, wherever there are
# more of them than cores; sleeping instead made a pass beside one busy process several times faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

INTERNAL_ERROR = 70  # as sysexits.h has it
INTERRUPTED = 130  # as shells have it: 128 and the number of the signal, here SIGINT
READER_GONE = 141  # SIGPIPE


def main() -> int:
    """Runs a command and returns its exit code.

    What every command has in common: 130 after Ctrl-C, 141 and no word where its reader has gone (`| head`), 70 where
    it ends in an error that nobody caught.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that its encoding does not have must not end a command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(sys.argv[1:])
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
            f"\nThis is a fault of afclip_lightning {__version__}, not of yours: please report it with the lines above "
            "and the command.",
            file=sys.stderr,
        )
        return INTERNAL_ERROR
    return code


def _run(args: list[str]) -> int:
    """Runs a command: that of the module of its name in `cli`."""
    if not args or args[0] in ("--help", "-h"):
        print(verbs.overview(), file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args[0] == "--version":
        print(f"afclip_lightning {__version__}")
        return 0
    name, *rest = args
    if name.startswith("-"):  # an option of Lightning's that stands before the command
        from afclip_lightning.cli.run import run

        return run(args)
    command = verbs.find(name)
    if command is None:
        print(f"error: {verbs.unknown(name)}", file=sys.stderr)
        return 2
    rest, notes = with_new_names(name, rest)
    for note in notes:
        print(note, file=sys.stderr)
    return command(rest)


if __name__ == "__main__":
    sys.exit(main())
