"""`python -m afclip_lightning report`: one HTML page of a run, or of inspected images."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from afclip_lightning.report import inspections, run
from afclip_lightning.report.run import Threshold, calibrated
from afclip_lightning.report.run_files import read_run
from afclip_runtime.cli.parser import CommandParser, command, finite
from afclip_runtime.errors import PROGRAM, UserError
from afclip_runtime.files import shown, write_text

PLACE = 30
DESCRIPTION = """\
Writes one HTML page of a test run: tables by category, curves, scores, pictures of missed anomalies and false alarms;
or of the output of `inspect`: scores, and the most and the least anomalous images.
The page is self-contained: it opens from disk without a network, and can be sent to others.
"""


@command()
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 2 a mistake that the message explains."""
    options = _parser().parse_args(args)
    threshold = calibrated(options.calibration) if options.calibration else None
    if options.threshold is not None:
        threshold = Threshold(options.threshold, "given by hand")
    if (options.run / inspections.TABLE).is_file():
        if threshold:
            raise UserError(f"{options.run} has the thresholds of its inspection: leave the option out.")
        folder, page = options.run, inspections.render(options.run, options.originals)
    elif options.run.is_file() or (options.run / "results.json").is_file():
        found = read_run(options.run)
        folder, page = found.folder, run.render(found, threshold)
    else:
        fault = ": no results.json and no inspections.csv" if options.run.exists() else " does not exist"
        raise UserError(
            f"{options.run}{fault}. Name the folder that `fit` or `test` printed, runs/<config>/<time>, or the output "
            "folder of `inspect`."
        )
    out = options.out or folder / "report.html"
    write_text(out, page)
    print(f"Report: {shown(out)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} report", description=DESCRIPTION)
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="run folder, a table in it such as results_x.json, or the output folder of inspect",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file of the page; by default report.html in that folder"
    )
    parser.add_argument(
        "--originals",
        action="store_true",
        help="show inspected images without an overlay too, read from their original path; by default the page has "
        "only pictures of that folder",
    )
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument(
        "--threshold",
        type=finite,
        metavar="SCORE",
        help="images with a score above it are called anomalous; by default that of the best F1 on the test labels, "
        "category by category",
    )
    limit.add_argument("--calibration", type=Path, metavar="FILE", help="calibration file, whose threshold is used")
    return parser
