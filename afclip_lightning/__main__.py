"""`python -m afclip_lightning`."""

import os
import sys

from afclip_lightning import __version__
from afclip_lightning.cli import verbs
from afclip_runtime.cli.parser import with_new_names
from afclip_runtime.cli.program import run_program

# Set before torch is loaded. Threads that spin while they wait slow down loader processes and each other if there are
# more threads than cores. With sleeping threads, a pass was several times faster beside one busy process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


NAMED = f"afclip_lightning {__version__}"


def main() -> int:
    """Runs a command and returns its exit code; see `run_program`."""
    return run_program(_run, NAMED)


def _run(args: list[str]) -> int:
    """Runs the command of the module in `cli` with its name."""
    if args and args[0].startswith("-") and args[0] not in ("--help", "-h", "--version"):
        from afclip_lightning.cli.run import run  # an option of Lightning before the command

        return run(args)
    return verbs.run(args, NAMED, _with_new_names)


def _with_new_names(name: str, args: list[str]) -> list[str]:
    """Returns the arguments of a command with the current names of its flags. Prints a note per renamed flag."""
    renamed, notes = with_new_names(name, args)
    for note in notes:
        print(note, file=sys.stderr)
    return renamed


if __name__ == "__main__":
    sys.exit(main())
