"""Measures what the launcher costs: a benchmark of 200 cells that do nothing, beside another commit of this repository.

    python -m experiments.launcher.cost [--against COMMIT] [--rounds N]

Each round runs both commits, one after the other, each in a process of its own on a folder of its own: the 200 cells,
then the same again when all are finished. What is printed is the median over the rounds. The one-worker benchmark is
measured as `benchmark` runs it: cells are claimed, run, recorded and put into the table.
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
import json, sys, time
from pathlib import Path
from afclip_lightning.benchmark.matrix import CELL, Cell, Step
from afclip_lightning.benchmark.runner import run_cells
from afclip_lightning.benchmark.table import assemble
from experiments.matrix.cost import nothing

if __name__ == "__main__":
    out, seconds = Path(sys.argv[1]), []
    cells = []
    for number in range(200):
        step, folder = Step("set-0", (f"{CELL}/set-0",), "1", "set"), out / "cells" / f"cell_{number}"
        cells.append(Cell(f"cell_{number}", "method", "", number, folder, {folder / "method.yaml": "{}"}, (step,)))
    for _ in range(2):
        start = time.monotonic()
        states = run_cells(cells, run=nothing)
        rows, damaged = assemble(out, cells)
        seconds.append(time.monotonic() - start)
        assert len(rows) == 200 and not damaged and {state.status for state in states.values()} == {"done"}
    print(json.dumps(seconds))
"""


def measure(tree: Path, folder: Path) -> tuple[float, float]:
    """Returns the seconds of 200 empty cells, and of the same when all are finished, with the code of a tree."""
    script = folder / "measure.py"
    script.write_text(MEASURE, encoding="utf-8")
    with tempfile.TemporaryDirectory(dir=folder) as out:
        environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(script), out]
        done = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True, check=True)
    first, again = json.loads(done.stdout.splitlines()[-1])
    return first, again


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
    for number, what in enumerate(("200 cells that do nothing", "the same when all are finished")):
        old, new = (statistics.median(both[tree][number] for both in rounds) for tree in range(2))
        ratio = statistics.median(both[1][number] / both[0][number] for both in rounds)
        print(f"{what}: {old:.2f} s at {options.against}, {new:.2f} s now, ratio {ratio:.2f} (median of the rounds)")


if __name__ == "__main__":
    main()
