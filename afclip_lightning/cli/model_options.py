"""Options of the commands that take a trained head or training-free methods, and the models that they name."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from afclip_runtime.errors import PROGRAM, UserError
from afclip_runtime.files import parse_yaml
from afclip_runtime.types import Fit, Tiling

if TYPE_CHECKING:
    from afclip_lightning.backbones.clip import ClipBackbone
    from afclip_lightning.inspection.predictor import Predictor

MODEL_PREFIX = "--model."
TOY = (
    "the backbone is the tiny CLIP that comes with this package. It has seen drawn pictures only, to try things out: "
    "its scores of photos mean nothing."
)
DEFAULT = "the head's default thresholds, which know nothing of your product: calibrate on normal images of it"


def add_model_options(parser: argparse.ArgumentParser, few_shot: bool = True, category: bool = True) -> None:
    """Adds the options that say which model it is, and how it sees images.

    Args:
        parser: Of the command.
        few_shot: Whether the command takes few-shot images as such.
        category: Whether it is for one product.
    """
    model = parser.add_argument_group("model")
    add_model_names(model)
    model.add_argument("--model.KEY", metavar="VALUE", help="an argument of the method, as in fit and test")
    if category:
        model.add_argument(
            "--category", default="object", metavar="CLASS_NAME", help="the product, for prompts (%(default)s)"
        )
    if few_shot:
        model.add_argument("--few_shot_dir", type=Path, metavar="DIR", help="few-shot images: a folder of normal ones")
    model.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 …; a GPU if there is one by default")
    model.add_argument("--batch_size", type=int, default=8, metavar="N", help="views per batch (%(default)s)")
    model.add_argument("--num_workers", type=int, default=2, metavar="N", help="threads that decode (%(default)s)")
    view = parser.add_argument_group("how images are seen")
    view.add_argument(
        "--fit",
        choices=get_args(Fit),
        default="squash",
        help="an image of another shape than the model's input, often a square: squashed, padded, or in tiles",
    )
    view.add_argument(
        "--tiles", type=int, default=1, metavar="N", help="beside the whole, tiles: N along the shorter side"
    )
    view.add_argument("--tile_size", type=int, metavar="PX", help="or tiles of this side, in pixels of the image")
    view.add_argument(
        "--overlap", type=float, default=0.25, metavar="SHARE", help="of neighbouring tiles, at least (%(default)s)"
    )
    view.add_argument(
        "--white",
        metavar="auto|bits|N",
        help="what is white in images of more than 8 bits: bits, the most that the file's depth holds; auto, the most "
        "that the bits hold which the images use; N up to 16, of so many bits (12 for a 12-bit camera); N above, that "
        "value. That of the calibration by default, else bits",
    )
    view.add_argument(
        "--roi",
        type=Path,
        metavar="FILE",
        help="region of interest: the part of the images that is inspected, as polygons (.json, also of LabelMe) or a "
        "picture, white on black; docs/roi.md. That of the calibration by default, else the whole image",
    )


def add_model_names(group: argparse._ArgumentGroup) -> None:
    """Adds the two options that name a model: a ready one, or a head of one's own."""
    group.add_argument("--model", metavar="NAME", help="a model that comes ready; head show NAME says what it is")
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="or head.ckpt as fit writes it, a head file, the folder of one, or a config that trains nothing",
    )


def named_model(options: argparse.Namespace) -> str | None:
    """Returns the file of the ready model that `--model` names, or what `--checkpoint` names; `None` for neither.

    Raises:
        UserError: There is no such ready model, or both are given.
    """
    given: str | None = options.checkpoint
    if options.model is None:
        return given
    if given is not None:
        raise UserError("--model names a ready model and --checkpoint a head of your own: give one of them.")
    from afclip_lightning.heads import ready

    if options.model not in ready.names():
        from afclip_lightning.engine.factory import methods

        if options.model in methods():
            raise UserError(
                f"--model names a ready model, and {options.model} is a method: --checkpoint {options.model} names it."
            )
    return str(ready.path_of(options.model))


def no_model(verb: str, rest: str = "", others: str = "") -> UserError:
    """Returns the error of a command that was given no model: which come ready, and what to type.

    Args:
        verb: The command.
        rest: Its other arguments.
        others: Further ways to name one, for the message.
    """
    from afclip_lightning.heads import ready

    found = ready.names()
    example = f"\nType: {PROGRAM} {verb} --model {found[0]} {rest}".rstrip() if found else ""
    return UserError(
        f"name a model: --model NAME, one that comes ready; --checkpoint FILE, a head of your own{others}.\n"
        f"{ready.offer()}{example}"
    )


def white_of(options: argparse.Namespace, images: Sequence[Path]) -> "int | Literal['bits'] | None":
    """Returns the white level that the options name, looked up in the images for `auto`; `None` if they name none.

    Raises:
        UserError: It is no level, or there is no image to look it up in.
    """
    if options.white is None:
        return None
    from afclip_runtime.images.white import white_from_text, white_value

    try:
        level = white_from_text(options.white)
    except ValueError as error:
        raise UserError(f"--white: {error}.") from error
    if level == "auto" and not images:
        raise UserError("--white auto is looked up in images, and there are none here: give bits or a number.")
    return white_value(level, images) or "bits"


def add_calibration_options(group: argparse._ArgumentGroup) -> None:
    """Adds the options that say which calibration it is."""
    group.add_argument(
        "--calibration",
        metavar="PRODUCT|FILE",
        help="by default that of --category, or the only one beside the checkpoint, if any",
    )
    group.add_argument("--no_calibration", action="store_true", help="take no calibration")


def split_model_arguments(args: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Returns the other arguments of a command line, and those of the method, `--model.KEY VALUE`, by key.

    Raises:
        UserError: One has no value.
    """
    others: list[str] = []
    found: dict[str, Any] = {}
    rest = iter(args)
    for arg in rest:
        if not arg.startswith(MODEL_PREFIX):
            others.append(arg)
            continue
        name, equals, value = arg.partition("=")
        if not equals:
            value = next(rest, "--")
        if not equals and value.startswith("--"):
            raise UserError(f"{name} needs a value.")
        found[name.removeprefix(MODEL_PREFIX)] = parse_yaml(value, Any, name, remedy="Quote the value.")  # type: ignore[arg-type]
    return others, found


def tiling_of(options: argparse.Namespace) -> Tiling:
    """Returns how images are seen.

    Raises:
        UserError: A value is out of its range.
    """
    try:
        return Tiling(options.fit, options.tiles, options.tile_size, options.overlap)
    except ValueError as error:
        raise UserError(f"{error}.") from error


def progress(items: Iterable[Any], total: int) -> Iterable[Any]:
    """Returns what a loop over images goes over, and shows on a terminal how far it is."""
    from tqdm import tqdm

    return tqdm(items, total=total, unit=" images", disable=None)


def few_shot_images(folder: Path | None) -> list[Path]:
    """Returns the images of `--few_shot_dir`; none where it is not given.

    Raises:
        UserError: The folder has no image.
    """
    if folder is None:
        return []
    from afclip_runtime.images.find import walk_images

    if not (found := walk_images(folder)):
        raise UserError(f"{folder}, the folder of few-shot images, has no image.")
    return found


def load_models(
    paths: Sequence[str],
    options: argparse.Namespace,
    arguments: dict[str, Any],
    calibration: str | None = "auto",
    images: Sequence[Path] = (),
) -> "dict[str, Predictor]":
    """Returns models by name, that of their class, which share backbones.

    Args:
        paths: As `load` takes them, at least one.
        options: From `add_model_options`.
        arguments: From `split_model_arguments`.
        calibration: As `load` takes it.
        images: Those that are to be seen, for a white level that is looked up in them.

    Raises:
        UserError: A model cannot be loaded, or an option is out of its range.
    """
    from afclip_lightning.inspection.predictor import load
    from afclip_runtime.inspection.calibration import ANY_PRODUCT

    if options.batch_size < 1 or options.num_workers < 0:
        raise UserError(
            f"--batch_size must be at least 1 and --num_workers not negative, got {options.batch_size} and "
            f"{options.num_workers}."
        )
    tiling, few_shot = tiling_of(options), few_shot_images(options.few_shot_dir)
    white = white_of(options, images)
    backbones: dict[str, ClipBackbone] = {}
    models: dict[str, Predictor] = {}
    for path in paths:
        model = load(
            path,
            arguments=arguments,
            device=options.device,
            tiling=tiling,
            category=options.category,
            few_shot=few_shot,
            calibration=calibration,
            white=white,
            roi=options.roi,
            batch_size=options.batch_size,
            backbones=backbones,
        )
        name = type(model.method).__name__
        models[name if name not in models else f"{name}_{len(models) + 1}"] = model
    if any(model.is_toy for model in models.values()):
        print(f"warning: {TOY}", file=sys.stderr)
    naming = [name for name, model in models.items() if model.method.needs_class_name]
    if naming and options.category == ANY_PRODUCT:
        print(
            f"note: {', '.join(naming)}: prompts call the product {ANY_PRODUCT!r}; --category names it.",
            file=sys.stderr,
        )
    return models


def thresholds_of(model: "Predictor") -> str:
    """Returns in words where the thresholds of a model come from."""
    image, pixel = (value is not None for value in (model.threshold, model.pixel_threshold))
    by_hand = {(True, True): "both", (True, False): "that of the score", (False, True): "that of the map"}
    said = f"; {by_hand[image, pixel]} given by hand" if image or pixel else ""
    if model.calibration is not None:
        return f"thresholds of {model.calibrated_by or 'a calibration'} ({model.calibration}){said}"
    if model.defaults is not None:
        return f"{DEFAULT}{said}"
    if model.card is not None and model.card.thresholds is not None and not said:
        return (
            "no calibration, and so no verdict: the head's default thresholds hold for whole images, without few-shot "
            "images and other arguments"
        )
    return f"no calibration{said or ': no verdict, and the colours of each picture are its own'}"
