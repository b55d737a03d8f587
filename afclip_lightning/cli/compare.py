"""`python -m afclip_lightning compare`: test whether one run is significantly better than another."""

import argparse
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from afclip_runtime.cli.parser import CommandParser, command, numeric
from afclip_runtime.errors import PROGRAM, UserError, shown
from afclip_runtime.files import only_writer, write_json, write_text

if TYPE_CHECKING:
    from afclip_lightning.benchmark.comparison import Comparison
    from afclip_lightning.benchmark.recorded import Group

PLACE = 33
REPLICATES = numeric(int, lambda count: 100 <= count <= 1_000_000, "from 100 to 1000000")
SEED = numeric(int, lambda seed: 0 <= seed < 2**32, f"from 0 to {2**32 - 1}")
DESCRIPTION = """\
Compares test runs on the same images. For each metric of each category and for the means, it gives the differences to
the first run, with 95 % intervals and p-values of the paired bootstrap. It adds DeLong's test for the image AUROC, and
over 6 or more categories or datasets the signed-rank test with Holm's correction, and mean ranks with their critical
difference.

All runs are resampled in the same way. Pixel metrics need runs that counted their pixels: test with
--evaluation.intervals 1000. NAME=RUN,RUN,... are runs of one method with several seeds. Their mean is compared, and its
interval covers the variation over images and seeds. docs/compare.md explains the output.
"""


@command()
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 2 a mistake that the message explains."""
    options = _parser().parse_args(args)
    named = [_named(argument) for argument in options.runs]
    if len(named) < 2:
        raise UserError(f"{options.runs[0]} alone cannot be compared. Name two runs or more.")

    # imports torch, which --help does not need
    from afclip_lightning.benchmark import comparison, comparison_tables, render
    from afclip_lightning.benchmark.recorded import Group, on_the_same_images, read_recorded

    groups = [Group(name, tuple(map(read_recorded, paths))) for name, paths in _unique(named)]
    groups = on_the_same_images(groups)
    found = comparison.compare(groups, options.replicates, options.seed)
    if not found.methods[0].values:
        reason = " ".join(found.notes) or "No category has both normal and anomalous images."
        raise UserError(f"There is nothing to compare. {reason}")
    said = [*comparison_tables.explained(found), *_remarks(groups)]
    text = "\n\n".join(
        [
            f"# Comparison of {', '.join(shown(group.name) for group in groups)}",
            *said,
            *(render.markdown(grid, True) for grid in comparison_tables.tables(found)),
        ]
    )
    print(text)
    if options.out is not None:
        with only_writer(options.out):
            _write(options.out, found, text)
    return 0


def _write(out: Path, found: "Comparison", text: str) -> None:
    """Writes the tables of a comparison and the diagrams of mean ranks, and prints their paths."""
    from afclip_lightning.benchmark import comparison_tables, render

    write_text(out / "comparison.csv", comparison_tables.to_csv(found))
    write_json(out / "comparison.json", comparison_tables.to_json(found))
    write_text(out / "comparison.tex", render.latex(comparison_tables.tables(found)))
    diagrams = []
    if find_spec("matplotlib"):
        from afclip_lightning.benchmark import rank_diagram

        diagrams = [rank_diagram.write(ranked, out) for ranked in found.ranked]
    pictures = [f"![{svg.stem}]({svg.name})" for svg, _ in diagrams]
    write_text(out / "comparison.md", "\n\n".join([text, *pictures]) + "\n")
    print(f"\nTables: {shown(out / 'comparison.md')}, .csv, .json, .tex")
    if diagrams:
        print(f"Mean ranks: {shown(out / 'ranks_*.svg')}, .png")
    elif found.ranked:
        print("Mean ranks are drawn by matplotlib, which is not installed: pip install 'afclip_lightning[plots]'")


def _named(argument: str) -> tuple[str, list[Path]]:
    """Returns the name that an argument gives to its runs, empty if it gives none, and the runs."""
    name, equals, rest = argument.partition("=")
    if not equals or Path(argument).exists():
        return "", [Path(argument)]
    if not name or not name.isprintable():
        raise UserError(f"{argument}: write a method of several runs as NAME=RUN,RUN.")
    paths = [Path(path) for path in ([rest] if rest and Path(rest).exists() else rest.split(",")) if path]
    if not paths:
        raise UserError(f"{argument}: names no run. Write NAME=RUN,RUN.")
    return name, paths


def _unique(named: Sequence[tuple[str, list[Path]]]) -> list[tuple[str, list[Path]]]:
    """Returns unique names of the methods. A run without a name gets that of its folder, or its path if necessary.

    Raises:
        UserError: Two methods were given the same name.
    """
    short = [name or paths[0].name or str(paths[0]) for name, paths in named]
    counts = Counter(short)
    names = [s if n or counts[s] == 1 else str(paths[0]) for s, (n, paths) in zip(short, named, strict=True)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{twice[0]} stands for two methods. Give each a name of its own: NAME=RUN.")
    return [(name, paths) for name, (_, paths) in zip(names, named, strict=True)]


def _remarks(groups: "Sequence[Group]") -> list[str]:
    """Returns notes on the runs."""
    runs = [run for group in groups for run in group.runs]
    lines = []
    if without := [shown(run.path) for run in runs if not run.has_pixels]:
        lines.append(
            f"Image metrics only: {', '.join(without)} did not count pixels. Test with --evaluation.intervals 1000 to "
            "compare pixel metrics as well."
        )
    sizes = dict.fromkeys(run.size for run in runs)
    if len(sizes) > 1:
        lines.append(
            f"Pixels were evaluated at different sizes: {' and '.join(sizes)}. Defects are not the same there."
        )
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} compare", description=DESCRIPTION)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folder, or a table in it such as results_x.json; NAME=RUN,RUN for runs of one method",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of comparison.md, .csv, .json, .tex and the rank diagrams"
    )
    parser.add_argument(
        "--replicates",
        type=REPLICATES,
        default=1000,
        metavar="N",
        help="number of bootstrap samples of the images (%(default)s)",
    )
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="seed of the samples (%(default)s)")
    return parser
