"""`python -m afclip_runtime check`: check the files of a bundle, and its scores on the installed engines."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from afclip_runtime.cli.options import RUNTIME, bundle_of
from afclip_runtime.cli.parser import CommandParser, command
from afclip_runtime.errors import UserError

PLACE = 44
DESCRIPTION = """\
Checks a bundle: the SHA-256 of each file, the version, the calibrations, and the results of each installed engine for
random images, compared with those of the exported model.

Exit codes: 0 the bundle is intact; 2 it is not, and the message says why.
"""


@command()
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 the bundle is intact, 2 it is not."""
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
    chosen_engine(None)  # raises if none is installed
    models = {name: open_bundle(folder, engine=name, calibration=None) for name in installed_engines()}
    print(f"{folder}: {card.method} on {card.backbone}, {card.precision}, category {card.category}")
    print(f"{len(sums)} files are as exported; {GRAPH} has {(folder / GRAPH).stat().st_size / 2**20:.0f} MB")
    for name, model in models.items():
        found = card.self_test.check(model.engine)
        print(
            f"{name}: differs from the exported model by at most {found:.1e}; {card.self_test.tolerance:.0e} is allowed"
        )
    print(f"exported calibration: {card.calibration or 'none'}")
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        made = Calibration.read(path)
        made.check(path, card.checkpoint, {**made.settings, "category": card.category, **card.settings})
        print(f"calibration {path.name}: {made}")
    return 0


def _problems(folder: Path, sums: dict[str, str]) -> list[str]:
    """Returns one sentence per missing or changed file of a bundle."""
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
