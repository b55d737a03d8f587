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


NAMED = f"afclip_lightning {__version__}"


def main() -> int:
    """Runs a command and returns its exit code; see `run_program`."""
    return run_program(_run, NAMED)


def _run(args: list[str]) -> int:
    """Runs a command: that of the module of its name in `cli`."""
    if args and args[0].startswith("-") and args[0] not in ("--help", "-h", "--version"):
        from afclip_lightning.cli.run import run  # an option of Lightning's that stands before the command

        return run(args)
    return verbs.run(args, NAMED, _with_new_names)


def _with_new_names(name: str, args: list[str]) -> list[str]:
    """Returns the arguments of a command with the names that its flags have today, and says which were renamed."""
    renamed, notes = with_new_names(name, args)
    for note in notes:
        print(note, file=sys.stderr)
    return renamed


if __name__ == "__main__":
    sys.exit(main())
