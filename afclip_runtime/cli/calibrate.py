"""`python -m afclip_runtime calibrate`: a threshold from normal images, with a bundle."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from afclip_runtime.cli.options import RUNTIME, add_bundle_options, bundle_of, load_bundle, progress
from afclip_runtime.cli.parser import CommandParser, command, finite
from afclip_runtime.errors import UserError
from afclip_runtime.thresholds import is_anomalous

if TYPE_CHECKING:
    import numpy as np

    from afclip_runtime.inspection.calibration import Threshold
    from afclip_runtime.inspection.copies import Labelled
    from afclip_runtime.inspection.inspector import Inspector

    Load = Callable[[Sequence[Path]], Inspector]

PLACE = 40
FROM_NORMALS = """\
From normal images alone (--normal): the threshold that a share --fpr of normal images will exceed. Of at least 10
images it is a quantile; of fewer, the tail of their scores is fitted. The interval that is printed says how far to
trust it: from few images it is wide.
"""
OF_MAPS = """\
The threshold of the map is one that a share --pixel_fpr of the normal images' pixels will exceed.

Never calibrate on images that you report results on: what is measured on them afterwards is no measurement.
"""
DESCRIPTION = f"""\
Chooses the threshold of the image score and that of the map, and writes them into the bundle
(model.PRODUCT.calibration.json; model.calibration.json without --product), where inspect and serve find them before
those that were exported. They hold for this bundle, seen in this way; of a float32 bundle on every engine, of an INT8
bundle on the engine that they were made with: engines round INT8 differently.
With --roi it holds the region of interest too: inspect and serve take it from there, and refuse another one.

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
        options: Of the command.
        labelled: Images, and whether each is anomalous.
        place: The file that is written.
        product: What the calibration is for.
        load: Returns the model that sees these images, without a calibration.

    Raises:
        UserError: There are too few images, one cannot be read, or an option is out of its range.
    """
    from afclip_runtime.inspection.calibration import Calibration, origin
    from afclip_runtime.inspection.copies import without_copies
    from afclip_runtime.inspection.drift import keep

    if not 0 < options.fpr <= 0.5 or not 0 < options.pixel_fpr <= 0.5:
        raise UserError(
            f"--fpr and --pixel_fpr must be above 0 and at most 0.5, got {options.fpr}, {options.pixel_fpr}."
        )
    labelled = without_copies(labelled, options.few_shot_dir)
    _check_enough(options, [label for _, label in labelled])
    model = load([path for path, _ in labelled])
    image, pixel, normal = _thresholds(options, model, labelled)
    made = origin(product, str(options.normal or options.labelled or ""), len(labelled))
    Calibration(image, pixel, model.checkpoint, model.settings, made, keep(normal), model.roi).save(place)
    print(f"{place}\nNever report results on the images that a threshold was calibrated on.")


def normal_images(folder: Path | None) -> "Labelled":
    """Returns the images of a folder of normal ones, and says what else lies there; none for no folder.

    Raises:
        UserError: The folder has no image.
    """
    from afclip_runtime.images.find import say_others, survey

    if folder is None:
        return []
    found = survey(folder)
    for sentence in [*found.problems.values(), *filter(None, [say_others(found.others)])]:
        print(f"note: {sentence}", file=sys.stderr)
    if not found.images:
        raise UserError(f"{folder}, the folder of normal images, has no image.")
    return [(path, False) for path in found.images]


def place_of_calibration(options: argparse.Namespace, beside: Path | None, product: str) -> Path:
    """Returns where the calibration is to be written.

    Args:
        options: Of the command.
        beside: That of the product without name; `None` where a calibration has no place of its own.
        product: What it is for.

    Raises:
        UserError: Another one lies there, or nothing can be written there.
    """
    from afclip_runtime.files import check_writable
    from afclip_runtime.inspection.calibration import Calibration, place_of

    place: Path | None = options.out
    if place is None:
        if beside is None:
            raise UserError("the model is no file that a calibration could lie beside: give --out FILE.")
        place = place_of(beside, product)
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
    options: argparse.Namespace, model: "Inspector", labelled: "Labelled"
) -> "tuple[Threshold, Threshold | None, np.ndarray]":
    """Returns the thresholds of image scores and of maps, and the scores of the normal images; prints the thresholds.

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


def add_choice_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that choose thresholds, and say where they are written."""
    parser.add_argument(
        "--fpr",
        type=finite,
        default=0.01,
        metavar="SHARE",
        help="false-positive rate of the image threshold on normal images (%(default)s)",
    )
    parser.add_argument(
        "--pixel_fpr",
        type=finite,
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
    parser = CommandParser(f"{RUNTIME} calibrate", description=DESCRIPTION)
    parser.add_argument("--normal", type=Path, metavar="DIR", help="normal images")
    add_choice_options(parser)
    add_bundle_options(parser)
    parser.set_defaults(criterion="fpr", labelled=None, few_shot_dir=None)
    return parser
