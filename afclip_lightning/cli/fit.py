"""`python -m afclip_lightning fit`: train a head on one dataset, and test it on others."""

from collections.abc import Sequence

from afclip_lightning.cli.run import run

PLACE = 20


def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 2 a mistake that the message explains, 75 stopped."""
    return run(["fit", *args])
