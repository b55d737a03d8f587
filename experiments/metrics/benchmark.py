r"""Times pixel metrics side by side: this project, its peers, and the exact values, on one synthetic category.

    pip install -e . -r experiments/metrics/requirements.txt    # in an environment of its own
    python experiments/metrics/benchmark.py --json result.json

Every method runs in processes of its own, in turns, so that all of them meet the same state of the machine; a round is
one turn of each. Reported is the median of the rounds. Time is that of the method alone: imports, reading the data and
a first call on a few small maps come before it. Memory is the peak of the process over what it
held before the call, the data included.

83 maps of 518 × 518, float32, as a vision transformer with patches of 14 would give: noise on a 37 × 37 grid,
upsampled, with fine noise added, through a logistic. 63 of them have one to three elliptical defects, where scores are
higher. Binned AUROC, AP and PRO are compared with those of every distinct score, in float64.

Intervals are found from 1,000 samples of the images. With scikit-learn two samples are measured, and their time is
multiplied by 500:

    python experiments/metrics/benchmark.py --threads 1 --processor_time \
        --methods "this project" "this project, intervals" "scikit-learn, samples"
"""

import argparse
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

BATCH = 8  # images a call, as an evaluation loop would give them
FPR_LIMIT = 0.3
SCALES = (1, 2, 5, 10)
SAMPLES = 1000  # of the images, for intervals
MEASURED = 2  # of these with scikit-learn; their time is multiplied
Values = dict[str, float]  # some of auroc, ap, f1_max, pro
Method = Callable[[np.ndarray, np.ndarray], Values]


def make_data(count: int, side: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns maps `[count, side, side]`, float32 in (0, 1), and masks of the same shape, uint8; see the module."""
    import cv2

    rng = np.random.default_rng(seed)
    maps, masks = np.empty((count, side, side), np.float32), np.zeros((count, side, side), np.uint8)
    for i in range(count):
        if i * 63 % 83 < 63:  # 63 of every 83, evenly spread
            for _ in range(rng.integers(1, 4)):
                centre, axes = rng.integers(side // 8, side - side // 8, 2), rng.integers(side // 40, side // 8, 2)
                angle = float(rng.uniform(0, 180))
                cv2.ellipse(masks[i], centre.tolist(), axes.tolist(), angle, 0, 360, color=1, thickness=-1)
        coarse = rng.standard_normal((37, 37), np.float32)
        logit = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        logit += 0.1 * rng.standard_normal((side, side), np.float32)
        logit += 1.7 * cv2.GaussianBlur(masks[i].astype(np.float32), (0, 0), side / 60) - 0.5
        maps[i] = 1 / (1 + np.exp(-logit))
    return maps, masks


def ours(maps: np.ndarray, masks: np.ndarray) -> Values:
    """`AnomalyMetrics`, regions labelled included."""
    from afclip_lightning.metrics import AnomalyMetrics

    metrics = AnomalyMetrics(fpr_limit=FPR_LIMIT)
    for start in range(0, len(maps), BATCH):
        metrics.update(maps[start : start + BATCH], masks[start : start + BATCH])
    result = metrics.result()
    bounds = {f"{key.removeprefix('pixel_')}_bound": bound for key, bound in result.error_bounds.items()}
    return {key.removeprefix("pixel_"): value for key, value in result.metrics.items()} | bounds


def ours_with_intervals(maps: np.ndarray, masks: np.ndarray) -> Values:
    """The same, image metrics, and BCa intervals of all of them from `SAMPLES` samples of the images."""
    import torch

    from afclip_lightning.metrics import AnomalyMetrics, label_regions
    from afclip_lightning.metrics.image_counts import ImageRecord
    from afclip_lightning.metrics.intervals import Settings, intervals_of

    metrics, records = AnomalyMetrics(fpr_limit=FPR_LIMIT), []
    for start in range(0, len(maps), BATCH):
        scored, marked = (torch.from_numpy(x[start : start + BATCH]) for x in (maps, masks))
        areas, scores, labels = label_regions(marked), scored.amax((1, 2)), marked.flatten(1).any(1).int()
        metrics.update(scored, marked, scores, labels, region_area=areas)
        for i, (score, label) in enumerate(zip(scores.tolist(), labels.tolist(), strict=True)):
            records.append(ImageRecord.of(f"{start + i:04}", label, score, scored[i], areas[i]))
    values = {key.removeprefix("pixel_"): value for key, value in metrics.result().metrics.items()}
    found = intervals_of({("drawn", "all"): records}, Settings(SAMPLES), FPR_LIMIT).by_row["drawn", "all"]
    for key, (low, high) in found.items():
        values |= {f"{key.removeprefix('pixel_')}_low": low, f"{key.removeprefix('pixel_')}_high": high}
    return values | {"bytes_per_image": sum(record.counts.nbytes for record in records) / len(records)}


def scikit_learn_samples(maps: np.ndarray, masks: np.ndarray) -> Values:
    """AUROC and average precision of images and pixels of `MEASURED` samples, drawn by hand, with scikit-learn."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    from afclip_lightning.metrics.resampling import draws

    labels, scores = masks.any((1, 2)).astype(int), maps.max((1, 2))
    found = []
    for times in draws(labels, MEASURED, (0, "drawn", "all")):
        at = np.repeat(np.arange(len(maps)), times.astype(int))
        pixels, marked = maps[at].ravel(), masks[at].ravel()
        for truth, values in ((labels[at], scores[at]), (marked, pixels)):
            found += [roc_auc_score(truth, values), average_precision_score(truth, values)]
    return {"auroc": float(found[2]), "ap": float(found[3])}


def exact_sort(maps: np.ndarray, masks: np.ndarray) -> Values:
    """One sort of all pixels in NumPy, float64: the values that errors are measured against."""
    from scipy import ndimage

    weights = np.zeros(maps.shape)
    for weight, mask in zip(weights, masks, strict=True):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        if count:
            areas = np.bincount(labels.ravel())
            weight[:] = np.where(labels > 0, 1 / areas[labels], 0)
    order = np.argsort(-maps.ravel(), kind="stable")
    scores, anomalous = maps.ravel()[order], masks.ravel()[order].astype(np.int64)
    last = np.append(np.diff(scores) != 0, True)  # of equal scores
    tp = anomalous.cumsum()[last]
    fp = (1 - anomalous).cumsum()[last]
    overlap = weights.ravel()[order].cumsum()[last]
    tpr, fpr, overlap = (np.append(0, x / x[-1]) for x in (tp, fp, overlap))
    inside = fpr <= FPR_LIMIT
    x, y = np.append(fpr[inside], FPR_LIMIT), np.append(overlap[inside], np.interp(FPR_LIMIT, fpr, overlap))
    return {
        "auroc": float(np.trapezoid(tpr, fpr)),
        "ap": float(np.diff(tpr) @ (tp / (tp + fp))),
        "f1_max": float((2 * tp / (tp + fp + tp[-1])).max()),
        "pro": float(np.trapezoid(y, x) / FPR_LIMIT),
    }


def scikit_learn(maps: np.ndarray, masks: np.ndarray) -> Values:
    """scikit-learn's AUROC and average precision."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores, labels = maps.ravel(), masks.ravel()
    return {"auroc": float(roc_auc_score(labels, scores)), "ap": float(average_precision_score(labels, scores))}


def torchmetrics_of(thresholds: int | None) -> Method:
    """AUROC and average precision of torchmetrics, exact or with a number of thresholds."""

    def run(maps: np.ndarray, masks: np.ndarray) -> Values:
        import torch
        from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

        values = {}
        for key, cls in (("auroc", BinaryAUROC), ("ap", BinaryAveragePrecision)):
            metric = cls(thresholds=thresholds)
            for start in range(0, len(maps), BATCH):
                parts = (torch.from_numpy(x[start : start + BATCH]).flatten() for x in (maps, masks))
                metric.update(*(part.long() if part.dtype == torch.uint8 else part for part in parts))
            values[key] = float(metric.compute())
        return values

    return run


def anomalib(maps: np.ndarray, masks: np.ndarray) -> Values:
    """Area under the PRO curve of anomalib."""
    import torch
    from anomalib.metrics.aupro import _AUPRO

    metric = _AUPRO(fpr_limit=FPR_LIMIT)
    for start in range(0, len(maps), BATCH):
        metric.update(*(torch.from_numpy(x[start : start + BATCH]) for x in (maps, masks)))
    return {"pro": float(metric.compute())}


def adeval(maps: np.ndarray, masks: np.ndarray) -> Values:
    """AUROC, area under the precision-recall curve and PRO of adeval, 1000 strips between the true bounds."""
    if not hasattr(np, "trapz"):  # NumPy renamed it; adeval calls the old name
        np.trapz = np.trapezoid
    from adeval import auroc_aupr_aupro

    return dict(zip(("auroc", "ap", "pro"), auroc_aupr_aupro(maps, masks, nstrips=1000), strict=True))


def loop_200(maps: np.ndarray, masks: np.ndarray) -> Values:
    """PRO as in the papers' codes: 200 thresholds, each with a pass over all maps and all regions."""
    from skimage import measure

    regions = [measure.regionprops(measure.label(mask)) for mask in masks]
    low, high = maps.min(), maps.max()
    normal = 1 - masks
    points = []
    for threshold in np.arange(low, high, (high - low) / 200):
        found = maps > threshold
        overlaps = [
            image[region.coords[:, 0], region.coords[:, 1]].sum() / region.area
            for image, of_image in zip(found, regions, strict=True)
            for region in of_image
        ]
        points.append((np.logical_and(normal, found).sum() / normal.sum(), np.mean(overlaps)))
    points = [(fpr, overlap) for fpr, overlap in reversed(points) if fpr < FPR_LIMIT]
    span = points[-1][0] - points[0][0]
    return {"pro": float(sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points)) / span)}


METHODS: dict[str, tuple[str, Method]] = {
    "this project": ("AUROC, AP, F1-max, PRO, bounds", ours),
    "this project, intervals": ("the same, image metrics, intervals of all", ours_with_intervals),
    "exact, one sort (NumPy)": ("AUROC, AP, F1-max, PRO", exact_sort),
    "scikit-learn": ("AUROC, AP", scikit_learn),
    "scikit-learn, samples": ("AUROC, AP of samples of the images", scikit_learn_samples),
    "torchmetrics, exact": ("AUROC, AP", torchmetrics_of(None)),
    "torchmetrics, 200 thresholds": ("AUROC, AP", torchmetrics_of(200)),
    "torchmetrics, 1000 thresholds": ("AUROC, AP", torchmetrics_of(1000)),
    "anomalib AUPRO": ("PRO", anomalib),
    "adeval, 1000 strips": ("AUROC, AUPR, PRO", adeval),
    "200-threshold loop": ("PRO", loop_200),
}


def memory(field: str) -> int:
    """Returns a field of this process's status, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(found[1]) * 1024


def measure(name: str, folder: Path, count: int, clock: Callable[[], float]) -> dict[str, object]:
    """Returns seconds, bytes over the data, and values; runs in a process of its own.

    Args:
        name: The method.
        folder: Folder of the data.
        count: How many maps.
        clock: Returns the time.
    """
    _, method = METHODS[name]
    method(*make_data(24, 40))  # imports, and what is built on the first call
    maps, masks = (np.load(folder / f"{x}.npy", mmap_mode="r")[:count].copy() for x in ("maps", "masks"))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    start = clock()
    values = method(maps, masks)
    seconds = (clock() - start) * (SAMPLES / MEASURED if method is scikit_learn_samples else 1)
    return {"seconds": seconds, "memory": memory("VmHWM") - before, "values": values}


def in_process(name: str, folder: Path, count: int, options: argparse.Namespace) -> dict[str, object]:
    """Runs `measure` in a new process."""
    command = [sys.executable, __file__, "--measure", name, "--folder", str(folder), "--count", str(count)]
    command += ["--processor_time"] if options.processor_time else []
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "PYTHONWARNINGS": "ignore"}
    environment["OMP_WAIT_POLICY"] = (
        "PASSIVE"  # spinning threads would make any other load on the machine count tenfold
    )
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def combined(runs: list[dict]) -> dict:
    """Returns the median time and memory of the rounds, and the values, which are equal in all."""
    keys = ("seconds", "memory")
    return {key: statistics.median(run[key] for run in runs) for key in keys} | {
        "all_seconds": [run["seconds"] for run in runs],
        "values": runs[0]["values"],
    }


def tables(results: dict[str, dict], scaling: dict[int, dict], count: int) -> str:
    """Returns the tables in Markdown: times as multiples of ours, memory in MB, differences from the exact values."""
    exact = results.get("exact, one sort (NumPy)", {}).get("values", {})
    own, drawn = results["this project"]["seconds"], METHODS["scikit-learn, samples"]
    lines = ["| method | computes | time | memory beyond the maps | error of AUROC | of AP | of PRO |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    for name, result in results.items():
        known = exact.keys() & result["values"] if METHODS[name] is not drawn else set()
        errors = [f"{abs(result['values'][k] - exact[k]):.0e}" if k in known else "" for k in ("auroc", "ap", "pro")]
        errors = ["reference"] * 3 if result["values"] is exact else errors
        cells = [name, METHODS[name][0], f"{result['seconds'] / own:.1f}×", f"{result['memory'] / 1e6:.0f} MB", *errors]
        lines.append(f"| {' | '.join(cells)} |")
    if not scaling:
        return "\n".join(lines)
    lines += ["", "| maps | time per pixel of this project | memory beyond the maps |", "|---:|---:|---:|"]
    first = scaling[SCALES[0]]["seconds"] / SCALES[0]
    for scale, result in scaling.items():
        relative = result["seconds"] / scale / first
        lines.append(f"| {scale * count} | {relative:.2f}× | {result['memory'] / 1e6:.0f} MB |")
    return "\n".join(lines)


def main() -> None:
    """Measures everything and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=83, help="maps (%(default)s)")
    parser.add_argument("--side", type=int, default=518, help="pixels a side (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each method (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each process (%(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="these alone, without growing numbers of maps")
    parser.add_argument("--processor_time", action="store_true", help="of all threads: for a machine that is not idle")
    parser.add_argument("--json", type=Path, help="write all measurements there")
    parser.add_argument("--measure", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        clock = time.process_time if options.processor_time else time.perf_counter
        print(json.dumps(measure(options.measure, options.folder, options.count, clock)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        scales = () if options.methods else SCALES
        maps, masks = make_data(max(scales, default=1) * options.count, options.side)
        np.save(folder / "maps.npy", maps)
        np.save(folder / "masks.npy", masks)
        first = maps[: options.count]
        print(f"{first.size / 1e6:.2f} million pixels, scores {first.min():.4f} to {first.max():.4f}", file=sys.stderr)
        load = os.getloadavg()[0]
        print(f"load of the machine before: {load:.2f}; times mean something on an idle one only", file=sys.stderr)
        del maps, masks, first
        runs: dict[str, list[dict]] = {name: [] for name in options.methods or METHODS}
        growth: dict[int, list[dict]] = {scale: [] for scale in scales}
        for number in range(options.rounds):
            for name, found in runs.items():
                found.append(in_process(name, folder, options.count, options))
                print(f"round {number + 1}: {name}: {found[-1]}", file=sys.stderr)
            for scale, found in growth.items():
                found.append(in_process("this project", folder, scale * options.count, options))
                print(f"round {number + 1}: {scale} times the maps: {found[-1]}", file=sys.stderr)
    results = {name: combined(found) for name, found in runs.items()}
    scaling = {scale: combined(found) for scale, found in growth.items()}
    print(tables(results, scaling, options.count))
    if options.json:
        record = {
            "arguments": {
                key: getattr(options, key) for key in ("count", "side", "rounds", "threads", "processor_time")
            },
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_before": load,
            "methods": results,
            "scaling": scaling,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
