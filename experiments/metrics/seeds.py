"""How often intervals over images and seeds contain the true value, on simulated methods with known values.

A method is the mean of what it says of 40 images, and its runs are shifted by their seed. Seeds vary as much as
the mean of the images does, or three times as much. `docs/compare.md` shows the result of

    python -m experiments.metrics.seeds
"""

import numpy as np

from afclip_lightning.benchmark.comparison import over_runs
from afclip_lightning.metrics.intervals import Resampled, interval

IMAGES, REPLICATES, METHODS = 40, 400, 1000


def holds(rng: np.random.Generator, runs: int, spread: float, drawn: int) -> bool:
    """Returns whether the interval of one simulated method contains its true value, 0.

    Args:
        rng: Random generator.
        runs: How many seeds.
        spread: Standard deviation of the seeds, in that of the mean of the images.
        drawn: How many of the runs a sample draws.
    """
    weights = rng.multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), REPLICATES) / IMAGES
    common = rng.normal(0, 1, IMAGES)
    parts = []
    for shift in rng.normal(0, spread / IMAGES**0.5, runs):
        said = common + shift
        without = (said.sum() - said) / (IMAGES - 1)
        parts.append(Resampled(float(said.mean()), weights @ said, (without,)))
    low, high = interval(over_runs(parts, rng.integers(0, runs, (drawn, REPLICATES))))
    return low <= 0 <= high


def main() -> None:
    """Prints the share of intervals that contain the true value, in percent."""
    rng = np.random.default_rng(0)
    print("| seeds vary | runs | one fewer drawn | all drawn |\n|---:|---:|---:|---:|")
    for spread in (1, 3):
        for runs in (2, 3, 5, 10):
            shares = [np.mean([holds(rng, runs, spread, drawn) for _ in range(METHODS)]) for drawn in (runs - 1, runs)]
            print(f"| {spread} × | {runs} | " + " | ".join(f"{100 * share:.1f}" for share in shares) + " |")


if __name__ == "__main__":
    main()
