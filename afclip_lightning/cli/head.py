"""`python -m afclip_lightning head`: what a trained head says of itself, and heads as files with a card."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from afclip_lightning.cli.model_options import split_model_arguments
from afclip_lightning.cli.parser import CommandParser, command
from afclip_lightning.errors import PROGRAM, UserError, shown

PLACE = 44
DESCRIPTION = """\
show: what a head is, on which backbone, what it was trained on, what it reached, its own thresholds, limits, licence.

pack: writes a checkpoint as a head file: safetensors, its tensors with a checksum, and a card in its metadata. A head
file is taken wherever head.ckpt is. --card names a YAML file with what only you know; every entry may be left out:

  title: a line
  trained_on: [{dataset: mvtec, categories: [bottle, cable], images: 1725, licence: CC BY-NC-SA 4.0}]
  seeds: [0]
  epochs: 2
  results: [{dataset: visa, metrics: {image_auroc: 0.881, pixel_auroc: 0.958}, spread: {image_auroc: 0.004}, note: ...}]
  thresholds: {chosen: how and on what, image: {value: 0.52, scale: 0.01}, pixel: {value: 0.4, scale: 0.05}}
  limits: [a sentence each]
  licence: of the head
  sources: [papers, code and data that it rests on]

import: writes a head that another project's code trained as a head file, and says what was read and what was assumed.
docs/heads.md lists the projects; a file is known by its tensors, and nothing in it is run. No file says on which
backbone it was trained: that of the paper's code is assumed, --model.KEY VALUE names another, or another argument.
What comes of it is tested as any head: afclip test --config configs/METHOD_visa.yaml --checkpoint HEAD.safetensors
"""


@command()
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 2 a mistake that the message explains."""
    args, arguments = split_model_arguments(args)
    options = _parser().parse_args(args)
    if arguments and options.run is not _import:
        raise UserError(f"--model.{next(iter(arguments))} is an option of head import alone.")
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
    print(f"{options.out}: {size:.2f} MB. {PROGRAM} head show {options.out} says what it is.")
    return 0


def _import(options: argparse.Namespace) -> int:
    from afclip_lightning.heads.card import read_card
    from afclip_lightning.heads.foreign import in_lines
    from afclip_lightning.heads.importing import import_head

    card = None if options.card is None else read_card(options.card)
    done = import_head(options.file, options.out, options.method, options.arguments, card)
    print(f"{shown(options.file)}:\n{in_lines(done.says)}")
    size = done.out.stat().st_size / 2**20
    print(f"{shown(done.out)}: {size:.2f} MB. {PROGRAM} head show {shown(done.out)} says what it is.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} head", description=DESCRIPTION)
    verbs = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=CommandParser)
    show = verbs.add_parser("show", help="what a head says of itself")
    show.add_argument("head", metavar="FILE|NAME", help="a head, the folder of a run, or the name of a ready model")
    show.add_argument("--json", action="store_true", help="as JSON")
    show.set_defaults(run=_show)
    pack = verbs.add_parser("pack", help="a checkpoint as a head file")
    pack.add_argument("checkpoint", metavar="FILE", help="head.ckpt as fit writes it, or a head file")
    pack.add_argument("--out", type=Path, required=True, metavar="FILE", help="the head file, .safetensors")
    pack.add_argument("--card", type=Path, metavar="YAML", help="the card; that of the checkpoint by default")
    pack.set_defaults(run=_pack)
    imported = verbs.add_parser("import", help="a head that another project's code trained as a head file")
    imported.add_argument("file", type=Path, metavar="FILE", help="as that code wrote it; of two files, either")
    imported.add_argument("--method", metavar="NAME", help="what it should be a head of; by default what it is")
    imported.add_argument(
        "--out", type=Path, metavar="FILE", help="the head file; by default FILE.safetensors in the working directory"
    )
    imported.add_argument("--card", type=Path, metavar="YAML", help="what you know of it: what it was trained on")
    imported.add_argument("--model.KEY", metavar="VALUE", help="another argument than that code's, as in fit and test")
    imported.set_defaults(run=_import)
    return parser
