"""Metrics of many samples of a category's images at once, for intervals and paired comparisons.

A sample draws with replacement as many normal and as many anomalous images as the category has, so that the share of
anomalous images stays the same. Its counts are a weighted sum of the counts of the images. All of them are whole
numbers that float64 represents exactly, so the order of the sum makes no difference.

Image metrics are exact. Pixel metrics are computed in the common groups of bins (`CategoryCounts`). For sample `w`,
they are within the error bounds of `images.pixel_counts(w)`, such as `auroc_error_bound`.
"""

import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from afclip_lightning.metrics.aupimo import check_defined, has_recall, tail_recall, tail_shares
from afclip_lightning.metrics.curves import UndefinedMetricError
from afclip_lightning.metrics.image_counts import CategoryCounts
from afclip_lightning.metrics.result import SMALL_LIMIT

BLOCK = 2**18
"""Number of values of one array that are processed at a time: 2 MiB, which fit into a processor's cache."""


def draws(labels: np.ndarray, replicates: int, seed: Sequence[int | str] = (0,)) -> np.ndarray:
    """Returns how often each image is in each sample, `[replicates, n]`, uint16. Equal arguments give equal draws.

    Args:
        labels: `[n]`, 1 = anomalous, 0 = normal. Images of each label are drawn separately, as many as there are.
        replicates: Number of samples, at least 1.
        seed: Numbers and names, such as a seed, the dataset and the category.
    """
    numbers = [zlib.crc32(part.encode("utf-8", "surrogateescape")) if isinstance(part, str) else part for part in seed]
    rng = np.random.default_rng(numbers)
    weights = np.zeros((replicates, len(labels)), np.uint16)  # float64 would take 800 MB per 100,000 images
    for label in (0, 1):
        at = np.flatnonzero(labels == label)
        if len(at):
            for part in blocks(replicates, len(at)):
                rows = part.stop - part.start
                weights[part, at] = rng.multinomial(len(at), np.full(len(at), 1 / len(at)), rows)
    return weights


def without_each(count: int, positions: np.ndarray | None = None) -> np.ndarray:
    """Returns the samples that leave out one image each, `[m, count]`.

    Args:
        count: Number of images.
        positions: `[m]`, positions of the images that are left out; by default all.
    """
    left_out = np.arange(count) if positions is None else positions
    weights = np.ones((len(left_out), count))
    weights[np.arange(len(left_out)), left_out] = 0
    return weights


def blocks(rows: int, width: int, values: int = 2**24) -> list[slice]:
    """Returns slices of rows to process at a time, each with at most `values` elements, but at least one row."""
    step = max(values // max(width, 1), 1)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def metrics_of(images: CategoryCounts, weights: np.ndarray, fpr_limit: float = 0.3) -> dict[str, np.ndarray]:
    """Returns each metric that is defined for the images, for each sample.

    Args:
        images: The n images.
        weights: `[r, n]`, how often each image is in each sample, of any type.
        fpr_limit: Integration limit of `pixel_pro`, in (0, 1].

    Returns:
        `[r]` per metric, float64, in [0, 1]; NaN for a sample in which all images, or all pixels, have the same label.
        `image_auroc`, `image_ap`, `image_f1_max`: absent unless there are normal and anomalous images and all have
        scores. `pixel_auroc`, `pixel_ap`, `pixel_f1_max`, `pixel_pro`, `pixel_pro_05`: absent unless there are normal
        and anomalous pixels and the mask of every anomalous image is known. `pixel_aupimo`: where it is defined; see
        `aupimo.check_defined`. Where thresholds are fixed, `image_fixed_fpr`, `image_fixed_tpr`,
        `image_fixed_balanced_accuracy`, `image_fixed_f1`, and the same for pixels; see `operating_point`.
    """
    values = _in_blocks(lambda part: _fixed(images, part), weights, len(images.labels))
    if images.labels.any() and not images.labels.all() and not np.isnan(images.scores).any():
        values |= _in_blocks(lambda part: _image_metrics(images, part), weights, len(images.labels))
    if images.masked.all() and images.anomalous.any() and images.normal.any():
        values |= _in_blocks(lambda part: _pixel_metrics(images, part, fpr_limit), weights, len(images.lowest))
    with suppress(UndefinedMetricError):
        check_defined(images)
        at, (recall, _) = has_recall(images), tail_recall(images)
        values |= _in_blocks(lambda part: _aupimo(images, part, at, recall), weights, len(images.lowest))
    return values


def _fixed(images: CategoryCounts, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the metrics of each sample at fixed thresholds, if they are defined for the images themselves."""
    values = {}
    for level, (fp, tp) in ((level, counts[:2]) for level, counts in images.above.items()):
        if level == "image":
            all_normal, all_anomalous = images.labels == 0, images.labels == 1
        else:
            all_normal, all_anomalous = images.normal.sum(axis=1), images.anomalous.sum(axis=1)
        negatives, positives = weights @ all_normal, weights @ all_anomalous
        fpr, tpr = _share(weights @ fp, negatives), _share(weights @ tp, positives)
        f1 = np.where(np.isnan(fpr + tpr), np.nan, _share(2 * (weights @ tp), weights @ (tp + fp) + positives))
        rates = {"fpr": fpr, "tpr": tpr, "balanced_accuracy": (tpr + 1 - fpr) / 2, "f1": f1}
        defined = {"fpr": all_normal.any(), "tpr": all_anomalous.any()}
        for key, rate in rates.items():
            if defined.get(key, all(defined.values())):
                values[f"{level}_fixed_{key}"] = rate
    return values


def _aupimo(images: CategoryCounts, weights: np.ndarray, at: np.ndarray, recall: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the mean AUPIMO over the anomalous images of each sample; NaN without normal or anomalous images.

    Args:
        images: The n images.
        weights: `[r, n]`, how often each image is in each sample.
        at: `[n]`, bool, which images have anomalous pixels.
        recall: `[a, g]`, mean recall of these images; see `tail_recall`.
    """
    drawn = weights[:, at]
    both = drawn.any(axis=1) & weights[:, images.labels == 0].any(axis=1)
    values = np.full(len(weights), np.nan)
    shares = tail_shares(images, weights[both])
    values[both] = ((drawn[both] @ recall) * shares).sum(axis=1) / drawn[both].sum(axis=1)
    return {"pixel_aupimo": values}


def _in_blocks(
    metrics: Callable[[np.ndarray], dict[str, np.ndarray]], weights: np.ndarray, width: int
) -> dict[str, np.ndarray]:
    """Returns the metrics of all samples, computed for a few at a time."""
    parts = [metrics(weights[part].astype(np.float64, copy=False)) for part in blocks(len(weights), width, BLOCK)]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _image_metrics(images: CategoryCounts, weights: np.ndarray) -> dict[str, np.ndarray]:
    order = np.argsort(-images.scores, kind="stable")
    first = np.flatnonzero(np.append(True, np.diff(images.scores[order]) != 0))  # first of equal scores
    drawn = weights[:, order]
    anomalous = np.add.reduceat(drawn * images.labels[order], first, axis=1)
    normal = np.add.reduceat(drawn, first, axis=1) - anomalous
    return {f"image_{key}": value for key, value in _ranking(normal, anomalous)[0].items()}


def _pixel_metrics(images: CategoryCounts, weights: np.ndarray, fpr_limit: float) -> dict[str, np.ndarray]:
    values, fpr = _ranking(weights @ images.normal, weights @ images.anomalous)
    overlap = (weights @ images.region_weight).cumsum(axis=1)
    overlap = _share(overlap, overlap[:, -1:])
    for key, limit in (("pro", fpr_limit), ("pro_05", SMALL_LIMIT)):
        values[key] = _area_to_limit(fpr, overlap, limit)
    return {f"pixel_{key}": value for key, value in values.items()}


def _ranking(normal: np.ndarray, anomalous: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns AUROC, AP and F1-max, `[r]` each, and the false-positive rates `[r, g]`; see `curves` for the formulas.

    Args:
        normal: `[r, g]`, normal images or pixels of each sample by descending score.
        anomalous: `[r, g]`, anomalous images or pixels of each sample by descending score.
    """
    fp, tp = normal.cumsum(axis=1), anomalous.cumsum(axis=1)
    negatives, positives = fp[:, -1:], tp[:, -1:]
    above = tp + fp
    precision = np.divide(tp, above, out=np.zeros_like(tp), where=above > 0)
    values = {
        "auroc": _share((normal * (tp - anomalous / 2)).sum(axis=1), (negatives * positives)[:, 0]),
        "ap": _share((anomalous * precision).sum(axis=1), positives[:, 0]),
        "f1_max": _share(2 * tp, above + positives).max(axis=1),
    }
    undefined = (negatives * positives)[:, 0] == 0
    for value in values.values():
        value[undefined] = np.nan
    return values, _share(fp, negatives)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Returns `part / whole`, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _area_to_limit(fpr: np.ndarray, overlap: np.ndarray, limit: float) -> np.ndarray:
    """Returns the normalised area under ascending curves `[r, g]` that begin at (0, 0), up to the limit; see `pro`."""
    end = int((fpr < limit).sum(axis=1).max()) + 1  # includes the first point at or beyond the limit of every sample
    fpr, overlap = (np.pad(part[:, :end], ((0, 0), (1, 0))) for part in (fpr, overlap))
    width, rise = np.diff(fpr), np.diff(overlap)
    inside = np.diff(fpr.clip(max=limit))
    part = np.divide(inside, width, out=np.zeros_like(width), where=width > 0)
    return (inside * (overlap[:, :-1] + rise * part / 2)).sum(axis=1) / limit
