"""A head with a memory against plain nearest neighbours and the head alone, on the same kept features of real sets.

    python -m experiments.adapt.compare --features DIR --head afclip_lightning/heads/models/real.safetensors --out DIR

DIR holds of each set the tokens after the head's blocks as the method sees them, `SET.L3.npy` (`[n, 1 + N, C]`,
float16, a file per block), `SET.masks.npy` (`[n, H, W]`, 0 or 1) and `SET.json` (of each image: path, split, label,
mask), in one order. Every rule sees the same images: `DRAWS` draws of 4 and of 16 normal images out of a pool of at
most `POOL`, which are no test images. Intervals are of 95 %, from a paired bootstrap over draws and over test images.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.components.scoring import upsample, upsample_and_smooth
from afclip_lightning.heads.file import Head, read_head_file

DRAWS, POOL, RESAMPLES, BINS = 5, 40, 300, 200
MOST = {0: 100, 1: 150}  # test images of a set, normal and anomalous: of more, as many are drawn
SIDE = 63  # pixels of a side that maps are evaluated at


@dataclass(frozen=True)
class Set:
    """What is known of a set: half cosine distances to each pool image, of test and of pool images; the head's map.

    Attributes:
        label: `[T]`.
        mask: `[T, SIDE, SIDE]`, or `None`.
        test: `[L, T, N, K]`: of each patch to the nearest of a pool image.
        pool: `[L, K, N, K]`, likewise.
        head: `[T, N]`: the head's map over the patches.
        head_pool: `[K, N]`.
        score: `[T]`: the head's own image score.
    """

    label: np.ndarray
    mask: np.ndarray | None
    test: Tensor
    pool: Tensor
    head: Tensor
    head_pool: Tensor
    score: np.ndarray


def read_set(folder: Path, name: str, head_file: Path, cache: Path) -> Set:
    """Returns a set; distances are computed once and kept in the cache."""
    head = read_head_file(head_file)
    layers, size = head.features.layers, int(head.features.image_size)  # type: ignore[call-overload]
    images = json.loads((folder / f"{name}.json").read_text())
    normal = [i for i, image in enumerate(images) if image["split"] == "train"]
    normal = normal or [i for i, image in enumerate(images) if image["label"] == 0]
    rng = np.random.default_rng(1)
    pool = sorted(rng.choice(normal, min(POOL, len(normal)), replace=False).tolist())
    test = [i for i, image in enumerate(images) if image["split"] == "test" and i not in set(pool)]
    kinds = {kind: [i for i in test if images[i]["label"] == kind] for kind in MOST}
    if any(len(kinds[kind]) > most for kind, most in MOST.items()):
        test = sorted(i for kind, most in MOST.items() for i in rng.choice(kinds[kind], most, replace=False).tolist())
    tokens = [np.load(folder / f"{name}.L{layer}.npy", mmap_mode="r") for layer in layers]
    side = round((tokens[0].shape[1] - 1) ** 0.5)
    file = cache / f"{name}.pt"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save([[_distances(one, some, pool) for one in tokens] for some in (test, pool)], file)
    to_test, to_pool = torch.load(file, weights_only=True)
    maps, scores = _head(tokens, test, head, side, size)
    has_masks = any(images[i].get("mask") for i in test)
    masks = np.load(folder / f"{name}.masks.npy", mmap_mode="r")[test] if has_masks else None
    small = None
    if masks is not None:
        small = F.interpolate(torch.from_numpy(masks)[:, None].float(), (SIDE, SIDE), mode="area")
    return Set(
        np.array([images[i]["label"] for i in test]),
        None if small is None else (small[:, 0] > 0.5).numpy(),
        torch.stack(to_test).float(),
        torch.stack(to_pool).float(),
        maps,
        _head(tokens, pool, head, side, size)[0],
        scores,
    )


def _distances(tokens: np.ndarray, images: Sequence[int], pool: Sequence[int]) -> Tensor:
    """Returns half the cosine distance of each patch to the nearest patch of each pool image, `[T, N, K]`, float16."""
    bank = F.normalize(torch.from_numpy(tokens[list(pool)][:, 1:]).float(), dim=-1)
    count, patches, width = bank.shape
    columns = bank.reshape(count * patches, width).T.contiguous()
    found = torch.empty(len(images), patches, count, dtype=torch.float16)
    for row, image in zip(found, images, strict=True):
        query = F.normalize(torch.from_numpy(tokens[image][1:]).float(), dim=-1)
        row.copy_((1 - (query @ columns).view(patches, count, patches).amax(dim=-1)) / 2)
    return found


def _head(
    tokens: Sequence[np.ndarray], images: Sequence[int], head: Head, side: int, size: int
) -> tuple[Tensor, np.ndarray]:
    """Returns UniADet's map over the patches `[T, N]` and its image score `[T]`."""
    given, vectors = head.hyperparameters, F.normalize(head.tensors["pixel_vectors"].float(), dim=-1)
    logits = []
    for one, pair in zip(tokens, vectors, strict=True):
        unit = F.normalize(torch.from_numpy(one[list(images)][:, 1:]).float(), dim=-1)
        logits.append((unit @ pair.T / given["temperature"]).diff(dim=-1)[..., 0])
    patches = torch.stack(logits)
    pixels = upsample_and_smooth(patches.sigmoid().mean(0).unflatten(1, (side, side)), size, given["map_sigma"])
    mean = patches.mean(0)
    score = mean.topk(given["top_patches"], dim=1).values.mean(1)
    return F.avg_pool2d(pixels[:, None], size // side).flatten(1), score.sigmoid().numpy()


Rule = Callable[[Set, Sequence[int]], tuple[np.ndarray, Tensor]]  # of drawn images: scores [T] and patches [T, N]


def nearest(data: Set, drawn: Sequence[int]) -> tuple[np.ndarray, Tensor]:
    """Plain nearest neighbours: the mean over the layers, and its highest patch."""
    patches = data.test[..., drawn].amin(-1).mean(0)
    return patches.amax(1).numpy(), patches


def alone(data: Set, drawn: Sequence[int]) -> tuple[np.ndarray, Tensor]:
    """The head alone, zero-shot."""
    return data.score, data.head


def fixed(data: Set, drawn: Sequence[int]) -> tuple[np.ndarray, Tensor]:
    """AF-CLIP+'s rule: the distance, and a tenth of the head's probability."""
    score, patches = nearest(data, drawn)
    return score + 0.1 * data.score, patches + 0.1 * data.head


def ours(weight: float, smoothing: float = 0.5) -> Rule:
    """Returns `HeadWithMemory`'s rule."""

    def rule(data: Set, drawn: Sequence[int]) -> tuple[np.ndarray, Tensor]:
        total = torch.zeros(data.test.shape[1:3])
        for test, pool in zip(data.test, data.pool, strict=True):
            out = torch.stack([pool[i][:, [j for j in drawn if j != i]].amin(-1) for i in drawn])
            total += (test[..., drawn].amin(-1) - out.mean()) / out.std() / len(data.test)
        usual = data.head_pool[drawn]
        total += weight * (data.head - usual.mean()) / usual.std().clamp(min=1e-3)
        side = round(total.shape[1] ** 0.5)
        smooth = upsample_and_smooth(total.unflatten(1, (side, side)), (side, side), smoothing).flatten(1)
        return smooth.amax(1).numpy(), smooth

    return rule


RULES: dict[str, Rule] = {
    "head alone": alone,
    "nearest neighbours": nearest,
    "AF-CLIP+ rule": fixed,
    "memory alone, no filter": ours(0.0, 0.0),
    "memory alone": ours(0.0),
    "with head, 0.3": ours(0.3),
    "with head, 0.5": ours(0.5),
    "with head, 1.0": ours(1.0),
}


def auroc(scores: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> float:
    """Returns the AUROC of scores, each weighted; ties count half."""
    _, place = np.unique(scores, return_inverse=True)
    anomalous = np.bincount(place, weight * labels)
    normal = np.bincount(place, weight * (1 - labels))
    return _area(anomalous, normal)


def _area(anomalous: np.ndarray, normal: np.ndarray) -> float:
    below = np.cumsum(normal) - normal / 2
    return float((anomalous * below).sum() / (anomalous.sum() * normal.sum()))


def counts_of(patches: Tensor, mask: np.ndarray) -> np.ndarray:
    """Returns by image how many pixels of either kind have which value, `[T, 2, BINS]`."""
    side = round(patches.shape[1] ** 0.5)
    maps = upsample(patches.unflatten(1, (side, side)), SIDE).numpy()
    edges = np.quantile(maps, np.linspace(0, 1, BINS + 1)[1:-1])
    place = np.digitize(maps, edges)
    return np.stack(
        [
            [np.bincount(one[~marked], minlength=BINS)[:BINS], np.bincount(one[marked], minlength=BINS)[:BINS]][::-1]
            for one, marked in zip(place, mask, strict=True)
        ]
    )


def main() -> None:
    """Runs the comparison, and writes `results.json` and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--head", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["mvtec_leather_subset", "hazelnut_toy", "magnetic_tile"])
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    results = {}
    for name in options.sets:
        data = read_set(options.features, name, options.head, options.out / "cache")
        for shots in (4, 16):
            if shots > data.pool.shape[1]:
                continue
            results[f"{name}, {shots}"] = compare(data, shots)
            print(table(name, shots, results[f"{name}, {shots}"]), flush=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=1))


def compare(data: Set, shots: int) -> dict[str, dict[str, list[float]]]:
    """Returns of each rule its image and pixel AUROC, and by how much it is above the two baselines, with intervals."""
    rng, pool = np.random.default_rng(0), data.pool.shape[1]
    draws = [sorted(rng.choice(pool, shots, replace=False).tolist()) for _ in range(DRAWS if shots < pool else 1)]
    said = {rule: [of(data, drawn) for drawn in draws] for rule, of in RULES.items()}
    pixels = (
        {}
        if data.mask is None
        else {rule: [counts_of(patches, data.mask) for _, patches in found] for rule, found in said.items()}
    )
    kinds = [np.flatnonzero(data.label == kind) for kind in (0, 1)]
    samples = [np.ones(len(data.label))]
    for _ in range(RESAMPLES):
        drawn = np.concatenate([rng.choice(kind, len(kind)) for kind in kinds])
        samples.append(np.bincount(drawn, minlength=len(data.label)).astype(float))
    chosen = [np.arange(len(draws)), *(rng.integers(0, len(draws), len(draws)) for _ in range(RESAMPLES))]
    values: dict[str, dict[str, np.ndarray]] = {}
    for rule, found in said.items():
        image = np.array([[auroc(score, data.label, weight) for score, _ in found] for weight in samples])
        values[rule] = {"image": np.array([row[which].mean() for row, which in zip(image, chosen, strict=True)])}
        if pixels:
            pixel = np.array(
                [[_area(*np.tensordot(weight, one, axes=1)) for one in pixels[rule]] for weight in samples]
            )
            values[rule]["pixel"] = np.array([row[which].mean() for row, which in zip(pixel, chosen, strict=True)])
    return {
        rule: {
            key: [float(v) for v in _said(found)]
            for metric in of
            for key, found in (
                (metric, of[metric]),
                (f"{metric} above neighbours", of[metric] - values["nearest neighbours"][metric]),
                (f"{metric} above head", of[metric] - values["head alone"][metric]),
            )
        }
        for rule, of in values.items()
    }


def _said(found: np.ndarray) -> tuple[float, float, float]:
    low, high = np.quantile(found[1:], [0.025, 0.975])
    return 100 * found[0], 100 * low, 100 * high


def table(name: str, shots: int, result: dict[str, dict[str, list[float]]]) -> str:
    """Returns the results of one set as rows of Markdown."""
    columns = list(next(iter(result.values())))
    rows = [f"| {name}, {shots} normal images | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for rule, of in result.items():
        cells = [f"{of[key][0]:.1f} [{of[key][1]:.1f}, {of[key][2]:.1f}]" for key in columns]
        rows.append(f"| {rule} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
