"""AdaCLIP's released heads: the trained part of its model, in one flat state."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from afclip_lightning.heads.format import Converted, Format, Tensors, papers_backbone

MODEL = "clip_model."


def recognises(content: Any) -> bool:
    """Returns whether a file holds prompts of both towers beside other tensors of one model."""
    return isinstance(content, dict) and f"{MODEL}text_prompter.static_prompts.0" in content


def convert(contents: Sequence[Any]) -> Converted:
    """Returns prompts, one row per block, and linear layers. The layers of a prompt's tokens are merged into one."""
    tensors = Tensors(contents[0])
    found: dict[str, Tensor] = {}
    arguments: dict[str, Any] = {}
    for tower in ("visual", "text"):
        rows = tensors.take_all(f"{MODEL}{tower}_prompter.static_prompts.{{}}", None, None)
        static = torch.stack(rows)  # [J, M, width]
        depth, count, width = static.shape
        layers = _layers(tensors, f"dynamic_{tower}_prompt_generator", width, None)
        if len(layers) != count:
            raise ValueError(f"has {count} static and {len(layers)} dynamic prompts in the {tower} tower")
        sizes = {"prompt_depth": depth, "prompt_tokens": count}
        if (arguments := arguments or sizes) != sizes:
            raise ValueError(f"has {depth} × {count} prompts in the text tower, and others in the vision tower")
        found[f"{tower}_tokens.static"] = static if tower == "visual" else static[1:]  # text has words in block 1
        found[f"{tower}_tokens.dynamic.weight"] = torch.cat([weight for weight, _ in layers])
        found[f"{tower}_tokens.dynamic.bias"] = torch.cat([bias for _, bias in layers])
    for i, (weight, bias) in enumerate(_layers(tensors, "patch_token_layer", None, None)):
        found |= {f"patch_layers.{i}.weight": weight, f"patch_layers.{i}.bias": bias}
    ((weight, bias),) = _layers(tensors, "cls_token_layer", None, None)
    found |= {"class_layer.weight": weight, "class_layer.bias": bias}
    tensors.end()
    return Converted(found, arguments, left_out=[f"{MODEL}text_prompter.static_prompts.0"])


def _layers(tensors: Tensors, name: str, *shape: int | None) -> list[tuple[Tensor, Tensor]]:
    """Returns the weight and the bias of each linear layer of a part, in the order of their numbers.

    Raises:
        ValueError: The part has no layer, or a layer has no bias or another shape.
    """
    weights = tensors.take_all(f"{MODEL}{name}.head.{{}}.weight", *shape)
    if not weights:
        raise ValueError(f"has no {MODEL}{name}.head.0.weight")
    return [(weight, tensors.take(f"{MODEL}{name}.head.{i}.bias", len(weight))) for i, weight in enumerate(weights)]


FORMAT = Format(
    method="AdaCLIP",
    project="github.com/caoyunkang/AdaCLIP",
    weights="on a drive that the repository names: pretrained_mvtec_colondb.pth, pretrained_visa_clinicdb.pth, trained "
    "on the sets in their names; pretrained_all.pth",
    licence="MIT for the repository; not stated for the weights on the drive",
    backbone=papers_backbone("bicubic", "gelu"),  # although these weights were trained with QuickGELU
    arguments={
        "layers": [6, 12, 18, 24],
        "static_prompts": True,
        "dynamic_prompts": True,
        "visual_prompts": True,
        "text_prompts": True,
        "half_prompts": True,
        "fusion": "top_patches",  # as in the code; the paper uses the highest cluster
        "clusters": 20,
        "fusion_weight": 0.2,
        "names": "category",
        "temperature": 0.01,
        "map_sigma": 4.0,
    },
    recognises=recognises,
    convert=convert,
)
