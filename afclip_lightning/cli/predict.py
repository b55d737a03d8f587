"""`python -m afclip_lightning predict`: score images without labels, and write their maps."""

from collections.abc import Sequence

from afclip_lightning.cli.run import run

PLACE = 23


def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 2 a mistake that the message explains, 75 stopped."""
    return run(["predict", *args])
