"""A head with a memory against plain nearest neighbours and the head alone, on the same kept features of real sets.

    python -m experiments.adapt.compare --features DIR --head afclip_lightning/heads/models/real.safetensors --out DIR

DIR is what `extract` wrote. Every rule sees the same images: `DRAWS` draws of 4 and of 16 normal images out of a pool
of at most 40, which are no test images. Where pseudo-anomalies were drawn, the head is also trained further on those of
the drawn images, as `adapt --fit_head` does. With 16 images a part of the memory is tried in place of all of it, too.
Intervals are of 95 %, from a paired bootstrap over draws and over test images.
"""

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.components.memory import MemoryBank
from afclip_lightning.components.scoring import upsample, upsample_and_smooth
from afclip_lightning.engine.factory import build
from afclip_lightning.heads.file import read_head_file
from afclip_lightning.inspection.fit_head import Drawn, fit
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.types import UNKNOWN, Batch, ClipFeatures, Sample
from experiments.adapt.extract import split_of
from experiments.real_head.pictures import SIZE

DRAWS, RESAMPLES, BINS = 5, 300, 200
SAMPLE = Sample("set", "object", "test", Path("image"), UNKNOWN, class_name="object")
SIDE = 63  # pixels of a side that maps are evaluated at


@dataclass(frozen=True)
class HeadOutputs:
    """The output of a head.

    Attributes:
        test: `[T, N]`: its map of the test images over the patches.
        score: `[T]`: its own image score of these.
        pool: `[K, N]`: its map of the pool images.
    """

    test: Tensor
    score: np.ndarray
    pool: Tensor


@dataclass(frozen=True, eq=False)
class Set:
    """Facts on a set: half cosine distances of test and pool images to each pool image, and the head's map.

    Attributes:
        label: `[T]`.
        mask: `[T, SIDE, SIDE]`, or `None`.
        tokens: Tokens of the test images, `[T, 1 + N, C]` per layer, float16.
        rows: The same for the pool images.
        test: `[L, T, N, K]`: distance of each patch to the nearest patch of a pool image.
        pool: The same for the pool images, `[L, K, N, K]`.
        ready: The ready head.
        head: Outputs of the ready head.
        drawn: Anomalies drawn onto the pool images; the owner is the image's number in the pool.
    """

    label: np.ndarray
    mask: np.ndarray | None
    tokens: list[Tensor]
    rows: list[Tensor]
    test: Tensor
    pool: Tensor
    ready: AnomalyMethod
    head: HeadOutputs
    drawn: Drawn | None


def read_set(folder: Path, name: str, ready: AnomalyMethod, cache: Path) -> Set:
    """Returns a set; distances are computed once and kept in the cache."""
    layers = ready.spec.layers
    images = json.loads((folder / f"{name}.json").read_text())
    pool, test = split_of(images)
    files = [np.load(folder / f"{name}.L{layer}.npy", mmap_mode="r") for layer in layers]
    tokens, rows = ([torch.from_numpy(one[which]) for one in files] for which in (test, pool))
    file = cache / f"{name}.pt"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = [[_distances(*pair) for pair in zip(some, rows, strict=True)] for some in (tokens, rows)]
        torch.save(kept, file)
    to_test, to_pool = torch.load(file, weights_only=True)
    has_masks = any(images[i].get("mask") for i in test)
    masks = np.load(folder / f"{name}.masks.npy", mmap_mode="r")[test] if has_masks else None
    small = None
    if masks is not None:
        small = F.interpolate(torch.from_numpy(masks)[:, None].float(), (SIDE, SIDE), mode="area")
    return Set(
        np.array([images[i]["label"] for i in test]),
        None if small is None else (small[:, 0] > 0.5).numpy(),
        tokens,
        rows,
        torch.stack(to_test).float(),
        torch.stack(to_pool).float(),
        ready,
        outputs_of(ready, tokens, rows),
        read_drawn(folder, name, pool, rows, ready) if (folder / f"{name}.drawn.json").exists() else None,
    )


def read_drawn(folder: Path, name: str, pool: Sequence[int], rows: Sequence[Tensor], ready: AnomalyMethod) -> Drawn:
    """Returns the pool images and the anomalies drawn onto them, as in `adapt --fit_head`."""
    facts = json.loads((folder / f"{name}.drawn.json").read_text())
    masks = torch.from_numpy(np.load(folder / f"{name}.drawn.masks.npy"))
    drawn = [torch.from_numpy(np.load(folder / f"{name}.drawn.L{layer}.npy")) for layer in ready.spec.layers]
    both = [torch.cat(pair) for pair in zip(rows, drawn, strict=True)]
    owners = [*range(len(pool)), *(pool.index(one["onto"]) for one in facts)]
    return Drawn(
        [dict(zip(ready.spec.taps, picture, strict=True)) for picture in zip(*both, strict=True)],
        ready.spec,
        ready.backbone.grid,
        torch.cat([torch.zeros_like(masks[: len(pool)]), masks]),
        torch.tensor(owners),
        [SAMPLE] * len(owners),
    )


def _distances(tokens: Tensor, pool: Tensor) -> Tensor:
    """Returns half the cosine distance of each patch to the nearest patch of each pool image, `[T, N, K]`, float16."""
    bank = F.normalize(pool[:, 1:].float(), dim=-1)
    count, patches, width = bank.shape
    columns = bank.reshape(count * patches, width).T.contiguous()
    found = torch.empty(len(tokens), patches, count, dtype=torch.float16)
    for row, image in zip(found, tokens, strict=True):
        query = F.normalize(image[1:].float(), dim=-1)
        row.copy_((1 - (query @ columns).view(patches, count, patches).amax(dim=-1)) / 2)
    return found


def outputs_of(head: AnomalyMethod, *images: Sequence[Tensor]) -> HeadOutputs:
    """Returns the outputs of a head for test and pool images, from their tokens per layer."""
    scores, maps = [], []
    for tokens in images:
        features = ClipFeatures(tuple(layer.float() for layer in tokens), head.backbone.grid)
        none = torch.empty(0)
        found = head.score(features, Batch(none, none, none, none, [SAMPLE] * len(tokens[0])))
        (height, width), (h, w) = found.anomaly_map.shape[1:], features.grid
        maps.append(F.avg_pool2d(found.anomaly_map[:, None], (height // h, width // w)).flatten(1))
        scores.append(found.pred_score.numpy())
    return HeadOutputs(maps[0], scores[0], maps[1])


def ready_head(file: Path) -> AnomalyMethod:
    """Returns a head on a tower without weights, since its features are stored."""
    found = read_head_file(file)
    backbone = {"model": "dinov2-vits14", "weights": "random", "image_size": SIZE, "pos_embed": "bicubic_antialias"}
    method = build(
        {"class_path": found.method.rpartition(".")[2], "init_args": found.hyperparameters | {"backbone": backbone}}
    )
    method.load_state_dict(found.tensors, strict=False)
    return method.eval()


Rule = Callable[[Set, Sequence[int]], tuple[np.ndarray, Tensor]]  # of drawn images: scores [T] and patches [T, N]


def nearest(data: Set, drawn: Sequence[int]) -> tuple[np.ndarray, Tensor]:
    """Plain nearest neighbours: the mean over the layers, and its highest patch."""
    patches = data.test[..., drawn].amin(-1).mean(0)
    return patches.amax(1).numpy(), patches


def alone(data: Set, drawn: Sequence[int]) -> tuple[np.ndarray, Tensor]:
    """The head alone, zero-shot."""
    return data.head.score, data.head.test


def fixed(data: Set, drawn: Sequence[int]) -> tuple[np.ndarray, Tensor]:
    """AF-CLIP+'s rule: the distance, and a tenth of the head's probability."""
    score, patches = nearest(data, drawn)
    return score + 0.1 * data.head.score, patches + 0.1 * data.head.test


def standardised(data: Set, drawn: Sequence[int]) -> Tensor:
    """Returns the distances to all of the memory, in standard deviations, `[T, N]`."""
    total = torch.zeros(data.test.shape[1:3])
    for test, pool in zip(data.test, data.pool, strict=True):
        out = torch.stack([pool[i][:, [j for j in drawn if j != i]].amin(-1) for i in drawn])
        total += (test[..., drawn].amin(-1) - out.mean()) / out.std() / len(data.test)
    return total


def beside(
    distances: Tensor, drawn: Sequence[int], head: HeadOutputs, weight: float, smoothing: float
) -> tuple[np.ndarray, Tensor]:
    """Returns the scores of `HeadWithMemory` with this head, from standardised distances."""
    usual = head.pool[drawn]
    total = distances + weight * (head.test - usual.mean()) / usual.std().clamp(min=1e-3)
    side = round(total.shape[1] ** 0.5)
    smooth = upsample_and_smooth(total.unflatten(1, (side, side)), (side, side), smoothing).flatten(1)
    return smooth.amax(1).numpy(), smooth


def ours(weight: float, smoothing: float = 0.5) -> Rule:
    """Returns `HeadWithMemory`'s rule with the ready head."""
    return lambda data, drawn: beside(standardised(data, drawn), drawn, data.head, weight, smoothing)


@lru_cache(maxsize=1)
def fitted(data: Set, drawn: tuple[int, ...]) -> HeadOutputs:
    """Returns the outputs of the ready head after `adapt --fit_head` has trained it further on the drawn images."""
    assert data.drawn is not None
    head = copy.deepcopy(data.ready)
    fit(head, data.drawn, drawn, seed=0)
    return outputs_of(head, data.tokens, data.rows)


def fitted_alone(data: Set, drawn: Sequence[int]) -> tuple[np.ndarray, Tensor]:
    """The fitted head alone."""
    said = fitted(data, tuple(drawn))
    return said.score, said.test


def fitted_beside(data: Set, drawn: Sequence[int]) -> tuple[np.ndarray, Tensor]:
    """`HeadWithMemory` with the fitted head."""
    return beside(standardised(data, drawn), drawn, fitted(data, tuple(drawn)), 0.5, 0.5)


def farthest(bank: Tensor, count: int) -> Tensor:
    """Returns `count` rows that cover a bank: each is the row farthest from the earlier ones.

    Args:
        bank: `[R, C]`, L2-normalised.
        count: Number of rows, at most R.

    Reference: PatchCore (arXiv 2106.08265), Algorithm 1, without its random projection; begun with the first row.
    """
    nearest, chosen = torch.full((len(bank),), -1.0), [0]
    for _ in range(count - 1):
        nearest = torch.maximum(nearest, bank @ bank[chosen[-1]])
        chosen.append(int(nearest.argmin()))
    return torch.tensor(sorted(chosen))


def part_of_memory(share: float, coreset: bool) -> Rule:
    """Returns `HeadWithMemory`'s rule with a share of the patches: sampled as by `MemoryBank`, or the farthest ones."""

    def rule(data: Set, drawn: Sequence[int]) -> tuple[np.ndarray, Tensor]:
        key, tokens = ("set", "object"), [layer[list(drawn)] for layer in data.rows]
        count = round(share * len(drawn) * (tokens[0].shape[1] - 1))
        memory = MemoryBank(None if coreset else count)
        memory.fit(key, tokens)
        if coreset:
            chosen = [farthest(bank, count) for bank in memory.banks[key]]
            memory.banks[key], memory.owners[key] = (
                [rows[which] for rows, which in zip(all_rows[key], chosen, strict=True)]
                for all_rows in (memory.banks, memory.owners)
            )
        total = torch.zeros(data.test.shape[1:3])
        for index, (layer, (mean, deviation)) in enumerate(zip(data.tokens, memory.spread(key), strict=True)):
            distance = memory.distance([key] * len(layer), index, layer)
            total += (distance - mean) / deviation / len(data.tokens)
        return beside(total, drawn, data.head, 0.5, 0.5)

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
PARTS: dict[str, Rule] = {
    f"with head, 0.5, {share:.0%} of the memory, {'coreset' if coreset else 'at random'}": part_of_memory(
        share, coreset
    )
    for share in (0.1, 0.01)
    for coreset in (False, True)
}
FITTED: dict[str, Rule] = {"fitted head alone": fitted_alone, "with fitted head, 0.5": fitted_beside}


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
    """Returns per image the histogram of the values of both kinds of pixels, `[T, 2, BINS]`."""
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
    results, ready = {}, ready_head(options.head)
    for name in options.sets:
        data = read_set(options.features, name, ready, options.out / "cache")
        for shots in (4, 16):
            if shots > data.pool.shape[1]:
                continue
            results[f"{name}, {shots}"] = compare(data, shots)
            print(table(name, shots, results[f"{name}, {shots}"]), flush=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=1))


def compare(data: Set, shots: int) -> dict[str, dict[str, list[float]]]:
    """Returns image and pixel AUROC per rule, and its differences to the two baselines, with intervals."""
    rng, pool = np.random.default_rng(0), data.pool.shape[1]
    draws = [sorted(rng.choice(pool, shots, replace=False).tolist()) for _ in range(DRAWS if shots < pool else 1)]
    rules = {**RULES, **(FITTED if data.drawn else {}), **(PARTS if shots == 16 else {})}
    said = {rule: [of(data, drawn) for drawn in draws] for rule, of in rules.items()}
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
                (f"{metric} above unfitted", of[metric] - values["with head, 0.5"][metric]),
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
