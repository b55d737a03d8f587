"""Runs without cost, for the worker processes: they read the option `--do` and write the files of a run."""

import errno
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from afclip_lightning.benchmark.matrix import CELL, Cell, Step
from afclip_lightning.benchmark.runner import Cells, Run, State, clear_failure, state_of
from afclip_runtime.launch.worker import run_claimed


def run(arguments: Sequence[str]) -> int:
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    folder = Path(options["--out"])
    print("out of the cell, whose loaders start by", multiprocessing.get_start_method(), flush=True)
    print("err of the cell", file=sys.stderr)
    action, _, detail = options.get("--do", "").partition(":")
    match action:
        case "exit":
            return 2
        case "raise":
            raise {"memory": MemoryError("no memory left"), "system": SystemExit(3), "value": ValueError("a bug")}[
                detail
            ]
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        case "stop":
            return 75
        case "refuse":
            os.write(2, b"error: the option \x1b[31m is none\n")  # what a test's own capture leaves alone
            return 2
        case "sleep":
            time.sleep(float(detail))
        case "full":  # until the file is there
            if not Path(detail).exists():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "last.ckpt"))
        case "once":  # fails until the file is there
            if not Path(detail).exists():
                return 2
        case "count":
            with Path(detail).open("a") as file:
                file.write(f"{folder.parent.name}\n")
            time.sleep(0.05)
    folder.mkdir(parents=True)
    value = 0.5 + len(folder.parent.name) / 1000
    rows = [{"category": name, "metrics": {"image_auroc": value}} for name in ("gear", "mean")]
    (folder / "results.json").write_text(json.dumps({"rows": [] if action == "empty" else rows}))
    (folder / "run.json").write_text(json.dumps({"backbone": "none"}))
    return 0


def cell(out: Path, name: str, *actions: str, digest: str = "1") -> Cell:
    steps = [
        Step(f"set{i}-0", (f"--do={action}", f"--out={CELL}/set{i}-0"), digest, f"set{i}")
        for i, action in enumerate(actions or ("",))
    ]
    folder = out / "cells" / name
    return Cell(name, name.partition("_")[0], "", 0, folder, {folder / "method.yaml": "{}"}, tuple(steps))


def run_here(cell: Cell, run: Run = run, retry: bool = False) -> State:
    """Runs a cell as a worker does, without a process, and returns the outcome."""
    if retry:
        clear_failure(cell)
    job = Cells([cell], run)
    unit = job.claim(())
    if unit is None:
        return state_of(cell) or State("elsewhere")
    outcome = run_claimed(job, unit)
    return State(outcome.status, outcome.error, ran=True)
