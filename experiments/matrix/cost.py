"""Measures the cost and the savings of the benchmark's machinery.

    python -m experiments.matrix.cost overhead     200 cells that do nothing
    python -m experiments.matrix.cost saving       6 methods on 3 test sets, against one process a method and test set

`saving` compares processor time too, which other work on the machine moves less than the clock.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from afclip_lightning.benchmark.matrix import CELL, Cell, Plan, Step, load_matrix, plan
from afclip_lightning.benchmark.runner import run_cells
from afclip_lightning.benchmark.table import assemble
from afclip_runtime.files import write_text

CELLS = 200
CHANGES = Path(__file__).with_name("saving.yaml")


def nothing(arguments: Sequence[str]) -> int:
    """Writes the results of a run that did nothing."""
    folder = Path(arguments[0])
    folder.mkdir(parents=True)
    rows = [{"category": "mean", "metrics": {"image_auroc": 0.5}}]
    (folder / "results.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    (folder / "run.json").write_text("{}", encoding="utf-8")
    return 0


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Returns wall-clock and processor seconds, including child processes that have ended."""

    def processor() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    start, used = time.monotonic(), processor()
    work()
    return time.monotonic() - start, processor() - used


def overhead(out: Path) -> None:
    """Prints the cost of scheduling: cells are claimed, run, recorded and put into the table."""
    cells = []
    for number in range(CELLS):
        step = Step("set-0", (f"{CELL}/set-0",), "1", "set")
        folder = out / "cells" / f"cell_{number}"
        cells.append(Cell(f"cell_{number}", "method", "", number, folder, {folder / "method.yaml": "{}"}, (step,)))
    wall, _ = timed(lambda: (run_cells(cells, run=nothing), assemble(out, cells)))
    again, _ = timed(lambda: (run_cells(cells, run=nothing), assemble(out, cells)))
    print(f"{CELLS} cells that do nothing: {wall:.1f} s; when all are finished: {again:.1f} s")


def one_by_one(todo: Plan, out: Path) -> None:
    """Runs each method on each test set as a separate command, which fits and tests."""
    for cell in todo.cells:
        for step in (step for step in cell.steps if step.dataset):
            configs = [path for path in cell.files if not path.name.startswith("data-")]
            data = {
                path.stem.removeprefix("data-"): yaml.safe_load(text)["data"]
                for path, text in cell.files.items()
                if path.name.startswith("data-")
            }
            test = data[step.dataset]
            crossed = {"class_path": "CrossDataset", "init_args": {"train": data.get(cell.train), "test": [test]}}
            for path in configs:
                write_text(path, cell.files[path])
            file = out / f"{cell.name}-{step.name}.yaml"
            write_text(file, yaml.safe_dump({"data": crossed if cell.train else test}))
            verb = ["fit", "--test_before_fit=false"] if cell.train else ["test"]
            shared = [a for a in step.arguments[1:] if not a.startswith(("--config", "--features", "--ckpt", "--out"))]
            command = [
                *verb,
                *(f"--config={path}" for path in [*configs, file]),
                *shared,
                f"--out={file.with_suffix('')}",
            ]
            done = subprocess.run([sys.executable, "-m", "afclip_lightning", *command], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr)


def saving(out: Path) -> None:
    """Prints the cost of a matrix relative to that of its methods and test sets one by one."""
    matrix = load_matrix(
        [CHANGES], [f"datasets.{name}.init_args.root={out / 'drawn'}" for name in ("train", "a", "b", "c")]
    )
    apart, together = plan(matrix, out / "apart"), plan(matrix, out / "together")
    from afclip_lightning.benchmark.probe import build

    for name, section in matrix.datasets.items():
        build(name, section).prepare_data()  # drawing is no part of either
    costs = {}
    for name, work in (
        ("together", lambda: run_cells(together.cells)),
        ("one by one", lambda: one_by_one(apart, out / "apart")),
    ):
        costs[name] = timed(work)
        print(f"{name}: {costs[name][0]:.0f} s, processor {costs[name][1]:.0f} s", flush=True)
    ratios = [costs["together"][i] / costs["one by one"][i] for i in range(2)]
    rows, damaged = assemble(out / "together", together.cells)
    assert not damaged
    assert len({(row.method, row.dataset) for row in rows}) == 18
    print(f"together over one by one: {ratios[0]:.2f} of the time, {ratios[1]:.2f} of the processor time")


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "saving"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"overhead": overhead, "saving": saving}[arguments.what](Path(folder))


if __name__ == "__main__":
    main()
