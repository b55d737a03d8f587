"""`python -m afclip_lightning demo`: train and test AF-CLIP on drawn products, without a download."""

from collections.abc import Sequence

from afclip_lightning.cli.run import run
from afclip_runtime.errors import PROGRAM, typed

PLACE = 9
CONFIG = "configs/afclip_demo.yaml"  # in the package, where the working directory has none
DESCRIPTION = f"""\
usage: {PROGRAM} demo [OPTION OF fit ...]

Draws 12 products with defects, trains AF-CLIP on 6 of them, and tests it on the other 6. It takes 5 minutes of
processor time, and downloads nothing. The images go to data/, and the run (tables, pictures, the head) to runs/.

The options are those of fit, for example --out DIR or --trainer.max_epochs 1. All: {PROGRAM} fit --help\
"""
NEXT = f"""\
One page of this run: {typed("report", "RUN")} (RUN: the folder of the table)
Your own photos, with a ready model (extra real): {typed("inspect", "--model", "real", "PHOTOS", "--save", "overlay")}\
"""


def main(args: Sequence[str]) -> int:
    """Runs `fit` with the config of the demo and returns its exit code. Options of `fit` may follow."""
    if {"-h", "--help"} & set(args):
        print(DESCRIPTION)
        return 0
    code = run(["fit", f"--config={CONFIG}", *args])
    if code == 0:
        print(NEXT)
    return code
