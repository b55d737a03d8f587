"""`python -m afclip_lightning calibrate`: a threshold from normal images, or labelled ones."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afclip_lightning.cli.model_options import (
    add_model_options,
    load_models,
    named_model,
    no_model,
    split_model_arguments,
)
from afclip_runtime.cli.parser import CommandParser, command, finite
from afclip_runtime.errors import PROGRAM, UserError
from afclip_runtime.thresholds import is_anomalous

if TYPE_CHECKING:
    import numpy as np

    from afclip_lightning.inspection.labelled import Labelled
    from afclip_lightning.inspection.predictor import Predictor
    from afclip_runtime.inspection.calibration import Threshold

PLACE = 40
DESCRIPTION = """\
Chooses the threshold of the image score and that of the map, and writes them beside the checkpoint
(head.PRODUCT.calibration.json; head.calibration.json without --product and --category), where load, inspect and serve
find them; those of a ready model into the working directory (real.PRODUCT.calibration.json). It holds for this product,
and for this checkpoint, seen in this way: other tiles, another category or other few-shot images (--few_shot_dir) need
another calibration. The file says product, date, folder and number of images. Copies of one image count once.
With --roi it holds the region of interest too: inspect and serve take it from there, and refuse another one.

From normal images alone (--normal): the threshold that a share --fpr of normal images will exceed. Of at least 10
images it is a quantile; of fewer, the tail of their scores is fitted. The interval that is printed says how far to
trust it: from few images it is wide.
From labelled images (--labelled): --criterion fpr as above, from the normal ones; f1 or balanced separate the two kinds
best. By hand: --threshold.
The threshold of the map is one that a share --pixel_fpr of the normal images' pixels will exceed.

Never calibrate on images that you report results on: what is measured on them afterwards is no measurement.
"""


@command()
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 2 a mistake that the message explains."""
    others, arguments = split_model_arguments(args)
    return _run(_parser().parse_args(others), arguments)


def _run(options: argparse.Namespace, arguments: dict[str, Any]) -> int:
    from afclip_lightning.inspection.labelled import read_labelled, without_copies
    from afclip_runtime.images.find import say_others, survey
    from afclip_runtime.inspection.calibration import Calibration, origin
    from afclip_runtime.inspection.drift import keep

    if not (named := named_model(options)):
        raise no_model("calibrate", "--normal DIR")
    if not 0 < options.fpr <= 0.5 or not 0 < options.pixel_fpr <= 0.5:
        raise UserError(
            f"--fpr and --pixel_fpr must be above 0 and at most 0.5, got {options.fpr}, {options.pixel_fpr}."
        )
    labelled: Labelled = []
    if options.normal is not None:
        found = survey(options.normal)
        for sentence in [*found.problems.values(), *filter(None, [say_others(found.others)])]:
            print(f"note: {sentence}", file=sys.stderr)
        labelled = [(path, False) for path in found.images]
        if not labelled:
            raise UserError(f"{options.normal}, the folder of normal images, has no image.")
    labelled += [] if options.labelled is None else read_labelled(options.labelled)
    if not labelled and options.threshold is None:
        raise UserError("name normal images (--normal), labelled ones (--labelled), or a --threshold.")
    if options.criterion != "fpr" and options.labelled is None:
        raise UserError(f"--criterion {options.criterion} needs labelled images (--labelled).")
    place = _place(options, named)
    labelled = without_copies(labelled, options.few_shot_dir)
    _check_enough(options, [label for _, label in labelled])

    images = [path for path, _ in labelled]
    (model,) = load_models([named], options, arguments, calibration=None, images=images).values()
    image, pixel, normal = _thresholds(options, model, labelled)
    source = options.normal or options.labelled
    made = origin(options.product or options.category, str(source or ""), len(labelled))
    Calibration(image, pixel, model.checkpoint, model.settings, made, keep(normal), model.roi).save(place)
    print(f"{place}\nNever report results on the images that a threshold was calibrated on.")
    return 0


def _place(options: argparse.Namespace, named: str) -> Path:
    """Returns where the calibration is to be written.

    Raises:
        UserError: Another one lies there, or nothing can be written there.
    """
    from afclip_lightning.inspection.named_model import calibration_path
    from afclip_runtime.files import check_writable
    from afclip_runtime.inspection.calibration import Calibration, place_of

    place: Path | None = options.out
    if place is None:
        beside = calibration_path(named)
        if beside is None:
            raise UserError(f"{named} is no file that a calibration could lie beside: give --out FILE.")
        place = place_of(beside, options.product or options.category)
    if place.exists() and not options.overwrite:
        try:
            there = str(Calibration.read(place))
        except UserError:
            there = "something else"
        raise UserError(f"{place} is there already ({there}). Name another --product, or --overwrite it.")
    check_writable(place)
    return place


def _check_enough(options: argparse.Namespace, labels: Sequence[bool]) -> None:
    """Refuses too few images, before a model is loaded.

    Raises:
        UserError: There are.
    """
    from afclip_runtime.inspection.calibration import require

    normal = len(labels) - sum(labels)
    needs_normal = (options.criterion == "fpr" and options.threshold is None) or (
        normal and options.pixel_threshold is None
    )
    if labels and needs_normal:
        require(normal)
    if options.criterion != "fpr" and options.threshold is None and not 0 < normal < len(labels):
        raise UserError("labelled images must be of both kinds, normal and anomalous. Add those that are missing.")


def _thresholds(
    options: argparse.Namespace, model: "Predictor", labelled: "Labelled"
) -> "tuple[Threshold, Threshold | None, np.ndarray]":
    """Returns the thresholds of image scores and of maps, and the scores of the normal images; prints the thresholds.

    Raises:
        UserError: An image cannot be read, or there are too few.
    """
    import numpy as np
    from tqdm import tqdm

    from afclip_runtime.images.picture import say
    from afclip_runtime.inspection.calibration import fixed, from_labels, from_normals
    from afclip_runtime.inspection.pixel_tail import PixelTail

    anomalous = np.array([label for _, label in labelled], dtype=bool)
    scores = np.zeros(len(labelled))
    tail = PixelTail(int((~anomalous).sum()), options.pixel_fpr)
    stream = model.stream([path for path, _ in labelled], options.num_workers, keep_images=False)
    for index, outcome in tqdm(stream, total=len(labelled), unit=" images", disable=None):
        if isinstance(outcome, UserError):
            raise outcome
        scores[index] = outcome.score
        if not anomalous[index]:
            tail.add(outcome.inspected)
    for sentence in say(model.remarks):
        print(f"note: {sentence}", file=sys.stderr)
    normal = scores[~anomalous]
    if options.threshold is not None:
        image = fixed(options.threshold, normal)
    elif options.criterion == "fpr":
        image = from_normals(normal, options.fpr)
    else:
        image = from_labels(scores, anomalous, options.criterion)
    pixel = tail.threshold() if len(normal) and options.pixel_threshold is None else None
    if options.pixel_threshold is not None:
        pixel = fixed(options.pixel_threshold, np.array(tail.medians))
    print("image score:", said_of(image))
    if anomalous.any():
        found, false = (is_anomalous(part, image.value) for part in (scores[anomalous], normal))
        counts = f"{found.sum()} of {found.size} anomalous images and {false.sum()} of {false.size} normal ones"
        print(f"  above it lie {counts}")
    if pixel:
        print("map:        ", said_of(pixel))
    return image, pixel, normal


def said_of(threshold: "Threshold") -> str:
    """Returns a threshold in words: how it came about, and how far to trust it."""
    how = {
        "quantile": "quantile of {n} normal images",
        "tail_fit": "tail fitted to {n} normal images, which are few for this rate",
        "few": "prediction limit of a normal distribution, of {n} normal images",
        "pixel_quantile": "quantile of the pixels of {n} normal images",
        "f1": "best F1 on {n} labelled images",
        "balanced": "best balanced accuracy on {n} labelled images",
        "fixed": "fixed by hand",
    }[threshold.method].format(n=threshold.n)
    text = f"threshold {threshold.value:.4g}, {how}"
    if threshold.fpr is not None:
        text += f"; share of normal ones above it: {threshold.fpr:.3g}"
    if threshold.interval is not None:
        low, high = threshold.interval
        text += f"\n  it lies between {low:.4g} and {high:.4g} with a confidence of {threshold.confidence:.0%}"
    return text


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} calibrate", description=DESCRIPTION)
    parser.add_argument("--normal", type=Path, metavar="DIR", help="normal images")
    parser.add_argument(
        "--labelled",
        type=Path,
        metavar="DIR|CSV",
        help="labelled images: folders, of which those named good are normal; or a table with path and label, 0 or 1",
    )
    parser.add_argument(
        "--criterion",
        choices=("fpr", "f1", "balanced"),
        default="fpr",
        help="what chooses the threshold (%(default)s)",
    )
    parser.add_argument("--fpr", type=finite, default=0.01, metavar="SHARE", help="of normal images (%(default)s)")
    parser.add_argument(
        "--pixel_fpr", type=finite, default=0.001, metavar="SHARE", help="of their pixels (%(default)s)"
    )
    parser.add_argument("--threshold", type=finite, metavar="X", help="of image scores, fixed by hand")
    parser.add_argument("--pixel_threshold", type=finite, metavar="X", help="of the values of maps, fixed by hand")
    parser.add_argument(
        "--product", metavar="NAME", help="what the calibration is for, and is called by; --category by default"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="beside the checkpoint by default")
    parser.add_argument("--overwrite", action="store_true", help="take the place of a calibration that is there")
    add_model_options(parser)
    return parser
