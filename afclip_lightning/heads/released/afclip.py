"""AF-CLIP's released heads: two files, the learnable tokens and the adapter, a pickled module.

The classes that the pickle names are never imported: see `archives.read_modules`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from afclip_lightning.backbones.archives import StoredModule, tensors_of
from afclip_lightning.heads.format import Converted, Format, Tensors, papers_backbone

PROMPT, ADAPTER = "_prompt.pt", "_adaptor.pt"  # suffixes after the name of the training set
HEAD_WIDTH = 64
CLASSES = (
    *("clip.adaptor.Adaptor", "clip.adaptor.BasicTransformerBlock", "clip.adaptor.CrossAttention"),
    *("torch.nn.modules.linear.Linear", "torch.nn.modules.normalization.LayerNorm"),
    *("torch.nn.modules.container.Sequential", "torch.nn.modules.dropout.Dropout"),
)


def files(path: Path) -> tuple[Path, ...]:
    """Returns the file of the tokens and that of the adapter. Only their names show that they belong together."""
    for end in (PROMPT, ADAPTER):
        if path.name.endswith(end):
            start = path.name.removesuffix(end)
            return path.with_name(start + PROMPT), path.with_name(start + ADAPTER)
    raise ValueError(f"is one of two files. Name them SET{PROMPT} and SET{ADAPTER}")


def recognises(content: Any) -> bool:
    """Returns whether a file holds a single tensor, or a module."""
    return isinstance(content, (Tensor, StoredModule))


def convert(contents: Sequence[Any]) -> Converted:
    """Returns the tokens and the adapter's tensors as they are."""
    prompt, adapter = contents
    if not isinstance(prompt, Tensor) or not isinstance(adapter, StoredModule):
        raise ValueError("its two files do not hold a tensor and a module")
    tokens = Tensors({"the prompt": prompt}).take("the prompt", 1, None, None)
    tensors = Tensors(tensors_of(adapter))
    weight = tensors.take("attention.attn.to_q.weight", None, None)
    inner, width = weight.shape
    heads = inner // HEAD_WIDTH
    if heads * HEAD_WIDTH != inner:
        raise ValueError(f"attention.attn.to_q.weight has {inner} rows, not a multiple of {HEAD_WIDTH} per head")
    found = {
        "prompts.tokens": tokens,
        "adapter.norm.weight": tensors.take("attention.norm.weight", width),
        "adapter.norm.bias": tensors.take("attention.norm.bias", width),
        "adapter.to_q.weight": weight,
        "adapter.to_k.weight": tensors.take("attention.attn.to_k.weight", inner, width),
        "adapter.to_v.weight": tensors.take("attention.attn.to_v.weight", inner, width),
        "adapter.to_out.weight": tensors.take("attention.attn.to_out.0.weight", width, inner),
        "adapter.to_out.bias": tensors.take("attention.attn.to_out.0.bias", width),
    }
    tensors.end()
    return Converted(found, {"prompt_tokens": tokens.shape[1], "adapter_heads": heads})


FORMAT = Format(
    method="AFCLIP",
    project="github.com/Faustinaqq/AF-CLIP",
    weights="in the repository: weight/SET_prompt.pt and weight/SET_adaptor.pt, trained on SET (mvtec or visa)",
    licence="none is stated, so there is no right to copy or share the weights",
    backbone=papers_backbone("bilinear", "quick_gelu"),
    arguments={
        "layers": [6, 12, 18, 24],
        "scales": [1, 3, 5],
        "aggregation_sigma": 4.0,
        "adapter": True,
        "learnable_prompt": True,
        "states": ["without defect.", "with defect."],
        "temperature": 0.07,
        "map_sigma": 4.0,
    },
    recognises=recognises,
    convert=convert,
    files=files,
    classes=CLASSES,
)
