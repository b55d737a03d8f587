"""Images per second of the engines on one machine, side by side: torch eager in float32, and bundles on each engine.

    python -m experiments.deployment.throughput HEAD BUNDLE … --threads 2 --batches 1 8 --rounds 7

All engines are open at once and take turns, one batch each. Reported are the least seconds per image over the rounds,
since other load on the machine only adds to them, and their ratio to torch's, by the clock and by processor time.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from afclip_lightning import load
from afclip_runtime.inspection.bundle import installed_engines, open_bundle

Run = Callable[[np.ndarray], object]


def open_engines(head: Path, bundles: list[Path], threads: int) -> dict[str, Run]:
    """Returns functions that score a batch of views, by engine and precision of the bundle."""
    torch.set_num_threads(threads)
    runs: dict[str, Run] = {"torch float32": load(head, device="cpu", calibration=None).engine.score}
    for folder in bundles:
        for engine in installed_engines():
            model = open_bundle(folder, engine=engine, threads=threads, calibration=None)
            runs[f"{engine} {model.card.precision}"] = model.engine.score
    return runs


def measure(runs: dict[str, Run], shape: tuple[int, int], batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Returns seconds per image and the speed as a multiple of torch's, by the clock and by processor time."""
    views = np.random.default_rng(0).integers(0, 256, (batch, *shape, 3), dtype=np.uint8)
    clock: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(views)
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter(), time.process_time()
            run(views)
            clock[name].append((time.perf_counter() - start[0]) / batch)
            processor[name].append((time.process_time() - start[1]) / batch)
    first = next(iter(runs))
    return {
        name: {
            "seconds_per_image": min(clock[name]),
            "times_torch": min(clock[first]) / min(clock[name]),
            "times_torch_processor": min(processor[first]) / min(processor[name]),
        }
        for name in runs
    }


def main() -> None:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("head", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    runs = open_engines(options.head, options.bundles, options.threads)
    shape = open_bundle(options.bundles[0], calibration=None).engine.frame.shape
    print(json.dumps({batch: measure(runs, shape, batch, options.rounds) for batch in options.batches}))


if __name__ == "__main__":
    main()
