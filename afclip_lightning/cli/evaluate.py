"""`python -m afclip_lightning evaluate`: score saved anomaly maps of any method against masks."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from afclip_lightning import results
from afclip_lightning.types import IntervalKind, ProDefinition
from afclip_runtime.cli.parser import CommandParser, command
from afclip_runtime.errors import PROGRAM, UserError, shown
from afclip_runtime.files import write_json, write_text

PLACE = 31
TABLES = (".csv", ".json")
PRO = get_args(ProDefinition)
KINDS = get_args(IntervalKind)
DESCRIPTION = """\
Scores saved anomaly maps (.npy, .tiff, .png; higher = more anomalous) against masks (any value above 0 is anomalous;
of lossy files, above half) of the same size, and prints a table. The score of an image is the maximum of its map.
Scores are ranked in the precision that they were saved in.

A map and its mask have the same relative path, and the name of the mask may end in _mask. Each folder directly below
--maps is a category, unless maps or a folder named good lie beside it: then all of --maps is one category (--layout
decides). MVTec's folders test and ground_truth are entered. A map without a mask belongs to a normal image if it lies
in a folder named good, or below one. With a file defects_config.json among the masks, as in MVTec LOCO AD, each image
has a folder of masks, and the table includes sPRO.

With --roi only pixels inside the region of interest count. The score of an image is the maximum there, and an image
whose anomalies all lie outside counts as normal.

Exit codes: 0 done; 1 done, but files that look like maps or masks were left out (they are named); 2 a mistake that the
message explains; 130 interrupted.
"""


@command()
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: see the description."""
    options = _parser().parse_args(args)
    if (options.mask_threshold or 0) < 0:
        raise UserError(f"--mask_threshold must not be negative, got {options.mask_threshold}.")
    if options.intervals and options.pro_definition != "exact":
        raise UserError(f"--intervals need the exact PRO: leave out --pro_definition {options.pro_definition}.")
    for out in options.out:
        if out.suffix not in TABLES:
            raise UserError(f"--out {out}: the name of a table ends in {' or '.join(TABLES)}.")

    from afclip_lightning.inspection.saved_maps import Rules, score  # imports torch, which `--help` does not need
    from afclip_lightning.metrics import AnomalyMetrics
    from afclip_lightning.metrics.fixed_thresholds import Rule
    from afclip_lightning.metrics.image_counts import ImageRecord
    from afclip_lightning.metrics.image_results import aupimo_by_category, type_rows, with_aupimo
    from afclip_lightning.metrics.intervals import Settings, intervals_of

    rules = Rules(options.layout, options.unmasked_are_normal, options.empty_masks, options.mask_threshold, options.roi)
    new_metrics = partial(
        AnomalyMetrics,
        exact=options.exact,
        fpr_limit=options.fpr_limit,
        pro_definition=options.pro_definition,
        tolerance=options.tolerance,
    )
    if bool(options.threshold) != bool(options.normal_maps):
        raise UserError("--threshold RULE fixes thresholds on --normal_maps DIR: give both, or neither.")
    records: dict[results.Key, list[ImageRecord]] = {}
    types: dict[str, str] | None = {} if options.defect_types else None
    try:
        settings = Settings(options.intervals, options.interval_kind) if options.intervals else None
        rule = Rule.of(options.threshold) if options.threshold else None
        kept = records if settings or options.aupimo or options.defect_types else None
        rows, notes = score(options.maps, options.masks, rules, new_metrics, kept, rule, options.normal_maps, types)
    except ValueError as error:  # an option that the metrics refuse
        raise UserError(f"{error}.") from error
    if kept is not None:
        of_categories, why_none = aupimo_by_category(records)
        rows = with_aupimo(rows, of_categories)
        notes.lines += why_none if options.aupimo else []
    rows = results.with_means(rows)
    if settings:
        found = intervals_of(records, settings, options.fpr_limit, results.fixed_thresholds(rows))
        rows = results.with_intervals(rows, found.by_row)
        notes.lines += found.notes
    by_type = type_rows(records, types or {}, options.fpr_limit)
    print(results.render(rows, options.tolerance, results.shown_columns(rows)))
    if by_type:
        print("\n".join(results.render_types(by_type, results.shown_columns(by_type))))
    for line in notes.lines:
        print(f"note: {shown(line)}", file=sys.stderr)
    for out in options.out:
        if out.suffix == ".csv":
            write_text(out, results.to_csv(rows))
            if by_type:
                write_text(out.with_name(f"{out.stem}_by_type.csv"), results.to_csv(by_type))
        else:
            title = f"Maps of {shown(options.maps)} against {shown(options.masks)}"
            of_types = {"by_type": results.to_json(by_type, title)["rows"]} if by_type else {}
            write_json(out, {**results.to_json(rows, title), **of_types, "notes": notes.lines})
    return 1 if notes.left_out else 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} evaluate", description=DESCRIPTION)
    parser.add_argument("--maps", type=Path, required=True, metavar="DIR", help="folder of the maps")
    parser.add_argument("--masks", type=Path, required=True, metavar="DIR", help="folder of the masks")
    parser.add_argument(
        "--layout",
        choices=("auto", "category", "categories"),
        default="auto",
        help="whether --maps is one category, or each folder in it is one (%(default)s)",
    )
    parser.add_argument(
        "--unmasked_are_normal", action="store_true", help="treat a map without a mask as that of a normal image"
    )
    parser.add_argument(
        "--empty_masks",
        choices=("refuse", "normal"),
        default="refuse",
        help="meaning of an empty mask outside of a folder named good: a mistake, or a normal image (%(default)s)",
    )
    parser.add_argument(
        "--mask_threshold",
        type=int,
        metavar="N",
        help="highest value of a mask that is still normal (by default 0, and half of the range in lossy files)",
    )
    parser.add_argument(
        "--roi",
        type=Path,
        metavar="FILE|DIR",
        help="region of interest as in inspect, or a folder of CATEGORY.json or .png; only pixels inside count",
    )
    parser.add_argument(
        "--threshold",
        metavar="RULE",
        help="a threshold that is fixed without labels on --normal_maps, in addition to the best one: mean+3sd, q0.99",
    )
    parser.add_argument(
        "--normal_maps",
        type=Path,
        metavar="DIR",
        help="maps of other, normal images for --threshold, one folder per category with its name",
    )
    parser.add_argument("--exact", action="store_true", help="sort all pixels instead of counting them in bins")
    parser.add_argument("--fpr_limit", type=float, default=0.3, help="limit of integration of PRO (%(default)s)")
    parser.add_argument(
        "--pro_definition",
        choices=PRO,
        default="exact",
        help="definition of PRO (%(default)s); the others need --exact",
    )
    parser.add_argument(
        "--aupimo",
        action="store_true",
        help="compute AUPIMO, as with --intervals: the recall per image at very low false-positive rates",
    )
    parser.add_argument(
        "--defect_types",
        action="store_true",
        help="add rows per defect type (the folder of a map): all normal images against those of one type",
    )
    parser.add_argument(
        "--intervals",
        type=int,
        default=0,
        metavar="N",
        help="95 %% intervals of all metrics from N samples of the images, 1000 say (none by default)",
    )
    parser.add_argument(
        "--interval_kind",
        choices=KINDS,
        default="bca",
        help="bias-corrected and accelerated, or plain quantiles of the samples (%(default)s)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=results.TOLERANCE,
        help="error of binning up to which there is no warning (%(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="also write the table to FILE.csv (and FILE_by_type.csv with --defect_types), or FILE.json, which has "
        "thresholds, error bounds and notes as well; may be given again",
    )
    return parser
