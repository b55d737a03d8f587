"""`python -m afclip_runtime check`: whether a bundle is whole, and the engines here give its numbers."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from afclip_runtime.cli.options import RUNTIME, bundle_of
from afclip_runtime.cli.parser import CommandParser, command
from afclip_runtime.errors import UserError

PLACE = 44
DESCRIPTION = """\
Checks a bundle: the SHA-256 of each of its files, its version, its calibrations, and what each engine that is installed
says of drawn images, beside what the exported model said of them.

Exit codes: 0 all is well; 2 something is not, which the message says.
"""


@command()
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 all is well, 2 something is not."""
    from afclip_runtime.inspection.bundle import (
        GRAPH,
        chosen_engine,
        installed_engines,
        open_bundle,
        read_card,
        read_sums,
    )
    from afclip_runtime.inspection.calibration import SUFFIX, Calibration

    folder = bundle_of(_parser().parse_args(args))
    card, sums = read_card(folder), read_sums(folder)
    if problems := _problems(folder, sums):
        raise UserError("\n".join(problems))
    chosen_engine(None)  # refuses where none is installed
    models = {name: open_bundle(folder, engine=name, calibration=None) for name in installed_engines()}
    print(f"{folder}: {card.method} on {card.backbone}, {card.precision}, category {card.category}")
    print(
        f"{len(sums)} files are those that were exported; {GRAPH} has {(folder / GRAPH).stat().st_size / 2**20:.0f} MB"
    )
    for name, model in models.items():
        found = card.self_test.check(model.engine)
        print(
            f"{name}: differs from the exported model by {found:.1e} at most; {card.self_test.tolerance:.0e} is allowed"
        )
    print(f"calibration that was exported: {card.calibration or 'none'}")
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        made = Calibration.read(path)
        made.check(path, card.checkpoint, {**made.settings, "category": card.category, **card.settings})
        print(f"calibration {path.name}: {made}")
    return 0


def _problems(folder: Path, sums: dict[str, str]) -> list[str]:
    """Returns a sentence per file of a bundle that is missing or was changed."""
    from afclip_runtime.inspection.bundle import check_sum

    found = []
    for name in sums:
        try:
            check_sum(folder, name, sums)
        except UserError as error:
            found.append(str(error))
    return found


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{RUNTIME} check", description=DESCRIPTION)
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="folder of the bundle; by default the folder of this program, or the working directory",
    )
    return parser
