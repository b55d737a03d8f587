"""`python -m afclip_lightning features`: store the features of a frozen backbone on disk."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afclip_lightning.backbones.store_files import check_files, check_store, info, prune
from afclip_lightning.cli.model_options import split_model_arguments
from afclip_runtime.cli.launch_options import add_launch_options, check_launch_options, where_of
from afclip_runtime.cli.parser import CommandParser, command, numeric
from afclip_runtime.errors import PROGRAM, UserError
from afclip_runtime.launch import require_launcher, signals
from afclip_runtime.types import in_pixels

if TYPE_CHECKING:
    from afclip_lightning.engine.feature_chunks import Images
    from afclip_lightning.engine.feature_sources import SourceOptions

PLACE = 12
COUNT = numeric(int, lambda count: count >= 1, "at least 1")
DAYS = numeric(float, lambda days: days >= 0, "0 or more")  # -1 would remove all files
DESCRIPTION = """\
Features of a frozen backbone, one file per tapped layer and image, for --features.cache of fit, validate and test.

  build --config FILE --features.cache DIR ...   compute the missing features; options as for fit, and --launcher
  info DIR                                       list the contents: backbones, taps, sizes
  verify DIR                                     read every file and compare its checksum; exit code 1 if one is damaged
  prune DIR [--key KEY] [--days N] [--damaged]   remove features: of one backbone or tap, not read for N days, damaged

A run computes missing features by itself. `build` computes them without training or testing. A stopped build resumes,
and several may run at once.
"""

BUILD_DESCRIPTION = """\
Computes the features that fit with the same options would read, for its training and test images, and stores them in
DIR. All other options are those of fit: python -m afclip_lightning fit --help

With --launcher, workers share the images by chunks of about 500. Each worker uses one device and loads the backbone
once; --trainer.devices, num_nodes and strategy are ignored. A worker or the command may be killed at any time: the same
command continues with the remaining chunks. Existing features of an image are not computed again. On the same kind of
device and with the same batch_size, the files are equal to those of one process, byte for byte. Copies of an image may
differ by rounding.

With --images, the images come from these sources and not from datasets. Features are stored by the content of an image
file, so a dataset that is unpacked later finds them. The options of fit are then limited to --config (one file, whose
model is used), --model.KEY, --features.cache, --features.dtype, --trainer.precision and --trainer.accelerator.
"""


def build(args: Sequence[str]) -> int:
    """Computes the features that a run with these options would read, and returns the exit code."""
    parser = _build_parser()
    if {"--help", "-h"} & set(args):
        parser.print_help()
        return 0
    options, rest = parser.parse_known_args(args)
    if not any(arg.split("=")[0] == "--features.cache" for arg in rest):
        raise UserError("Say where the features go: --features.cache DIR.")
    check_launch_options(options)
    if options.launcher is None and not options.images and options.jobs != 1:
        raise UserError("--jobs needs a launcher: add --launcher local.")
    signals.listen()  # before the slow imports: an unhandled signal would end the process
    from afclip_lightning.engine import app

    if options.launcher is None and not options.images:
        from afclip_lightning.engine.feature_build import FeatureBuildCLI

        return app.main(["fit", *rest], FeatureBuildCLI)
    from afclip_lightning.engine.feature_chunks import build_chunks, images_of_run

    load: Callable[[bool], Images] = partial(images_of_run, ["fit", *rest])
    if options.images:
        from afclip_lightning.engine.feature_sources import images_of_sources

        others, arguments = split_model_arguments(rest)
        load = partial(images_of_sources, _source_options(others, options), arguments)
    where = where_of(options, "features build", args)
    require_launcher(where)
    where = replace(where, command=[*where.command, "--task"])
    return app.main([], lambda _: build_chunks(load, where, options.task))


def _build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        f"{PROGRAM} features build",
        usage=f"{PROGRAM} features build --config FILE --features.cache DIR [--images SOURCE ...] [--launcher X] ...",
        description=BUILD_DESCRIPTION,
        allow_abbrev=False,
    )
    _add_build_options(parser)
    return parser


def _add_build_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `fit` does not have."""
    add_launch_options(parser, "chunks", optional=True)
    images = parser.add_argument_group("images that are in no dataset")
    images.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="SOURCE",
        help="compute the features of these images instead: folders, patterns, image files, tar archives (WebDataset), "
        "Parquet files with the bytes or the paths of images, and URLs of them",
    )
    images.add_argument("--image_column", metavar="NAME", help="column of the images in Parquet files")
    images.add_argument("--batch_size", type=COUNT, default=8, metavar="N", help="images per batch; 8 by default")
    images.add_argument("--num_workers", type=COUNT, default=2, metavar="N", help="decoder threads; 2 by default")
    parser.add_argument("--task", action="store_true", help=argparse.SUPPRESS)  # set by SLURM tasks of a build


def _source_options(args: Sequence[str], options: argparse.Namespace) -> "SourceOptions":
    """Returns the options of fit that `--images` needs.

    Raises:
        UserError: An option has no effect with `--images`.
    """
    from afclip_lightning.engine.feature_sources import SourceOptions

    parser = CommandParser(f"{PROGRAM} features build", allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--features.cache", dest="cache", type=Path, required=True)
    parser.add_argument("--features.dtype", dest="dtype", choices=["float16", "float32"], default="float16")
    parser.add_argument("--trainer.precision", dest="precision", default="32-true")
    parser.add_argument("--trainer.accelerator", dest="accelerator", default="auto")
    of_fit = vars(parser.parse_args(args))
    own = {name: getattr(options, name) for name in ("image_column", "batch_size", "num_workers")}
    return SourceOptions(tuple(options.images), **of_fit, **own)


@command()
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 1 something is damaged, 2 a mistake that is explained."""
    if args and args[0] == "build":
        return build(args[1:])
    options = _parser().parse_args(args)
    root: Path = options.root
    if options.verb == "info":
        entries = info(root)
        print(json.dumps(entries, indent=2) if options.json else _render(entries))
    elif options.verb == "verify":
        check_store(root)
        total = damaged = 0
        for count, problems in check_files(root):
            total, damaged = total + count, damaged + len(problems)
            if problems:
                print("\n".join(problems), flush=True)
        print(f"{total} files, {damaged} damaged.")
        return 1 if damaged else 0
    else:
        count, size = prune(root, options.key, options.days, options.damaged)
        print(f"Removed {count} files, {size / 1e9:.2f} GB.")
    return 0


def _render(entries: list[dict[str, Any]]) -> str:
    lines = []
    for entry in entries:
        spec = entry["spec"]
        size = sum(tap["bytes"] for tap in entry["taps"].values())
        lines.append(f"{entry['key']}  {size / 1e9:.2f} GB")
        lines.append(f"    {spec['model']} ({spec['weights_hash']}), {in_pixels(spec['image_size'])}")
        lines.append(f"    computed in {spec['compute']}, kept in {spec['dtype']}")
        lines += [f"    {name}: {tap['images']} images" for name, tap in entry["taps"].items()]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} features", description=DESCRIPTION)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{build,info,verify,prune}")
    _add_build_options(verbs.add_parser("build"))  # its other options are those of fit: `build` above reads them
    for name in ("info", "verify", "prune"):
        verb = verbs.add_parser(name)
        verb.add_argument("root", type=Path, metavar="DIR", help="folder of the store")
        if name == "info":
            verb.add_argument("--json", action="store_true", help="print JSON")
        if name == "prune":
            verb.add_argument("--key", help="features of this backbone, as `info` names it, or KEY/TAP")
            verb.add_argument("--days", type=DAYS, help="files that were not read for this number of days")
            verb.add_argument("--damaged", action="store_true", help="damaged files")
    return parser
