"""Options of the commands that use a trained head or training-free methods, and the models that they name."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afclip_runtime.cli.options import (
    GRAPH_ENGINES,
    TOY,
    add_batch_options,
    add_engine_options,
    add_view_options,
    check_batch_options,
    load_bundle,
    tiling_of,
    white_of,
)
from afclip_runtime.cli.parser import OptionGroup
from afclip_runtime.errors import PROGRAM, UserError, shown
from afclip_runtime.files import parse_yaml

if TYPE_CHECKING:
    from afclip_lightning.backbones.clip import ClipBackbone
    from afclip_lightning.inspection.predictor import Predictor
    from afclip_runtime.inspection.inspector import Inspector

MODEL_PREFIX = "--model."


def add_model_options(
    parser: argparse.ArgumentParser,
    few_shot: bool = True,
    category: bool = True,
    engine: bool = False,
    roi: bool = True,
) -> None:
    """Adds the options that select the model and the view of images.

    Args:
        parser: Parser of the command.
        few_shot: Whether the command takes few-shot images.
        category: Whether the command is for one product.
        engine: Whether the command also takes bundles, which other engines run.
        roi: Whether the command takes a region of interest.
    """
    model = parser.add_argument_group("model")
    add_model_names(model)
    model.add_argument("--model.KEY", metavar="VALUE", help="an argument of the method, as in fit and test")
    if category:
        model.add_argument(
            "--category", default="object", metavar="CLASS_NAME", help="name of the product in prompts (%(default)s)"
        )
    if few_shot:
        model.add_argument("--few_shot_dir", type=Path, metavar="DIR", help="folder of normal images for few-shot")
    model.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 …; by default a GPU if there is one")
    if engine:
        add_engine_options(model, ("torch", *GRAPH_ENGINES))
    add_batch_options(model)
    add_view_options(parser, roi)


def add_model_names(group: OptionGroup) -> None:
    """Adds the two options that name a model: a ready one, or your own head."""
    group.add_argument("--model", metavar="NAME", help="a ready model; head show NAME describes it")
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="head.ckpt as fit writes it, a head file, the folder of one, a config that trains nothing, or a bundle "
        "that export wrote (for inspect, calibrate and serve)",
    )


def named_model(options: argparse.Namespace) -> str | None:
    """Returns the file of the ready model of `--model`, or the value of `--checkpoint`; `None` without both.

    Raises:
        UserError: The ready model does not exist, or both options are given.
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
                f"--model names a ready model, and {options.model} is a method: use --checkpoint {options.model}."
            )
    return str(ready.path_of(options.model))


def no_model(verb: str, rest: str = "", others: str = "") -> UserError:
    """Returns the error of a command without a model. It lists the ready models and an example.

    Args:
        verb: The command.
        rest: Other arguments of the command.
        others: Further ways to name a model, for the message.
    """
    from afclip_lightning.heads import ready

    found = ready.names()
    example = f"\nType: {PROGRAM} {verb} --model {found[0]} {rest}".rstrip() if found else ""
    return UserError(
        f"name a model: --model NAME, one that comes ready; --checkpoint FILE, a head of your own{others}.\n"
        f"{ready.offer()}{example}"
    )


def split_model_arguments(args: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Returns the other arguments of a command line, and those of the method, `--model.KEY VALUE`, by key.

    Raises:
        UserError: An argument of the method has no value.
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


def few_shot_images(folder: Path | None) -> list[Path]:
    """Returns the images of `--few_shot_dir`; none without the option.

    Raises:
        UserError: The folder does not exist or has no image.
    """
    if folder is None:
        return []
    from afclip_runtime.images.find import require_images, walk_images

    found = walk_images(folder)
    require_images(found, folder, "the folder of few-shot images")
    return found


def load_models(
    paths: Sequence[str],
    options: argparse.Namespace,
    arguments: dict[str, Any],
    calibration: str | None = "auto",
    images: Sequence[Path] = (),
) -> "dict[str, Inspector]":
    """Returns models by the name of their class. They share backbones.

    Args:
        paths: Names of models as for `load`, or bundles; at least one.
        options: Options of `add_model_options`, with `engine`.
        arguments: Result of `split_model_arguments`.
        calibration: Calibration as for `load`.
        images: Images to be inspected, for a white level that is derived from them.

    Raises:
        UserError: A model cannot be loaded, or an option is out of its range.
    """
    from afclip_runtime.inspection.bundle import is_bundle

    check_batch_options(options)
    backbones: dict[str, ClipBackbone] = {}
    models: dict[str, Inspector] = {}
    heads: dict[str, Predictor] = {}
    for path in paths:
        if is_bundle(Path(path)):
            _check_bundle_options(path, options, arguments)
            model: Inspector = load_bundle(Path(path), options, calibration, images)
            models[_free_name(model, models)] = model
        else:
            head = _load_head(path, options, arguments, calibration, images, backbones)
            name = _free_name(head, models)
            models[name] = heads[name] = head
    _warn(heads, options)
    return models


def _free_name(model: "Inspector", models: "dict[str, Inspector]") -> str:
    name = model.engine.method
    return name if name not in models else f"{name}_{len(models) + 1}"


def _warn(heads: "dict[str, Predictor]", options: argparse.Namespace) -> None:
    """Prints the notes that users need before they trust the scores of heads."""
    from afclip_runtime.inspection.calibration import ANY_PRODUCT

    if any(head.is_toy for head in heads.values()):
        print(f"warning: {TOY}", file=sys.stderr)
    naming = [name for name, head in heads.items() if head.method.needs_class_name]
    if naming and options.category == ANY_PRODUCT:
        print(
            f"note: {', '.join(naming)}: prompts call the product {ANY_PRODUCT!r}; --category names it.",
            file=sys.stderr,
        )


def _load_head(
    path: str,
    options: argparse.Namespace,
    arguments: dict[str, Any],
    calibration: str | None,
    images: Sequence[Path],
    backbones: "dict[str, ClipBackbone]",
) -> "Predictor":
    """Returns a model that torch runs; see `load_models`."""
    if options.engine in GRAPH_ENGINES:
        raise UserError(
            f"--engine {options.engine} runs bundles, and {shown(path)} is not one. Export one: {PROGRAM} export "
            f"--checkpoint {shown(path)} --to bundle --out DIR; then name it: --checkpoint DIR."
        )
    import torch

    from afclip_lightning.inspection.predictor import load

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return load(
        path,
        arguments=arguments,
        device=options.device,
        tiling=tiling_of(options),
        category=options.category,
        few_shot=few_shot_images(options.few_shot_dir),
        calibration=calibration,
        white=white_of(options, images),
        roi=options.roi,
        batch_size=options.batch_size,
        backbones=backbones,
    )


def _check_bundle_options(path: str, options: argparse.Namespace, arguments: dict[str, Any]) -> None:
    """Raises if options do not work with a bundle, because its graph fixes their values.

    Raises:
        UserError: There is such an option. The message names the first one.
    """
    from afclip_runtime.inspection.bundle import read_card
    from afclip_runtime.inspection.calibration import ANY_PRODUCT

    fixed = [f"--model.{name}" for name in arguments]
    fixed += ["--few_shot_dir"] if options.few_shot_dir is not None else []
    fixed += ["--category"] if options.category not in (ANY_PRODUCT, read_card(Path(path)).category) else []
    fixed += ["--device"] if options.device not in ("auto", "cpu") else []
    if fixed:
        raise UserError(
            f"{fixed[0]} does not go with {shown(path)}: a bundle runs on the CPU, and method, category and few-shot "
            "images are in its graph. Name the head itself, or export another bundle."
        )
