"""`python -m afclip_runtime`."""

import sys

from afclip_runtime import __version__
from afclip_runtime.cli.options import RUNTIME
from afclip_runtime.cli.program import run_program
from afclip_runtime.cli.verbs import Verbs

CODES = """\
Exit codes: 0 done; 1 some images could not be read or were left out; 2 a mistake that the message explains; 3 the
calibration no longer holds; 70 a fault of the program; 130 Ctrl-C; 141 the reader of the output has ended."""

VERBS = Verbs("afclip_runtime.cli", RUNTIME, CODES)
NAMED = f"afclip_runtime {__version__}"


def main() -> int:
    """Runs a command and returns its exit code; see `run_program`."""
    return run_program(lambda args: VERBS.run(args, NAMED), NAMED)


if __name__ == "__main__":
    sys.exit(main())
