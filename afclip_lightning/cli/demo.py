"""`python -m afclip_lightning demo`: train and test AF-CLIP on drawn products, without a download."""

from collections.abc import Sequence

from afclip_lightning.cli.run import run

PLACE = 9
CONFIG = "configs/afclip_demo.yaml"  # in the package, where the working directory has none


def main(args: Sequence[str]) -> int:
    """Runs `fit` with the config of the demo and returns its exit code. Options of `fit` may follow."""
    return run(["fit", f"--config={CONFIG}", *args])
