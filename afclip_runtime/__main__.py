"""`python -m afclip_runtime`."""

import sys

from afclip_runtime import __version__
from afclip_runtime.cli.options import RUNTIME
from afclip_runtime.cli.program import run_program
from afclip_runtime.cli.verbs import Verbs

CODES = """\
Exit codes: 0 done; 1 some images could not be read or were left out; 2 a mistake that the message explains; 3 the
calibration no longer holds; 70 a fault of the program; 130 Ctrl-C; 141 the reader has gone."""

VERBS = Verbs("afclip_runtime.cli", RUNTIME, CODES)


def main() -> int:
    """Runs a command and returns its exit code; see `run_program`."""
    return run_program(_run, f"afclip_runtime {__version__}")


def _run(args: list[str]) -> int:
    """Runs a command: that of the module of its name in `cli`."""
    if not args or args[0] in ("--help", "-h"):
        print(VERBS.overview(), file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args[0] == "--version":
        print(f"afclip_runtime {__version__}")
        return 0
    name, *rest = args
    command = VERBS.find(name)
    if command is None:
        print(f"error: {VERBS.unknown(name)}", file=sys.stderr)
        return 2
    return command(rest)


if __name__ == "__main__":
    sys.exit(main())
