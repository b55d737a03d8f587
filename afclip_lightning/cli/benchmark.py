"""`python -m afclip_lightning benchmark`: methods × datasets × seeds, and their tables."""

import argparse
import json
import math
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from afclip_lightning.benchmark.matrix import Cell, Matrix, Plan, load_matrix, plan
from afclip_lightning.benchmark.published import Published, check_names, load_published
from afclip_lightning.benchmark.runner import LOG, State, run_cells
from afclip_lightning.benchmark.table import TABLE, Measurement, assemble
from afclip_runtime.cli.launch_options import add_launch_options, where_of
from afclip_runtime.cli.parser import CommandParser, command, numeric
from afclip_runtime.errors import PROGRAM, shown
from afclip_runtime.files import write_text
from afclip_runtime.launch import Where, require_launcher
from afclip_runtime.launch.signals import STOPPED, Asked

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

PLACE = 32
SECONDS = numeric(float, lambda seconds: 0 < seconds < math.inf, "a number of seconds above 0")
DESCRIPTION = """\
Runs the unfinished cells of a matrix: each method is fitted once per training set and seed, and tested on all test sets
and shots. It writes one table, results.csv, and renders it as Markdown, LaTeX and plots beside the published numbers.

A training set may be a list of sets that are trained on together. --leave_one_out A,B,C gives a table with one row per
set that was left out, and their mean.

A failed cell is reported with its log and does not affect the others. --retry runs it again. A stopped command resumes.
Several commands may run at once on one folder and share the work. The exit code is 75 if cells are left, because a
signal stopped the command or another process runs them. `commands.sh` in the folder of a cell repeats it.
A file of experiments/ is an example of a matrix.
"""


@command()
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 1 a cell failed, 2 a mistake, 75 cells left, 130 Ctrl-C."""
    options = _parser().parse_args(args)
    try:
        with _interruptible():
            changes = options.changes
            if options.leave_one_out:
                changes = [*changes, "transfers=[]", f"leave_one_out={json.dumps(options.leave_one_out)}"]
            matrix = load_matrix(options.config, changes)
            published = load_published(None if matrix.published is None else Path(matrix.published))
            check_names(matrix, published)
            out: Path = options.out or Path("runs") / options.config[-1].stem
            where = where_of(options, "benchmark", args, drop=("--retry",))
            require_launcher(where)
            return _run(matrix, published, plan(matrix, out), out, where, options)
    except KeyboardInterrupt as stop:
        return _code(stop)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turns the signals that end a job into an interrupt like Ctrl-C, so that the table is written and workers end."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for number in heard:  # the rest is short and ends the workers: no second signal may disturb it
            signal.signal(number, signal.SIG_IGN)
        raise Asked

    heard = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_DFL]  # none that nohup ignores
    for number in heard:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_DFL)


def _code(stop: KeyboardInterrupt) -> int:
    return STOPPED if isinstance(stop, Asked) else 130


def _run(
    matrix: Matrix, published: list[Published], todo: Plan, out: Path, where: Where, options: argparse.Namespace
) -> int:
    print(f"{len(todo.cells)} cells in {out}", flush=True)
    if todo.missing:
        print(f"Not on disk and left out: {', '.join(todo.missing)}", flush=True)
    todo.refuse_copies()
    outcomes: dict[str, State] = {}
    start = time.monotonic()

    def report(cell: Cell, outcome: State) -> None:
        outcomes[cell.name] = outcome
        log = f"; log: {cell.folder / LOG}" if outcome.status == "failed" else ""
        seconds = f"{time.monotonic() - start:.0f} s" if outcome.ran else "before"
        text = shown(f"{_STATUS[outcome.status]}{f': {outcome.error}' if outcome.error else ''}{log}")
        print(f"[{len(outcomes)}/{len(todo.cells)}, {seconds}] {cell.name}: {text}", flush=True)

    stop = None
    try:
        run_cells(
            todo.cells,
            where=where,
            folder=out,
            retry=options.retry,
            time_limit=options.time_limit,
            report=report,
        )
    except KeyboardInterrupt as interrupt:
        stop = interrupt
    rows, damaged = assemble(out, todo.cells)
    wanted = {f"{cell.name}/{step.name}" for cell in todo.cells for step in cell.steps}
    counts = Counter(outcome.status for outcome in outcomes.values())
    state = [f"{counts['done']} of {len(todo.cells)} cells are done."]
    failed = [(n, o.error) for n, o in outcomes.items() if o.status == "failed"]
    state += [f"Failed, to be run again with --retry: {name}: {shown(error)}" for name, error in failed]
    state += [f"Being run by another process: {name}" for name, o in outcomes.items() if o.status == "elsewhere"]
    state += [f"Left out of the table: {shown(message)}" for message in damaged]
    left = stop is not None or counts["elsewhere"] + counts["stopped"] > 0
    if left:
        state.append(
            f"{'Stopped' if stop or counts['stopped'] else 'Not complete'}: the same command goes on from here."
        )
    tables = _render(
        [row for row in rows if row.cell in wanted],
        matrix,
        published,
        out,
        [*state, *(f"Not on disk: {place}" for place in todo.missing)],
    )
    print("\n".join(["", "\n\n".join(tables), "", *state, f"Tables: {out / 'tables.md'}, {out / TABLE}.csv"]))
    if stop is not None:
        return _code(stop)
    return 1 if failed or damaged else STOPPED if left else 0


def _render(
    rows: Sequence[Measurement], matrix: Matrix, published: list[Published], out: Path, state: Sequence[str]
) -> list[str]:
    """Writes the tables and plots, and returns the measured results as Markdown."""
    from afclip_lightning.benchmark import render, uncertainty
    from afclip_lightning.benchmark.leave_one_out import leave_one_out_table

    results = render.measured(rows, matrix)
    uncertain = uncertainty.uncertainties(rows, out / "cells")
    if uncertain:
        write_text(out / "intervals.csv", uncertainty.to_csv(uncertain))
    own = [*leave_one_out_table(rows, matrix), *render.own_tables(rows, matrix, uncertain)]
    papers = render.paper_tables(results, published)
    texts = [render.markdown(grid) for grid in own]
    lines = ["# Benchmark", "", *(f"- {line}" for line in state)]
    backbones = dict.fromkeys((row.method, row.backbone) for row in rows)
    lines += ["", "Backbones:", "", *(f"- {method}: {backbone}" for method, backbone in backbones)]
    lines += ["", "In percent; mean ± standard deviation over seeds; – where nothing was measured or published."]
    if find_spec("matplotlib"):
        from afclip_lightning.benchmark.plots import plot

        lines += ["", *(f"![{path.stem}](plots/{path.name})" for path in plot(results, published, out / "plots"))]
    write_text(out / "tables.md", "\n\n".join(["\n".join(lines), *texts, *map(render.markdown, papers)]) + "\n")
    write_text(out / "tables.tex", render.latex([*own, *papers]))
    return texts


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} benchmark", description=DESCRIPTION)
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="file of the matrix; a later file overrides an earlier one",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the benchmark; runs/<config> by default")
    parser.add_argument(
        "--leave_one_out",
        type=lambda text: [name.strip() for name in text.split(",")],
        metavar="A,B,C",
        help="test on each of these datasets of the matrix in turn, with heads that are fitted on all the others "
        "together, instead of its transfers",
    )
    parser.add_argument("--retry", action="store_true", help="run again what failed before or is damaged")
    parser.add_argument("--time_limit", type=SECONDS, metavar="SECONDS", help="end a cell that takes longer")
    add_launch_options(parser, "cells")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="changes to the matrix, like 'seeds=[0,1]'")
    return parser


_STATUS = {"done": "done", "failed": "FAILED", "elsewhere": "another process has it", "stopped": "stopped"}
