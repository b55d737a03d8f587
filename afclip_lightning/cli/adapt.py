"""`python -m afclip_lightning adapt`: a model of one product, from normal images of it alone."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afclip_lightning.cli.model_options import add_model_options, named_model, no_model, split_model_arguments
from afclip_runtime.cli.calibrate import normal_images, threshold_text
from afclip_runtime.cli.options import TOY, progress, tiling_of, white_of
from afclip_runtime.cli.parser import CommandParser, command, numeric, rate
from afclip_runtime.errors import PROGRAM, UserError, shown, typed

PLACE = 40
DESCRIPTION = """\
Makes a model of one product from 4 or more normal images of it, and nothing else. It writes into the folder --out:

  head.safetensors        the head, and a memory of the images' features (the images are no longer needed)
  head.calibration.json   thresholds of the image score and of the map; its product is --category or the folder's name

inspect, serve and export use the folder directly: --checkpoint DIR.

The model is a ready one (--model), a trained zero-shot head (--checkpoint), or a method that trains nothing
(--checkpoint NearestNeighbours --model.backbone.… ). A zero-shot head is combined with the memory. A head
that finds defects in the normal images counts less.
Each image is also scored by a memory without it and a few others. These scores give the threshold that a share --fpr of
normal images will exceed. The command prints the lowest rate that so many images support, and names images that look
unlike the others: if they are anomalous, remove them and adapt again.

--fit_head trains the head further on anomalies drawn onto the normal images. experiments/adapt says when this helps.
Each image is then also scored by a head that was trained without it.

With tiles, another category or another --fit than the default, give the same options to the other commands.
An interrupted run leaves no incomplete model. The same command starts over, and takes minutes.
"""


@command("Stopped. The same command begins again.")
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 2 a mistake that the message explains, 130 interrupted."""
    others, arguments = split_model_arguments(args)
    return _run(_parser().parse_args(others), arguments)


def _run(options: argparse.Namespace, arguments: dict[str, Any]) -> int:
    if not (named := named_model(options)):
        raise no_model("adapt", "--normal DIR --out DIR", "; or a method that trains nothing")
    from afclip_lightning.inspection.adapt import Seen, adapt, recipe_of
    from afclip_lightning.inspection.few_normals import promise
    from afclip_runtime.files import only_writer

    normal = _normal_images(options.normal)
    white = white_of(options, normal)
    seen = Seen(tiling_of(options), options.category, options.device, options.batch_size, options.num_workers, white)
    if (options.out / "head.safetensors").exists() and not options.overwrite:
        raise UserError(f"{options.out} has a model already. Name another --out, or --overwrite it.")
    recipe = recipe_of(named, arguments)
    fit_seed = options.seed if options.fit_head else None
    with only_writer(options.out):
        made = adapt(recipe, normal, options.out, seen, options.fpr, options.pixel_fpr, progress, fit_seed)
    if made.is_toy:
        print(f"warning: {TOY}", file=sys.stderr)
    median = sorted(made.scores)[len(made.scores) // 2]
    for index in made.unlike:
        print(
            f"note: {shown(normal[index])} looks unlike the other normal images: its score is "
            f"{made.scores[index]:.3g}, the median {median:.3g}. If it is anomalous, remove it and adapt again.",
            file=sys.stderr,
        )
    print("image score:", threshold_text(made.image))
    print("map:        ", threshold_text(made.pixel))
    print(promise(len(normal), options.fpr))
    print(f"{made.head.parent}: {len(normal)} normal images, {made.head.stat().st_size / 2**20:.1f} MB")
    print(f"Type: {typed('inspect', '--checkpoint', options.out, 'IMAGES')}")
    return 0


def _normal_images(folder: Path) -> list[Path]:
    """Returns the normal images of a folder without repeats, and prints notes on images to leave out.

    Raises:
        UserError: The folder does not exist or has no image, or an image cannot be read.
    """
    from afclip_lightning.data.images import upright_shape
    from afclip_runtime.inspection.copies import without_copies

    normal = [path for path, _ in without_copies(normal_images(folder), None)]
    shapes = {path: upright_shape(path) for path in normal}
    ratios = {path: width / height for path, (height, width) in shapes.items()}
    low, high = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    if ratios[high] > 1.1 * ratios[low]:
        (h, w), (other_h, other_w) = shapes[low], shapes[high]
        print(
            f"note: the normal images have different shapes: {shown(low)} is {w} × {h} pixels, {shown(high)} "
            f"{other_w} × {other_h}. A memory expects equal views: give images of one camera.",
            file=sys.stderr,
        )
    return normal


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} adapt", description=DESCRIPTION)
    parser.add_argument("--normal", type=Path, required=True, metavar="DIR", help="normal images of the product")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the model")
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
    parser.add_argument(
        "--fit_head", action="store_true", help="train the head further on anomalies drawn onto the normal images"
    )
    parser.add_argument(
        "--seed",
        type=numeric(int, lambda value: value >= 0, "0 or above"),
        default=0,
        metavar="N",
        help="seed of the anomalies of --fit_head (%(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model that exists")
    add_model_options(parser, few_shot=False, roi=False)
    return parser
