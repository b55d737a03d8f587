"""The options of commands that cut volumes."""

from collections.abc import Callable
from typing import Any

from afclip_lightning.volumes.grid import AXES, Axis
from afclip_lightning.volumes.windows import PRESETS


def add_cut_options(add: Callable[..., Any], axis: Axis | None) -> None:
    """Adds the options for cutting and reading volumes.

    Args:
        add: `add_argument` of a parser, or of a group of its options.
        axis: Default of `--axis`.
    """
    default = f" ({axis})" if axis else "; without it, no volume is cut"
    add("--axis", choices=AXES, default=axis, help=f"anatomical axis along which a volume is cut into slices{default}")
    add(
        "--window",
        default="auto",
        metavar="RULE",
        help=f"{', '.join(PRESETS)}, CENTRE,WIDTH, percentile, percentile:LOW,HIGH, or auto: soft_tissue for CT, "
        "otherwise percentile (%(default)s)",
    )
    add("--channel", type=int, metavar="N", help="index of the volume in a file with four axes, from 0")
    add("--form", choices=("sform", "qform"), default="", help="geometry to use where the two of a NIfTI file differ")
    add("--codes", default="", metavar="RAS", help="orientation of the axes of files that do not state it")
