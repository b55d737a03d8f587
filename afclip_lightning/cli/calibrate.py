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
    STRAY,
    add_choice_options,
    calibrate,
    normal_images,
    place_of_calibration,
)
from afclip_runtime.cli.parser import CommandParser, command
from afclip_runtime.errors import PROGRAM, UserError, typed

PLACE = 40
DESCRIPTION = f"""\
Chooses the thresholds of the image score and of the anomaly map, and writes them to a file beside the checkpoint. The
file is head.PRODUCT.calibration.json, or head.calibration.json without --product and --category. load, inspect and
serve find it there. For a ready model, the file is written to the working directory (real.PRODUCT.calibration.json). A
calibration holds for one product, one checkpoint and one set of options: other tiles, another category or other
few-shot images (--few_shot_dir) need another calibration. The file states product, date, folder and number of images.
Copies of an image count once.
With --roi, the file also holds the region of interest. inspect and serve use that region and refuse another one.

{FROM_NORMALS}\
From labelled images (--labelled): --criterion fpr works as above, with the normal ones; f1 and balanced separate normal
and anomalous images best. By hand: --threshold.
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
    model = ("--checkpoint", options.checkpoint) if options.model is None else ("--model", options.model)
    print(f"Type: {typed('inspect', *model, '--calibration', place, 'IMAGES')}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} calibrate", stray=STRAY, description=DESCRIPTION)
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
