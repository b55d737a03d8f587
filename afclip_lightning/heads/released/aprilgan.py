"""APRIL-GAN's released heads: the state of its linear layers, one per tapped layer."""

from collections.abc import Sequence
from typing import Any

from afclip_lightning.heads.format import Converted, Format, Tensors, only, papers_backbone

LAYERS = "trainable_linearlayer"


def recognises(content: Any) -> bool:
    """Returns whether a file holds the linear layers."""
    return isinstance(content, dict) and LAYERS in content


def convert(contents: Sequence[Any]) -> Converted:
    """Returns the linear layers, in the order of their numbers."""
    tensors = Tensors(only(contents[0], LAYERS))
    weights = tensors.take_all("fc.{}.weight", None, None)
    biases = tensors.take_all("fc.{}.bias", None)
    tensors.end()
    if not weights or len(weights) != len(biases):
        raise ValueError(f"has {len(weights)} weights and {len(biases)} biases of linear layers")
    found = {f"linear.{i}.weight": weight for i, weight in enumerate(weights)}
    return Converted(found | {f"linear.{i}.bias": bias for i, bias in enumerate(biases)})


FORMAT = Format(
    method="APRILGAN",
    project="github.com/ByChelsea/VAND-APRIL-GAN",
    weights="in the repository: exps/pretrained/SET_pretrained.pth, trained on SET (mvtec or visa)",
    licence="MIT for the repository, which holds the weights; not stated for the weights",
    backbone=papers_backbone("bicubic_antialias", "gelu"),  # although these weights were trained with QuickGELU
    arguments={"layers": [6, 12, 18, 24], "names": "category", "temperature": 0.01},
    recognises=recognises,
    convert=convert,
)
