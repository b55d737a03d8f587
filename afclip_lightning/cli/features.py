"""`python -m afclip_lightning features`: keep the features of a frozen backbone on disk."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afclip_lightning.backbones.store_files import check_files, check_store, info, prune
from afclip_runtime.cli.parser import CommandParser, command, numeric
from afclip_runtime.errors import PROGRAM, UserError
from afclip_runtime.types import in_pixels

PLACE = 12
DAYS = numeric(float, lambda days: days >= 0, "0 or more")  # every file is older than -1 days, and would go
DESCRIPTION = """\
Features of a frozen backbone, one file per tapped layer and image, for --features.cache of fit, validate and test.

  build --config FILE --features.cache DIR ...   compute what is not there; options as those of fit
  info DIR                                       what lies there, of which backbone, how large
  verify DIR                                     read every file and compare its checksum; exit code 1 if one is damaged
  prune DIR [--key KEY] [--days N] [--damaged]   remove features: of one backbone or tap, not read for N days, damaged

A run makes the features that it does not find by itself; `build` makes them without training or testing. It may be
stopped and started again at any time, and several may run at once.
"""

BUILD_HELP = """\
usage: python -m afclip_lightning features build --config FILE --features.cache DIR ...

Computes the features that fit with the same options would read, and keeps them in DIR: those of the images that it
trains on and of those that it tests on. All options are those of fit: python -m afclip_lightning fit --help
"""


def build(args: Sequence[str]) -> int:
    """Computes the features that a run with these options would read, and returns the exit code."""
    if "--help" in args or "-h" in args:
        print(BUILD_HELP)
        return 0
    from afclip_lightning.engine import app
    from afclip_lightning.engine.feature_build import FeatureBuildCLI

    if not any(arg.split("=")[0] == "--features.cache" for arg in args):
        raise UserError("Say where the features go: --features.cache DIR.")
    return app.main(["fit", *args], FeatureBuildCLI)


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
    verbs.add_parser("build")  # whose options are those of fit: `build` above reads them
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
