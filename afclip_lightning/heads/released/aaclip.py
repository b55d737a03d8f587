"""AA-CLIP's heads, in the form of its training: one file per stage. The project has released none."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from afclip_lightning.heads.format import Converted, Format, Tensors, papers_backbone

TEXT, IMAGE = "text_adapter", "image_adapter"
OPTIMIZERS = ("text_optimizer", "image_optimizer")  # two thirds of a file, and not part of the head


def files(path: Path) -> tuple[Path, ...]:
    """Returns the file of the text stage and that of the visual stage, which has one file per epoch."""
    found = re.fullmatch(rf"(.*){IMAGE}(_\d+)?\.pth", path.name)
    if found is None:
        raise ValueError(
            f"is one of two files: name {IMAGE}.pth, or that of an epoch, {IMAGE}_20.pth, beside {TEXT}.pth"
        )
    return path.with_name(f"{found[1]}{TEXT}.pth"), path


def recognises(content: Any) -> bool:
    """Returns whether a file holds the adapters of one stage."""
    return isinstance(content, dict) and (TEXT in content or IMAGE in content)


def convert(contents: Sequence[Any]) -> Converted:
    """Returns the adapters and projections of both stages, which have no bias."""
    (text, text_epochs), (image, image_epochs) = (_stage(*pair) for pair in zip(contents, (TEXT, IMAGE), strict=True))
    found: dict[str, Tensor] = {}
    texts = text.take_all("{}.fc.0.weight", None, None)  # the last one is the projection
    if not texts:
        raise ValueError("has no 0.fc.0.weight in the text stage")
    found["text_anchors.projection.weight"] = texts.pop()
    found |= {f"text_anchors.adapters.{i}.linear.weight": weight for i, weight in enumerate(texts)}
    adapters = image.take_all("layer_adapters.{}.fc.0.weight", None, None)
    found |= {f"image_adapters.{i}.linear.weight": weight for i, weight in enumerate(adapters)}
    relu = "det_proj.fc.0.weight" in image.left  # the only sign of training with a rectifier after projections
    name = "fc.0.weight" if relu else "fc.weight"
    patches = image.take_all(f"seg_proj.{{}}.{name}", None, None)
    found |= {f"patch_projections.{i}.weight": weight for i, weight in enumerate(patches)}
    found["image_projection.weight"] = image.take(f"det_proj.{name}", None, None)
    text.end()
    image.end()
    arguments = {"text_adapters": len(texts), "image_adapters": len(adapters), "projection_relu": relu}
    arguments |= {"text_epochs": max(text_epochs, 1)}
    return Converted(found, arguments, known={"epochs": text_epochs + image_epochs})


def _stage(content: Any, name: str) -> tuple[Tensors, int]:
    """Returns the tensors of a stage and its epochs.

    Raises:
        ValueError: The content belongs to another stage, or holds other entries.
    """
    if not isinstance(content, dict) or name not in content:
        raise ValueError(f"has no {name} where the files of both stages should be")
    if unknown := sorted(map(str, content.keys() - {name, "epoch", *OPTIMIZERS})):
        raise ValueError(f"holds an entry that is not known here: {unknown[0]}")
    epochs = content.get("epoch", 0)
    if not isinstance(epochs, int) or epochs < 0:
        raise ValueError("epoch is not a number of epochs")
    return Tensors(content[name]), epochs


FORMAT = Format(
    method="AACLIP",
    project="github.com/Mwxinnn/AA-CLIP",
    weights="none is released; its training writes text_adapter.pth and image_adapter_N.pth, of epoch N",
    licence="Apache-2.0 for the repository; you choose the licence of heads that you train with it",
    backbone=papers_backbone("bicubic_antialias", "gelu"),  # although these weights were trained with QuickGELU
    arguments={
        "layers": [6, 12, 18, 24],
        "text_weight": 0.1,
        "image_weight": 0.1,
        "map_fusion": "maps",  # as in the code; the paper sums tokens
        "names": "description",
        "temperature": 0.01,
        "blur_window": 7,
        "blur_sigma": 1.0,
    },
    recognises=recognises,
    convert=convert,
    files=files,
)
