"""The options of commands that cut volumes."""

from collections.abc import Callable
from typing import Any

from afclip_lightning.volumes.grid import AXES, Axis
from afclip_lightning.volumes.windows import PRESETS


def add_cut_options(add: Callable[..., Any], axis: Axis | None) -> None:
    """Adds how volumes are cut and read.

    Args:
        add: `add_argument` of a parser, or of a group of its options.
        axis: The default of `--axis`.
    """
    default = f" ({axis})" if axis else "; without it, no volume is cut"
    add("--axis", choices=AXES, default=axis, help=f"anatomical axis that slices follow one another on{default}")
    add(
        "--window",
        default="auto",
        metavar="RULE",
        help=f"{', '.join(PRESETS)}, CENTRE,WIDTH, percentile, percentile:LOW,HIGH, or auto: soft_tissue for CT, else "
        "percentile (%(default)s)",
    )
    add("--channel", type=int, metavar="N", help="which volume of a file with four axes, from 0")
    add("--form", choices=("sform", "qform"), default="", help="which geometry of NIfTI files whose two disagree")
    add("--codes", default="", metavar="RAS", help="how the axes of files lie that do not say it")
