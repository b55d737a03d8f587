"""`python -m afclip_lightning validate`: test a head without pictures, on data for model selection."""

from collections.abc import Sequence

from afclip_lightning.cli.run import run

PLACE = 21


def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 2 a mistake that the message explains, 75 stopped."""
    return run(["validate", *args])
