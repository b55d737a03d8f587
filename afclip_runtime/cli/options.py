"""Options of the commands that inspect images: views, thresholds and engine."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from afclip_runtime.cli.parser import OptionGroup, numeric
from afclip_runtime.errors import UserError
from afclip_runtime.types import Fit, Tiling

if TYPE_CHECKING:
    from afclip_runtime.inspection.bundle import BundleInspector
    from afclip_runtime.inspection.inspector import Inspector

RUNTIME = "python -m afclip_runtime"
"""Command of the program without torch, for messages."""

TOY = (
    "the backbone is the tiny CLIP that comes with afclip_lightning. It is for trials, trained on drawn pictures only: "
    "its scores of photos are meaningless."
)
DEFAULT = (
    "the head's default thresholds, which were not made for your product and may miss its defects: adapt or calibrate "
    "on normal images of it"
)
GRAPH_ENGINES = ("onnx", "openvino")

_threads = numeric(int, lambda value: 1 <= value <= 1024, "from 1 to 1024")


def add_bundle_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the bundle and its engine."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="folder that `export --to bundle` wrote; by default the folder of this program, or the working directory",
    )
    add_engine_options(model, GRAPH_ENGINES)
    add_batch_options(model)
    add_view_options(parser)


def add_engine_options(group: OptionGroup, engines: Sequence[str]) -> None:
    """Adds the options of the engine."""
    group.add_argument(
        "--engine",
        choices=engines,
        help="engine of the model: onnx (ONNX Runtime) and openvino run bundles, on the CPU; by default the first that "
        "is installed" + ("; torch runs the head itself" if "torch" in engines else ""),
    )
    group.add_argument(
        "--threads", type=_threads, metavar="N", help="number of threads that score a batch; by default all cores"
    )


def add_batch_options(group: OptionGroup) -> None:
    """Adds the options of batches and threads."""
    group.add_argument("--batch_size", type=int, default=8, metavar="N", help="views per batch (%(default)s)")
    group.add_argument(
        "--num_workers", type=int, default=2, metavar="N", help="number of threads that decode images (%(default)s)"
    )


def add_view_options(parser: argparse.ArgumentParser, roi: bool = True) -> None:
    """Adds the options of views.

    Args:
        parser: Parser of the command.
        roi: Whether the command takes a region of interest.
    """
    view = parser.add_argument_group("views of images; a bundle has its own defaults")
    view.add_argument(
        "--fit",
        choices=get_args(Fit),
        help="how an image with another aspect ratio than the model's input, usually a square, is seen: squashed (the "
        "default), padded, or in tiles",
    )
    view.add_argument("--tiles", type=int, metavar="N", help="also inspect tiles: N along the shorter side")
    view.add_argument(
        "--tile_size", type=int, metavar="PX", help="side of the tiles, in pixels of the image, in place of --tiles"
    )
    view.add_argument(
        "--overlap", type=float, metavar="SHARE", help=f"smallest overlap of neighbouring tiles ({Tiling().overlap})"
    )
    view.add_argument(
        "--white",
        metavar="auto|bits|N",
        help="white level of images of more than 8 bits: bits, the largest value of the file's bits; auto, the largest "
        "value of the bits that the images use; N up to 16, the largest value of N bits (12 for a 12-bit camera); N "
        "above 16, this value. By default that of the calibration, else bits",
    )
    if roi:
        view.add_argument(
            "--roi",
            type=Path,
            metavar="FILE",
            help="region of interest: the part of the images that is inspected, as polygons (.json, also of LabelMe) "
            "or a picture, white on black; docs/roi.md. By default that of the calibration, else the whole image",
        )


def add_calibration_options(group: OptionGroup) -> None:
    """Adds the options of the calibration."""
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--calibration",
        metavar="PRODUCT|FILE",
        help="calibration file; by default that of the category, or the only one next to the checkpoint or in the "
        "bundle",
    )
    which.add_argument("--no_calibration", action="store_true", help="use no calibration")


def wanted_calibration(options: argparse.Namespace) -> str | None:
    """Returns the calibration of the options, as an argument of `load` and `open_bundle`."""
    return None if options.no_calibration else options.calibration or "auto"


def check_batch_options(options: argparse.Namespace) -> None:
    """Checks the range of `--batch_size` and `--num_workers`.

    Raises:
        UserError: A number is out of its range.
    """
    if options.batch_size < 1 or options.num_workers < 0:
        raise UserError(
            f"--batch_size must be at least 1 and --num_workers not negative, got {options.batch_size} and "
            f"{options.num_workers}."
        )


def tiling_of(options: argparse.Namespace, otherwise: Tiling | None = None) -> Tiling:
    """Returns the tiling of the options.

    Args:
        options: Options of `add_view_options`.
        otherwise: Default of options that are not given. Without it, an image is squashed into the frame.

    Raises:
        UserError: A value is out of its range.
    """
    names = ("fit", "tiles", "tile_size", "overlap")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    base = otherwise or Tiling()
    if "tile_size" in given and "tiles" not in given:
        base = replace(base, tiles=1)
    elif "tiles" in given and "tile_size" not in given:
        base = replace(base, tile_size=None)
    try:
        return replace(base, **given)
    except ValueError as error:
        raise UserError(f"{error}.") from error


def white_of(options: argparse.Namespace, images: Sequence[Path]) -> "int | Literal['bits'] | None":
    """Returns the white level of the options, estimated from the images for `auto`; `None` without the option.

    Raises:
        UserError: The value is not a white level, or there is no image for `auto`.
    """
    if options.white is None:
        return None
    from afclip_runtime.images.white import white_from_text, white_value

    try:
        level = white_from_text(options.white)
    except ValueError as error:
        raise UserError(f"--white: {error}.") from error
    if level == "auto" and not images:
        raise UserError("--white auto is estimated from images, and there are none here: give bits or a number.")
    return white_value(level, images) or "bits"


def load_bundle(
    folder: Path, options: argparse.Namespace, calibration: str | None, images: Sequence[Path] = ()
) -> "BundleInspector":
    """Opens a bundle with the options of the command.

    Args:
        folder: The bundle.
        options: Options of `add_bundle_options`, or of afclip_lightning.
        calibration: See `open_bundle`.
        images: Images from which `--white auto` is estimated.

    Raises:
        UserError: See `open_bundle`; or an option is out of its range.
    """
    from afclip_runtime.inspection.bundle import open_bundle, read_card

    check_batch_options(options)
    model = open_bundle(
        folder,
        engine=options.engine,
        threads=options.threads,
        tiling=tiling_of(options, read_card(folder).tiling),
        calibration=calibration,
        white=white_of(options, images),
        roi=options.roi,
        batch_size=options.batch_size,
    )
    print(f"{model.engine.method} of {folder}, run by {model.engine.name}", file=sys.stderr)
    if model.is_toy:
        print(f"warning: {TOY}", file=sys.stderr)
    return model


def bundle_of(options: argparse.Namespace) -> Path:
    """Returns the bundle of `--bundle`, else the bundle that contains this program, else the working directory.

    Raises:
        UserError: The option is missing, and neither folder is a bundle.
    """
    from afclip_runtime.inspection.bundle import is_bundle

    if options.bundle is not None:
        return Path(options.bundle)
    for folder in (Path(__file__).parents[2], Path()):
        if is_bundle(folder):
            return folder
    raise UserError("name a bundle, --bundle DIR: a folder that `afclip export --to bundle` wrote.")


def thresholds_of(model: "Inspector") -> str:
    """Returns the source of a model's thresholds in words."""
    image, pixel = (value is not None for value in (model.threshold, model.pixel_threshold))
    by_hand = {(True, True): "both", (True, False): "image threshold", (False, True): "pixel threshold"}
    said = f"; {by_hand[image, pixel]} given by hand" if image or pixel else ""
    if model.calibration is not None:
        by_feedback = f"; {model.feedback}" if str(model.feedback or "") else ""
        return f"thresholds of {model.calibrated_by or 'a calibration'} ({model.calibration}){by_feedback}{said}"
    if model.defaults is not None:
        return f"{DEFAULT}{said}"
    if model.head_thresholds is not None and not said:
        return (
            "no calibration, and so no verdict: the head's default thresholds hold for whole images, without few-shot "
            "images and other arguments"
        )
    return f"no calibration{said or ': no verdict, and the colours of each picture are its own'}"


def progress(items: Iterable[Any], total: int) -> Iterable[Any]:
    """Returns an iterable over images that shows progress, see `progress_of`."""
    from afclip_runtime.progress import progress_of

    return progress_of(items, total=total)
