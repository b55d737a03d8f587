"""How often a 95 % interval contains the true value: intervals for random sets of images with known values.

    python experiments/metrics/coverage.py                  # images alone: seconds per row
    python experiments/metrics/coverage.py --pixels         # with maps: minutes per row

Image scores are normal, of the two kinds of images with the same spread and means apart. A pixel's score is a number of
its image, which all its pixels share, plus one of its own: the pixels of an image err together, as they do in life. The
truth is what endless images of this kind would give, from the distributions themselves.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm

from afclip_lightning.metrics import label_regions
from afclip_lightning.metrics.aupimo import FPR_BOUNDS
from afclip_lightning.metrics.image_counts import CategoryCounts, ImageRecord
from afclip_lightning.metrics.intervals import interval, resampled
from afclip_lightning.results import TITLE_OF_ALL
from afclip_lightning.types import IntervalKind

SIDE, REGION = 24, 6  # pixels; the region is a square
SHARED = 0.5  # standard deviation of what an image's pixels share; that of a pixel's own is 1
DISTANCE = 1.5  # of the means of anomalous and normal scores
THRESHOLDS = {"image": 1.0, "pixel": 1.5}  # fixed beforehand: 16 % of normal images and 9 % of normal pixels are above
SIZES = ((5, 5), (10, 10), (20, 20), (50, 50), (20, 80), (100, 100))
KINDS: tuple[IntervalKind, ...] = ("percentile", "bca")


@dataclass(frozen=True)
class Share:
    """How often the intervals of a metric contained the true value.

    Attributes:
        truth: Value for an infinite number of images.
        mean: Mean value over the sets.
        held: Coverage by kind of interval, in [0, 1].
        length: Mean length by kind of interval.
    """

    truth: float
    mean: float
    held: Mapping[IntervalKind, float]
    length: Mapping[IntervalKind, float]


def true_values(level: str, anomalous: float, spread: float = 1.0) -> dict[str, float]:
    """Returns the metrics of two normal distributions `DISTANCE` apart.

    Args:
        level: `image` or `pixel`.
        anomalous: Share of anomalous images or pixels.
        spread: Standard deviation of either.
    """
    thresholds = np.linspace(DISTANCE + 9 * spread, -9 * spread, 400_001)
    fpr, tpr = norm.sf(thresholds / spread), norm.sf((thresholds - DISTANCE) / spread)
    found, alarms = anomalous * tpr, (1 - anomalous) * fpr
    precision = found / (found + alarms)
    values = {
        "auroc": float(norm.cdf(DISTANCE / spread / np.sqrt(2))),
        "ap": float((np.diff(tpr) * (precision[1:] + precision[:-1])).sum() / 2),
        "f1_max": float((2 * found / (found + alarms + anomalous)).max()),
    }
    fpr, tpr = (float(norm.sf((THRESHOLDS[level] - mean) / spread)) for mean in (0, DISTANCE))
    found, alarms = anomalous * tpr, (1 - anomalous) * fpr
    values |= {"fixed_fpr": fpr, "fixed_tpr": tpr, "fixed_balanced_accuracy": (tpr + 1 - fpr) / 2}
    values["fixed_f1"] = 2 * found / (found + alarms + anomalous)
    if level == "pixel":  # every anomalous image has one region of the same size, whose mean overlap is the recall
        for key, limit in (("pro", 0.3), ("pro_05", 0.05)):
            rates = np.linspace(1e-9, limit, 100_001)
            values[key] = float(norm.cdf(norm.ppf(rates) + DISTANCE / spread).mean())
        rates = np.geomspace(*FPR_BOUNDS, 10_001)  # shared: that of all normal images, of which there are endless ones
        values["aupimo"] = float(norm.cdf(norm.ppf(rates) + DISTANCE / spread).mean())
    return {f"{level}_{key}": value for key, value in values.items()}


def draw(rng: np.random.Generator, normal: int, anomalous: int, pixels: bool) -> CategoryCounts:
    """Returns a set of images."""
    labels = np.repeat([0, 1], [normal, anomalous])
    scores = rng.normal(size=len(labels)) + DISTANCE * labels
    names = [f"{i:04}" for i in range(len(labels))]
    if not pixels:
        images = zip(names, labels, scores, strict=True)
        records = [ImageRecord(name, int(label), float(score), None) for name, label, score in images]
        return CategoryCounts.of(records, THRESHOLDS)
    masks = np.zeros((len(labels), SIDE, SIDE), np.uint8)
    masks[labels == 1, :REGION, :REGION] = 1
    shared = SHARED * rng.normal(size=(len(labels), 1, 1))
    maps = (rng.normal(size=masks.shape) + shared + DISTANCE * masks).astype(np.float32)
    areas = label_regions(torch.from_numpy(masks))
    images = zip(names, labels, scores, maps, areas, strict=True)
    records = [ImageRecord.of(name, int(label), float(score), *of_map) for name, label, score, *of_map in images]
    return CategoryCounts.of(records, THRESHOLDS)


def coverage(
    normal: int, anomalous: int, sets: int, replicates: int = 1000, pixels: bool = False, seed: int = 0
) -> dict[str, Share]:
    """Returns how often the intervals of each metric contain the true value.

    Args:
        normal: Normal images of a set.
        anomalous: Its anomalous images.
        sets: How many sets are drawn.
        replicates: Samples of a set's images.
        pixels: Whether images have maps.
        seed: Seed of the sets.
    """
    truth = true_values("image", anomalous / (normal + anomalous))
    if pixels:
        share = anomalous * REGION**2 / ((normal + anomalous) * SIDE**2)
        truth |= true_values("pixel", share, float(np.hypot(1, SHARED)))
    held: dict[tuple[str, IntervalKind], list[bool]] = {(key, kind): [] for key in truth for kind in KINDS}
    length: dict[tuple[str, IntervalKind], list[float]] = {of: [] for of in held}
    values: dict[str, list[float]] = {key: [] for key in truth}
    for number in range(sets):
        images = draw(np.random.default_rng([seed, normal, anomalous, number]), normal, anomalous, pixels)
        for key, metric in resampled(images, replicates, (seed, number)).items():
            if metric is None or key not in truth:
                continue
            values[key].append(metric.value)
            for kind in KINDS:
                low, high = interval(metric, kind)
                held[key, kind].append(low <= truth[key] <= high)
                length[key, kind].append(high - low)
    return {
        key: Share(
            truth[key],
            float(np.mean(values[key])),
            {kind: float(np.mean(held[key, kind])) for kind in KINDS},
            {kind: float(np.mean(length[key, kind])) for kind in KINDS},
        )
        for key in truth
        if values[key]  # AUPIMO takes more pixels than these sets have
    }


def table(found: Mapping[tuple[int, int], Mapping[str, Share]]) -> str:
    """Returns in Markdown, in percent: coverage of BCa and, in brackets, of percentile intervals."""
    measured = next(iter(found.values()))
    keys: Sequence[str] = [key for key in TITLE_OF_ALL if key in measured]
    lines = ["| normal + anomalous | " + " | ".join(TITLE_OF_ALL[key] for key in keys) + " |"]
    lines.append("|---|" + "---:|" * len(keys))
    for (normal, anomalous), shares in found.items():
        cells = [f"{100 * shares[key].held['bca']:.1f} ({100 * shares[key].held['percentile']:.1f})" for key in keys]
        lines.append(f"| {normal} + {anomalous} | " + " | ".join(cells) + " |")
        moved = [f"{100 * (shares[key].mean - shares[key].truth):+.1f}" for key in keys]
        lines.append("| mean − truth | " + " | ".join(moved) + " |")
    return "\n".join(lines)


def main() -> None:
    """Draws the sets and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=1000, help="sets of images per row (%(default)s)")
    parser.add_argument("--replicates", type=int, default=1000, help="samples of each (%(default)s)")
    parser.add_argument("--pixels", action="store_true", help="images have maps")
    parser.add_argument("--sizes", nargs="+", metavar="N+P", help="normal and anomalous images of a set, as 20+80")
    options = parser.parse_args()
    given = [tuple(map(int, size.split("+"))) for size in options.sizes or ()]
    sizes = [(normal, anomalous) for normal, anomalous in given or SIZES]
    print(table({size: coverage(*size, options.sets, options.replicates, options.pixels) for size in sizes}))


if __name__ == "__main__":
    main()
