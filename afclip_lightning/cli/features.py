"""`python -m afclip_lightning features`: keep the features of a frozen backbone on disk."""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from afclip_lightning.backbones.store_files import SPEC_FILE, DamagedError, StoreFacts, feature_files, read_checked
from afclip_lightning.cli.parser import PROGRAM, CommandParser, command
from afclip_lightning.errors import UserError

PLACE = 12
DESCRIPTION = """\
Features of a frozen backbone, a file a tapped layer and image, for --features.cache of fit, validate and test.

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


def info(root: Path) -> list[dict[str, Any]]:
    """Returns what a store holds, an entry a backbone.

    Raises:
        UserError: There is no store.
    """
    folders = sorted(path.parent for path in root.glob(f"*/{SPEC_FILE}"))
    if not folders:
        raise UserError(f"{root} holds no features. Make some with `features build`, or a run with --features.cache.")
    entries = []
    for folder in folders:
        taps = {}
        for tap in sorted(path.name for path in folder.iterdir() if path.is_dir()):
            sizes = [path.stat().st_size for path in feature_files(root, folder.name, tap)]
            taps[tap] = {"images": len(sizes), "bytes": sum(sizes)}
        entries.append({"key": folder.name, "spec": asdict(StoreFacts.read(folder)), "taps": taps})
    return entries


def verify(root: Path) -> list[str]:
    """Returns what is wrong with the files of a store, a sentence each."""
    problems = []
    for path in tqdm(list(feature_files(root)), unit="image", disable=not sys.stderr.isatty()):
        try:
            read_checked(path)
        except UserError as error:  # a file that is damaged, and what is no file
            problems.append(str(error))
    return problems


def prune(root: Path, key: str | None, days: float | None, damaged: bool) -> tuple[int, int]:
    """Removes features and what killed runs left behind; returns how many files and bytes.

    Args:
        root: Folder of the store.
        key: The backbone whose features go, as `info` names it, or `KEY/TAP`.
        days: Files that no run has read for so long go.
        damaged: Whether damaged files go.

    Raises:
        UserError: No such key.
    """
    known = [entry["key"] for entry in info(root)] + [f"{e['key']}/{tap}" for e in info(root) for tap in e["taps"]]
    if key is not None and key not in known:
        raise UserError(f"{root} has no features under the key {key!r}; `features info` lists the keys.")
    oldest = time.time() - days * 86400 if days is not None else None
    doomed = []
    for path in feature_files(root):
        stat = path.stat()
        if key in (path.parts[-4], "/".join(path.parts[-4:-2])) or (
            oldest is not None and max(stat.st_atime, stat.st_mtime) < oldest
        ):
            doomed.append(path)
        elif damaged:
            try:
                read_checked(path)
            except DamagedError:
                doomed.append(path)
            except UserError:  # no file, which `verify` names
                continue
    hour = time.time() - 3600
    doomed += [
        path for path in root.glob("*/*/*/.*.tmp") if path.stat().st_mtime < hour
    ]  # younger may be in the making
    size = sum(path.stat().st_size for path in doomed)
    for path in doomed:
        path.unlink(missing_ok=True)
    if key is not None:
        shutil.rmtree(root / key)
    return len(doomed), size


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
        info(root)  # says so if there is no store
        problems = verify(root)
        total = sum(1 for _ in feature_files(root))
        print("\n".join([*problems, f"{total} files, {len(problems)} damaged."]))
        return 1 if problems else 0
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
        lines.append(f"    {spec['model']} ({spec['weights_hash']}), {spec['image_size']} px")
        lines.append(f"    computed in {spec['compute']}, kept in {spec['dtype']}")
        lines += [f"    {name}: {tap['images']} images" for name, tap in entry["taps"].items()]
    return "\n".join(lines)


def _days(text: str) -> float:
    days = float(text)
    if not days >= 0:  # every file is older than a negative number of days, and would go
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return days


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} features", description=DESCRIPTION)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{build,info,verify,prune}")
    for name in ("info", "verify", "prune"):
        verb = verbs.add_parser(name)
        verb.add_argument("root", type=Path, metavar="DIR", help="folder of the store")
        if name == "info":
            verb.add_argument("--json", action="store_true", help="print JSON")
        if name == "prune":
            verb.add_argument("--key", help="features of this backbone, as `info` names it, or KEY/TAP")
            verb.add_argument("--days", type=_days, help="files not read for so many days")
            verb.add_argument("--damaged", action="store_true", help="damaged files")
    return parser
