"""AnomalyCLIP's released heads: the state of its prompt learner."""

from collections.abc import Sequence
from typing import Any

from afclip_lightning.heads.format import Converted, Format, Tensors, only, papers_backbone

NORMAL, ABNORMAL = "object.", "damaged object."
LEARNER = "prompt_learner"


def recognises(content: Any) -> bool:
    """Returns whether a file holds a prompt learner without FAPrompt's prior network."""
    state = content.get(LEARNER) if isinstance(content, dict) else None
    return isinstance(state, dict) and not any(str(name).startswith("patch_meta_net.") for name in state)


def convert(contents: Sequence[Any]) -> Converted:
    """Returns the prompts of the only member. A leading axis of 1 is dropped, and deep tokens are stacked."""
    tensors = Tensors(only(contents[0], LEARNER))
    normal = tensors.take("ctx_pos", 1, 1, None, None)[0]  # [1, n, width]
    count, width = normal.shape[1:]
    abnormal = tensors.take("ctx_neg", 1, None, count, width)[0]  # [K, n, width]
    deep, sizes = tensors.take_deep(width)
    prompts = tensors.take_prompts("pos", NORMAL, 1, count, width)
    prompts += tensors.take_prompts("neg", ABNORMAL, len(abnormal), count, width)
    left_out = tensors.leave("compound_prompt_projections.")
    tensors.end()
    found = {"normal_tokens": normal, "abnormal_tokens": abnormal, **deep}
    arguments = {"prompt_tokens": count, "n_abnormal_prompts": len(abnormal), **sizes}
    return Converted({f"members.0.{name}": tensor for name, tensor in found.items()}, arguments, prompts, left_out)


FORMAT = Format(
    method="AnomalyCLIP",
    project="github.com/zqhang/AnomalyCLIP",
    weights="in the repository: checkpoints/9_12_4_multiscale, trained on VisA; 9_12_4_multiscale_visa, on MVTec AD",
    licence="MIT for the repository, which holds the weights; not stated for the weights",
    backbone=papers_backbone("bilinear", "quick_gelu"),
    arguments={
        "layers": [24],
        "vv_from": 6,
        "normal_words": NORMAL,
        "abnormal_words": ABNORMAL,
        "ensemble": 1,
        "half_deep_tokens": True,
        "temperature": 0.07,
        "map_sigma": 4.0,
    },
    recognises=recognises,
    convert=convert,
)
