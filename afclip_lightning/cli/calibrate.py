"""`python -m afclip_lightning calibrate`: a threshold from normal images, or labelled ones."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afclip_lightning.cli.model_options import (
    add_model_options,
    load_models,
    named_model,
    no_model,
    split_model_arguments,
)
from afclip_runtime.cli.calibrate import (
    FROM_NORMALS,
    OF_MAPS,
    add_choice_options,
    calibrate,
    normal_images,
    place_of_calibration,
)
from afclip_runtime.cli.parser import CommandParser, command
from afclip_runtime.errors import PROGRAM, UserError

PLACE = 40
DESCRIPTION = f"""\
Chooses the threshold of the image score and that of the map, and writes them beside the checkpoint
(head.PRODUCT.calibration.json; head.calibration.json without --product and --category), where load, inspect and serve
find them; those of a ready model into the working directory (real.PRODUCT.calibration.json). It holds for this product,
and for this checkpoint, seen in this way: other tiles, another category or other few-shot images (--few_shot_dir) need
another calibration. The file says product, date, folder and number of images. Copies of one image count once.
With --roi it holds the region of interest too: inspect and serve take it from there, and refuse another one.

{FROM_NORMALS}\
From labelled images (--labelled): --criterion fpr as above, from the normal ones; f1 or balanced separate the two kinds
best. By hand: --threshold.
{OF_MAPS}"""


@command()
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 2 a mistake that the message explains."""
    others, arguments = split_model_arguments(args)
    return _run(_parser().parse_args(others), arguments)


def _run(options: argparse.Namespace, arguments: dict[str, Any]) -> int:
    from afclip_lightning.inspection.labelled import read_labelled
    from afclip_lightning.inspection.named_model import calibration_path

    if not (named := named_model(options)):
        raise no_model("calibrate", "--normal DIR")
    labelled = normal_images(options.normal)
    labelled += [] if options.labelled is None else read_labelled(options.labelled)
    if not labelled and options.threshold is None:
        raise UserError("name normal images (--normal), labelled ones (--labelled), or a --threshold.")
    if options.criterion != "fpr" and options.labelled is None:
        raise UserError(f"--criterion {options.criterion} needs labelled images (--labelled).")
    product = options.product or options.category
    place = place_of_calibration(options, None if options.out else calibration_path(named), product)

    def load(images: Sequence[Path]) -> Any:
        (model,) = load_models([named], options, arguments, calibration=None, images=images).values()
        return model

    calibrate(options, labelled, place, product, load)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} calibrate", description=DESCRIPTION)
    parser.add_argument("--normal", type=Path, metavar="DIR", help="normal images")
    parser.add_argument(
        "--labelled",
        type=Path,
        metavar="DIR|CSV",
        help="labelled images: folders, where a folder named good is normal; or a table with path and label, 0 or 1",
    )
    parser.add_argument(
        "--criterion",
        choices=("fpr", "f1", "balanced"),
        default="fpr",
        help="criterion that chooses the threshold (%(default)s)",
    )
    add_choice_options(parser)
    add_model_options(parser, engine=True)
    return parser
