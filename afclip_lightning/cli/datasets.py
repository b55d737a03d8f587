"""`python -m afclip_lightning datasets`: list, check, show, unpack and import datasets."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afclip_runtime.cli.parser import CommandParser, command, numeric
from afclip_runtime.errors import PROGRAM, UserError, counted, shown, typed
from afclip_runtime.files import only_writer

if TYPE_CHECKING:  # `--help` does not need it
    from afclip_lightning.data.base import AnomalyDataModule
    from afclip_lightning.types import Split

PLACE = 10
THREADS = numeric(int, lambda count: 1 <= count <= 1024, "from 1 to 1024")
PER_TYPE = numeric(int, lambda count: 1 <= count <= 100, "from 1 to 100")
SEED = numeric(int, lambda seed: seed >= 0, "0 or more")
SHOWN = Path("shown")
SPLITS: tuple["Split", ...] = ("train", "test")
DESCRIPTION = """\
list      every dataset with its size, its licence and where to obtain it
check     compares a dataset on disk with the published numbers: images per category and split, files that cannot be
          read or are left out, masks that are empty, not binary, of another size or without an image, and pictures in
          both training and test; exit code 0 if nothing is wrong, 1 if something needs a look, 2 for an error
          --against NAME lists the pictures that two datasets share instead, including re-encoded ones
show      writes one HTML page and one image of a dataset: pictures of every defect type with outlined masks, images per
          category, sizes, depths, areas of defects; exit code 1 if a file could not be read (the page names it)
prepare   unpacks a download (zip, tar) to the folder that the dataset expects; it overwrites nothing, and resumes after
          an interruption
import    converts your own data, exported from an annotation tool, to a set; see import --help

NAME is a name from the list, or a class: datasets check Folder --root DIR --normal_dir good --abnormal_dir bad
Nothing here uses the network.
"""


def _render(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        counts = f"{_shown(row['test_normal'])} / {_shown(row['test_anomalous'])}"
        categories = counted(row["categories"], "category", "categories")
        lines.append(f"{row['name']} ({row['class']}): {categories}, {counts} test images")
        lines.append(f"    size     {row['size'] or 'not known'}")
        lines.append(f"    licence  {row['licence'] or 'not known'}")
        lines.append(f"    from     {row['source']}")
    return "\n".join(
        [*lines, "", "Test images are normal / anomalous, as published. Accept the terms where you get it."]
    )


def _shown(count: int | None) -> str:
    return "?" if count is None else str(count)


@command()
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 1 something is off, 2 a mistake that the message explains."""
    from afclip_lightning.data import lightning_base

    if args and args[0] == "import":
        from afclip_lightning.importers import command as importing

        lightning_base.look_at_files_only()
        return importing.run(args[1:], CommandParser)
    options, rest = _parser().parse_known_args(args)
    lightning_base.look_at_files_only()  # these imports are slow, and `--help` does not need them
    from afclip_lightning.datasets.catalogue import check, find_dataset, list_datasets

    try:
        if options.verb == "list":
            if rest:
                raise UserError(f"list takes no {rest[0]}.")
            rows = list_datasets()
            print(json.dumps(rows, indent=2) if options.json else _render(rows))
            return 0
        dataset = find_dataset(options.name, rest, options.root)
        if options.verb == "prepare":
            from afclip_lightning.data import archive

            moved = archive.prepare(dataset, options.archives)
            print(
                f"{moved} files are new in {dataset.root}.\nLicence: {dataset.licence or 'not known, see its source'}"
            )
            check(dataset, "predict")
            print(f"Next: {typed('datasets', 'check', options.name, '--root', dataset.root)}")
            return 0
        if options.verb == "show":
            return _show(dataset, options)
        if options.against:
            return _copies(dataset, _other(options), options)
        from afclip_lightning.data import doctor

        report = doctor.examine(dataset, options.threads, sys.stderr.isatty(), check)
        print(json.dumps(asdict(report), indent=2, default=str) if options.json else doctor.render(report))
        return 1 if report.problems else 0
    except BrokenPipeError:
        raise  # the command line ends without a message
    except OSError as error:  # a folder without permission to read
        raise UserError(error) from error


def _other(options: argparse.Namespace) -> "AnomalyDataModule":
    """Returns the dataset of `--against`.

    Raises:
        UserError: The dataset does not exist, or it needs a folder and none is given.
    """
    from afclip_lightning.datasets.catalogue import find_dataset

    try:
        return find_dataset(options.against, [], options.against_root)
    except UserError as error:
        hint = "" if options.against_root else " (--against_root DIR names the folder of --against)"
        raise UserError(f"{error}{hint}") from error


def _copies(dataset: "AnomalyDataModule", other: "AnomalyDataModule", options: argparse.Namespace) -> int:
    from afclip_lightning.data.copies import near_copies, same_files, told
    from afclip_lightning.datasets.catalogue import check

    images = []
    for part in (dataset, other):
        check(part, "predict")
        listed = (part.find_samples(category, split) for category in part.selected_categories() for split in SPLITS)
        images.append(part.as_read([sample for samples in listed for sample in samples]))
    first, second = images
    copies = same_files(first, second)
    known = {copy.second.image_path for copy in copies}
    rest = [sample for sample in second if sample.image_path not in known]
    copies += near_copies(first, rest, options.threads, progress=sys.stderr.isatty())
    if options.json:
        rows = [[str(copy.first.image_path), str(copy.second.image_path), copy.kind] for copy in copies]
        print(json.dumps([dict(zip(("first", "second", "kind"), row, strict=True)) for row in rows], indent=2))
    else:
        counts = f"{len(second)} images of {other.name} and {len(first)} of {dataset.name}"
        print("\n".join(filter(None, [told(copies, len(copies)), f"{counts}: {len(copies)} are shared."])))
    return 1 if copies else 0


def _show(dataset: "AnomalyDataModule", options: argparse.Namespace) -> int:
    from afclip_lightning.data.overview import look_over
    from afclip_lightning.datasets.catalogue import check
    from afclip_lightning.report import dataset_page

    name = Path(dataset.name.replace("/", "_")).name or "dataset"
    out = options.out or SHOWN / name
    if out.resolve().is_relative_to(dataset.root.resolve()):
        raise UserError(f"{out} lies in the dataset, so the sheet would become one of its images. Name another --out.")
    with only_writer(out):
        overview = look_over(
            dataset, options.per_type, options.seed, options.threads, progress=sys.stderr.isatty(), check=check
        )
        page, sheet = dataset_page.write(out, overview)
    print(f"Page:  {shown(page)}\nSheet: {shown(sheet)}")
    if overview.problems:
        print(f"Not read: {len(overview.problems)}. The page names them; `datasets check` looks at every file.")
    return 1 if overview.problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} datasets", description=DESCRIPTION)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{list,check,show,prepare,import}")
    listing = verbs.add_parser("list")
    check = verbs.add_parser("check")
    show = verbs.add_parser("show")
    prepare = verbs.add_parser("prepare")
    verbs.add_parser("import", add_help=False)  # answered by `main`: its options depend on what is imported
    for verb in (check, show, prepare):
        verb.add_argument("name", metavar="NAME", help="a dataset of the list, or a class, whose arguments are options")
        verb.add_argument(
            "--root",
            type=Path,
            metavar="DIR",
            help="folder of the dataset; by default the one in AFCLIP_DATA, or data",
        )
    for verb in (listing, check):
        verb.add_argument("--json", action="store_true", help="print JSON")
    check.add_argument("--against", metavar="NAME", help="only list the images that this dataset has as well")
    check.add_argument("--against_root", type=Path, metavar="DIR", help="folder of the dataset of --against")
    for verb in (check, show):
        verb.add_argument(
            "--threads",
            type=THREADS,
            default=os.cpu_count() or 1,
            help="number of files that are read at once (%(default)s)",
        )
    show.add_argument("--out", type=Path, metavar="DIR", help=f"folder of the output ({SHOWN}/NAME)")
    show.add_argument(
        "--per_type",
        type=PER_TYPE,
        default=6,
        metavar="N",
        help="number of pictures per defect type, and of normal images per category and split (%(default)s)",
    )
    show.add_argument(
        "--seed", type=SEED, default=0, metavar="N", help="seed of the selection of pictures (%(default)s)"
    )
    prepare.add_argument(
        "--from",
        dest="archives",
        type=Path,
        nargs="+",
        required=True,
        metavar="ARCHIVE",
        help="archive or folder that was downloaded",
    )
    return parser
