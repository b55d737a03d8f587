"""Measures the cost of the launcher: a benchmark of 200 empty cells, compared with another commit of this repository.

    python -m experiments.launcher.cost [--against COMMIT] [--rounds N]

Each round runs both commits, one after the other, each in a process of its own on a folder of its own: the 200 cells,
then the same again when all are finished. One worker claims, runs and records the cells, and the table is written. What
is printed is the median over the rounds, of the clock and of the processor, which other work on the machine moves less.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
BEFORE = "979321c"  # the last commit before benchmark and sweep had one launcher
MEASURE = """
import json, resource, sys, time
from pathlib import Path
from afclip_lightning.benchmark.matrix import CELL, Cell, Step
from afclip_lightning.benchmark.runner import run_cells
from afclip_lightning.benchmark.table import assemble
from experiments.matrix.cost import nothing


def clocks():
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.monotonic(), sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    out, seconds = Path(sys.argv[1]), []
    cells = []
    for number in range(200):
        step, folder = Step("set-0", (f"{CELL}/set-0",), "1", "set"), out / "cells" / f"cell_{number}"
        cells.append(Cell(f"cell_{number}", "method", "", number, folder, {folder / "method.yaml": "{}"}, (step,)))
    for _ in range(2):
        start = clocks()
        states = run_cells(cells, run=nothing)
        rows, damaged = assemble(out, cells)
        seconds += [end - begin for begin, end in zip(start, clocks())]
        assert len(rows) == 200 and not damaged and {state.status for state in states.values()} == {"done"}
    print(json.dumps(seconds))
"""


def measure(tree: Path, folder: Path) -> list[float]:
    """Returns seconds with the code of a tree, by the clock and of the processor: of 200 empty cells, and again."""
    script = folder / "measure.py"
    script.write_text(MEASURE, encoding="utf-8")
    with tempfile.TemporaryDirectory(dir=folder) as out:
        environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(script), out]
        done = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True, check=True)
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default=BEFORE, metavar="COMMIT", help="%(default)s")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="%(default)s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        before = Path(place) / "before"
        git = ["git", "-C", str(REPOSITORY), "worktree"]
        subprocess.run([*git, "add", "--detach", "--quiet", str(before), options.against], check=True)
        try:
            rounds = [
                [measure(tree, Path(place)) for tree in (before, REPOSITORY)]  # in turn: other work slows both alike
                for _ in range(options.rounds)
            ]
        finally:
            subprocess.run([*git, "remove", "--force", str(before)], check=True)
    works = ("200 cells that do nothing", "the same when all are finished")
    for number, what in enumerate(f"{work}, {clock}" for work in works for clock in ("clock", "processor")):
        old, new = (statistics.median(both[tree][number] for both in rounds) for tree in range(2))
        ratio = statistics.median(both[1][number] / both[0][number] for both in rounds)
        print(f"{what}: {old:.2f} s at {options.against}, {new:.2f} s now, ratio {ratio:.2f} (median of the rounds)")


if __name__ == "__main__":
    main()
