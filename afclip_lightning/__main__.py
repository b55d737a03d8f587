"""`python -m afclip_lightning`."""

import os
import sys

from afclip_lightning import __version__
from afclip_lightning.cli import verbs
from afclip_runtime.cli.parser import with_new_names
from afclip_runtime.cli.program import run_program

# Before torch is loaded: threads that wait by spinning starve the loader processes, and themselves, wherever there are
# more of them than cores; sleeping instead made a pass beside one busy process several times faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> int:
    """Runs a command and returns its exit code; see `run_program`."""
    return run_program(_run, f"afclip_lightning {__version__}")


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
