"""`python -m afclip_lightning test`: test a head or a training-free method: tables and pictures."""

from collections.abc import Sequence

from afclip_lightning.cli.run import run

PLACE = 22


def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 2 a mistake that the message explains, 75 stopped."""
    return run(["test", *args])
