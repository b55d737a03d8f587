"""`python -m afclip_lightning head`: show, pack, import and fuse trained heads."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from afclip_lightning.cli.model_options import split_model_arguments
from afclip_runtime.cli.options import progress
from afclip_runtime.cli.parser import CommandParser, command
from afclip_runtime.errors import PROGRAM, UserError, shown, typed

PLACE = 44
DESCRIPTION = """\
show: prints the card of a head: method, backbone, training data, results, its own thresholds, limits, licence.

pack: writes a checkpoint as a head file: safetensors with a checksum, and a card in its metadata. A head file can be
used wherever head.ckpt can. --card names a YAML file with the facts that only you know. Every entry is optional:

  title: a line
  trained_on: [{dataset: mvtec, categories: [bottle, cable], images: 1725, licence: CC BY-NC-SA 4.0}]
  seeds: [0]
  epochs: 2
  results: [{dataset: visa, metrics: {image_auroc: 0.881, pixel_auroc: 0.958}, spread: {image_auroc: 0.004}, note: ...}]
  thresholds: {chosen: how and on what, image: {value: 0.52, scale: 0.01}, pixel: {value: 0.4, scale: 0.05}}
  limits: [a sentence each]
  licence: of the head
  sources: [papers, code and data that it is based on]

import: writes a head that was trained by another project's code as a head file, and prints what was read and what was
assumed. docs/heads.md lists the projects. A file is recognised by its tensors, and no code in it is run. No file states
its backbone: that of the paper's code is assumed. --model.KEY VALUE names another backbone or another argument. Test
the result like any head: afclip test --config configs/METHOD_visa.yaml --checkpoint HEAD.safetensors

fuse: makes one head from several heads on one backbone. It averages their scores, each in standard deviations from its
scores of normal images. The folders of --normal hold these images, one product or category per folder: images of your
own product, or of the training set of the heads, but never test images. The result needs none of their files:

  afclip head fuse a/head.ckpt b/head.ckpt rarity.yaml CLIP --normal normal/bolts --out fusion.safetensors
  afclip inspect --checkpoint fusion.safetensors IMAGES

A config describes a method that trains nothing. A method given only by name, such as CLIP, is built on the backbone of
the first head, with the paper's layers at the same relative depth.
--model.backbone.KEY VALUE is passed to all heads. --model.weights '[2, 1, 1]' weights the heads, in the commands that
use the result.
"""


@command()
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 2 a mistake that the message explains."""
    args, arguments = split_model_arguments(args)
    options = _parser().parse_args(args)
    if arguments and options.run not in (_import, _fuse):
        raise UserError(f"--model.{next(iter(arguments))} is only an option of head import and head fuse.")
    options.arguments = arguments
    return int(options.run(options))


def _show(options: argparse.Namespace) -> int:
    from afclip_lightning.heads.show import describe, facts

    print(json.dumps(facts(options.head), indent=2) if options.json else describe(options.head))
    return 0


def _pack(options: argparse.Namespace) -> int:
    from afclip_lightning.heads.card import read_card
    from afclip_lightning.heads.pack import pack

    card = None if options.card is None else read_card(options.card)
    pack(options.checkpoint, options.out, card)
    size = options.out.stat().st_size / 2**20
    print(f"{options.out}: {size:.2f} MB. {typed('head', 'show', options.out)} says what it is.")
    return 0


def _import(options: argparse.Namespace) -> int:
    from afclip_lightning.heads.card import read_card
    from afclip_lightning.heads.foreign import in_lines
    from afclip_lightning.heads.importing import import_head

    card = None if options.card is None else read_card(options.card)
    done = import_head(options.file, options.out, options.method, options.arguments, card)
    print(f"{shown(options.file)}:\n{in_lines(done.says)}")
    size = done.out.stat().st_size / 2**20
    print(f"{shown(done.out)}: {size:.2f} MB. {typed('head', 'show', done.out)} says what it is.")
    return 0


def _fuse(options: argparse.Namespace) -> int:
    from afclip_lightning.inspection.fuse import fuse
    from afclip_runtime.images.find import require_images, survey

    normal = []
    for folder in options.normal:
        found = survey(folder)
        for sentence in found.problems.values():
            print(f"note: {sentence}", file=sys.stderr)
        require_images(found.images, folder, "a folder of normal images")
        normal.append(found.images)
    fuse(options.heads, normal, options.out, progress, options.arguments, options.category, options.device)
    size, count = options.out.stat().st_size / 2**20, sum(map(len, normal))
    print(f"{shown(options.out)}: {len(options.heads)} heads, scales of {count} normal images, {size:.2f} MB.")
    print(f"Type: {typed('inspect', '--checkpoint', options.out, 'IMAGES')}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} head", description=DESCRIPTION)
    verbs = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=CommandParser)
    show = verbs.add_parser("show", help="show the card of a head")
    show.add_argument("head", metavar="FILE|NAME", help="a head, the folder of a run, or the name of a ready model")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(run=_show)
    pack = verbs.add_parser("pack", help="write a checkpoint as a head file")
    pack.add_argument("checkpoint", metavar="FILE", help="head.ckpt as fit writes it, or a head file")
    pack.add_argument("--out", type=Path, required=True, metavar="FILE", help="the head file, .safetensors")
    pack.add_argument("--card", type=Path, metavar="YAML", help="file of the card; by default that of the checkpoint")
    pack.set_defaults(run=_pack)
    imported = verbs.add_parser("import", help="write a head that another project's code trained as a head file")
    imported.add_argument(
        "file", type=Path, metavar="FILE", help="file as that code wrote it; of two files, either one"
    )
    imported.add_argument(
        "--method", metavar="NAME", help="expected method of the head; by default the method that it is found to be"
    )
    imported.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="head file of the output; by default FILE.safetensors in the working directory",
    )
    imported.add_argument("--card", type=Path, metavar="YAML", help="file of the card: what is known of the training")
    imported.add_argument(
        "--model.KEY", metavar="VALUE", help="argument of the method that differs from that code, as in fit and test"
    )
    imported.set_defaults(run=_import)
    fused = verbs.add_parser("fuse", help="fuse several heads on one backbone into one head")
    fused.add_argument("heads", nargs="+", metavar="FILE|NAME", help="heads, folders of runs, ready models, methods")
    fused.add_argument(
        "--normal", type=Path, nargs="+", required=True, metavar="DIR", help="folder of normal images per product"
    )
    fused.add_argument("--out", type=Path, required=True, metavar="FILE", help="the head file, .safetensors")
    fused.add_argument("--category", default="object", metavar="NAME", help="name of the product in prompts (object)")
    fused.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 …, or auto: a GPU if there is one")
    fused.add_argument("--model.KEY", metavar="VALUE", help="an argument of all heads, as in inspect")
    fused.set_defaults(run=_fuse)
    return parser
