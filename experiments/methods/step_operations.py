"""The multiplications of a training step of AF-CLIP, part by part, with the backbone's pass and two smaller heads.

    python -m experiments.methods.step_operations                        # ViT-B/16 at 224 px, 8 images

Counted by torch where an operator tells the part, and by the shapes of the projections; nothing is timed.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.methods.afclip import AFCLIP
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.types import Batch, ClipFeatures
from experiments.methods.benchmark import METHODS, images, operations, quarters

SMALLER = ("UniADet", "MRAD-FT")  # which train on kept features in an epoch or few


def by_operator(call: Callable[[], Any]) -> dict[str, float]:
    """Returns the multiplications of a call in 1e9, of attention, of convolutions and of all else."""
    with FlopCounterMode(display=False) as counter:
        call()
    counts = {"attention": 0.0, "convolution": 0.0, "products": 0.0}
    for operator, count in counter.get_flop_counts()["Global"].items():
        kind = next((kind for kind in ("attention", "convolution") if kind in str(operator)), "products")
        counts[kind] += count / 2e9
    return counts


def of_a_step(method: AnomalyMethod, batch: Batch) -> float:
    """Returns the multiplications of a method's step on kept features, in 1e9."""
    with torch.no_grad():
        features = method.extract(batch)
    return operations(lambda: method.loss(features, batch)["total"].backward()) / 2e9


def main() -> None:
    """Counts and prints a line for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    backbone = ClipBackbone(options.model, "random", image_size=options.image_size)
    method, batch = AFCLIP(backbone, layers=quarters(backbone)), images(options.batch, backbone.image_size, "cpu")
    assert method.adapter is not None
    extracted: list[ClipFeatures] = []
    with torch.no_grad():
        one_pass = operations(lambda: extracted.append(method.extract(batch))) / 2e9
    features = extracted[0]
    step = by_operator(lambda: method.loss(features, batch)["total"].backward())
    text = by_operator(lambda: method.embed_text().sum().backward())
    tokens = sum(layer.shape[0] * layer.shape[1] for layer in features.tokens)
    projections = 2 * 3 * tokens * method.adapter.to_q.weight.numel() / 1e9  # forwards, and by the weights
    parts = {
        "queries, keys and values": projections,
        "mixtures": step["convolution"],
        "attention": step["attention"] - text["attention"],
        "behind it, and the losses": step["products"] - projections - text["products"],
        "prompts": sum(text.values()),
    }
    whole = {"the step": sum(step.values()), "the backbone's pass": one_pass}
    others = {f"a step of {name}": of_a_step(METHODS[name](backbone), batch) for name in SMALLER}
    for name, count in {**parts, **whole, **others}.items():
        print(f"{name:28} {count:6.1f}")


if __name__ == "__main__":
    main()
