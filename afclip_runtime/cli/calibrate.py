"""`python -m afclip_runtime calibrate`: a threshold from normal images, with a bundle."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from afclip_runtime.cli.options import RUNTIME, add_bundle_options, bundle_of, load_bundle, progress
from afclip_runtime.cli.parser import CommandParser, command, finite, rate
from afclip_runtime.errors import UserError
from afclip_runtime.thresholds import is_anomalous

if TYPE_CHECKING:
    import numpy as np

    from afclip_runtime.inspection.calibration import Threshold
    from afclip_runtime.inspection.copies import Labelled
    from afclip_runtime.inspection.inspector import Inspector

    Load = Callable[[Sequence[Path]], Inspector]

PLACE = 40
STRAY = "Name the folder of normal images with its option: --normal DIR"
FROM_NORMALS = """\
From normal images alone (--normal): the threshold that a share --fpr of normal images will exceed. If this share is
at least 10 images, the threshold is a quantile. With fewer images, the tail of their scores is fitted. The printed
interval shows the uncertainty. It is wide if there are few images.
"""
OF_MAPS = """\
A share --pixel_fpr of the pixels of normal images will exceed the pixel threshold.

Never calibrate on images on which you report results: results on these images would not be valid.
"""
DESCRIPTION = f"""\
Chooses the image threshold and the pixel threshold, and writes them into the bundle (model.PRODUCT.calibration.json;
model.calibration.json without --product). inspect and serve prefer them to the exported ones. They hold for this bundle
and these options. For a float32 bundle they hold on every engine, for an INT8 bundle only on the engine of the
calibration, since engines round INT8 differently.
With --roi the calibration contains the region of interest. inspect and serve use it, and reject another one.

{FROM_NORMALS}\
By hand: --threshold.
{OF_MAPS}"""


@command()
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 2 a mistake that the message explains."""
    from afclip_runtime.inspection.bundle import CALIBRATION, read_card

    options = _parser().parse_args(args)
    folder = bundle_of(options)
    product = options.product or read_card(folder).category
    labelled = normal_images(options.normal)
    if not labelled and options.threshold is None:
        raise UserError("name normal images (--normal), or a --threshold.")
    place = place_of_calibration(options, folder / CALIBRATION, product)
    calibrate(options, labelled, place, product, lambda images: load_bundle(folder, options, None, images))
    return 0


def calibrate(options: argparse.Namespace, labelled: "Labelled", place: Path, product: str, load: "Load") -> None:
    """Chooses the thresholds of a model and writes them.

    Args:
        options: Options of the command.
        labelled: Images with their labels: whether the image is anomalous.
        place: File to write.
        product: Product of the calibration.
        load: Function that loads the model for these images, without a calibration.

    Raises:
        UserError: There are too few images, one cannot be read, or an option is out of its range.
    """
    from afclip_runtime.inspection.calibration import Calibration, origin
    from afclip_runtime.inspection.copies import without_copies
    from afclip_runtime.inspection.drift import keep

    labelled = without_copies(labelled, options.few_shot_dir)
    _check_enough(options, [label for _, label in labelled])
    model = load([path for path, _ in labelled])
    image, pixel, normal = _thresholds(options, model, labelled)
    made = origin(product, str(options.normal or options.labelled or ""), len(labelled))
    Calibration(image, pixel, model.checkpoint, model.settings, made, keep(normal), model.roi).save(place)
    print(f"{place}\nNever report results on the images that a threshold was calibrated on.")


def normal_images(folder: Path | None) -> "Labelled":
    """Returns the images of a folder of normal images, and prints notes on other files.

    Without a folder there are none.

    Raises:
        UserError: The folder does not exist or has no image.
    """
    from afclip_runtime.images.find import require_images, say_others, survey

    if folder is None:
        return []
    found = survey(folder)
    for sentence in [*found.problems.values(), *filter(None, [say_others(found.others)])]:
        print(f"note: {sentence}", file=sys.stderr)
    require_images(found.images, folder, "the folder of normal images")
    return [(path, False) for path in found.images]


def place_of_calibration(options: argparse.Namespace, beside: Path | None, product: str) -> Path:
    """Returns the path at which to write the calibration.

    Args:
        options: Options of the command.
        beside: Path of the calibration of the product without a name; `None` if the model is not a file.
        product: Product of the calibration.

    Raises:
        UserError: A calibration exists there, or nothing can be written there.
    """
    from afclip_runtime.files import check_writable
    from afclip_runtime.inspection.calibration import Calibration, place_of

    place: Path | None = options.out
    if place is None:
        if beside is None:
            raise UserError("the model is not a file, so the calibration has no default path: give --out FILE.")
        place = place_of(beside, product)
    if place.exists() and not options.overwrite:
        try:
            there = str(Calibration.read(place))
        except UserError:
            there = "something else"
        raise UserError(f"{place} already exists ({there}). Name another --product, or --overwrite it.")
    check_writable(place)
    return place


def _check_enough(options: argparse.Namespace, labels: Sequence[bool]) -> None:
    """Checks that there are enough images, before a model is loaded.

    Raises:
        UserError: There are too few.
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
    options: argparse.Namespace, model: "Inspector", labelled: "Labelled"
) -> "tuple[Threshold, Threshold | None, np.ndarray]":
    """Returns the image threshold, the pixel threshold and the scores of normal images. Prints the thresholds.

    Raises:
        UserError: An image cannot be read, or there are too few.
    """
    import numpy as np

    from afclip_runtime.images.picture import say
    from afclip_runtime.inspection.calibration import fixed, from_labels, from_normals
    from afclip_runtime.inspection.pixel_tail import PixelTail

    anomalous = np.array([label for _, label in labelled], dtype=bool)
    scores = np.zeros(len(labelled))
    tail = PixelTail(int((~anomalous).sum()), options.pixel_fpr)
    stream = model.stream([path for path, _ in labelled], options.num_workers, keep_images=False)
    for index, outcome in progress(stream, len(labelled)):
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
    print("image score:", threshold_text(image))
    if anomalous.any():
        found, false = (is_anomalous(part, image.value) for part in (scores[anomalous], normal))
        counts = f"{found.sum()} of {found.size} anomalous images and {false.sum()} of {false.size} normal images"
        print(f"  above it: {counts}")
    if pixel:
        print("map:        ", threshold_text(pixel))
    return image, pixel, normal


def threshold_text(threshold: "Threshold") -> str:
    """Returns a threshold in words: how it was chosen, and its uncertainty."""
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
        text += f"; false-positive rate: {threshold.fpr:.3g}"
    if threshold.interval is not None:
        low, high = threshold.interval
        text += f"\n  {threshold.confidence:.0%} confidence interval: {low:.4g} to {high:.4g}"
    return text


def add_choice_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the thresholds and of the calibration file."""
    parser.add_argument(
        "--fpr",
        type=rate,
        default=0.01,
        metavar="SHARE",
        help="false-positive rate of the image threshold on normal images (%(default)s)",
    )
    parser.add_argument(
        "--pixel_fpr",
        type=rate,
        default=0.001,
        metavar="SHARE",
        help="false-positive rate of the pixel threshold on the pixels of normal images (%(default)s)",
    )
    parser.add_argument("--threshold", type=finite, metavar="X", help="image threshold, fixed by hand")
    parser.add_argument("--pixel_threshold", type=finite, metavar="X", help="pixel threshold, fixed by hand")
    parser.add_argument(
        "--product", metavar="NAME", help="product of the calibration, which names its file; by default the category"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file of the calibration; by default next to the model"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a calibration that exists")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{RUNTIME} calibrate", stray=STRAY, description=DESCRIPTION)
    parser.add_argument("--normal", type=Path, metavar="DIR", help="normal images")
    add_choice_options(parser)
    add_bundle_options(parser)
    parser.set_defaults(criterion="fpr", labelled=None, few_shot_dir=None)
    return parser
