"""FAPrompt's released heads: the state of its prompt learner, which holds the prior network."""

from collections.abc import Sequence
from typing import Any

from afclip_lightning.heads.format import Converted, Format, Tensors, only, papers_backbone

NORMAL, ABNORMAL = "object.", "damaged object."
LEARNER = "prompt_learner"


def recognises(content: Any) -> bool:
    """Returns whether a file holds a prompt learner with a prior network."""
    state = content.get(LEARNER) if isinstance(content, dict) else None
    return isinstance(state, dict) and any(str(name).startswith("patch_meta_net.") for name in state)


def convert(contents: Sequence[Any]) -> Converted:
    """Returns the prompts and the prior network. A leading axis of 1 is dropped, and deep tokens are stacked."""
    tensors = Tensors(only(contents[0], LEARNER))
    normal = tensors.take("ctx_pos", 1, 1, None, None)[0]  # [1, n, width]
    n_normal, width = normal.shape[1:]
    abnormal = tensors.take("ctx_neg", 1, None, None, width)[0]  # [K, m, width]
    n_prompts, n_abnormal = abnormal.shape[:2]
    deep, sizes = tensors.take_deep(width)
    hidden = tensors.take("patch_meta_net.linear1.weight", None, None)  # its inputs are the patches of the prior
    found = {
        "prompts.normal_tokens": normal,
        "prompts.abnormal_tokens": abnormal,
        "prior_network.0.weight": hidden,
        "prior_network.0.bias": tensors.take("patch_meta_net.linear1.bias", len(hidden)),
        "prior_network.2.weight": tensors.take("patch_meta_net.linear2.weight", width, len(hidden)),
        "prior_network.2.bias": tensors.take("patch_meta_net.linear2.bias", width),
        **{f"prompts.{name}": tokens for name, tokens in deep.items()},
    }
    prompts = tensors.take_prompts("pos", NORMAL, 1, n_normal, width)
    prompts += tensors.take_prompts("neg", ABNORMAL, n_prompts, n_normal + n_abnormal, width)
    left_out = tensors.leave("compound_prompt_projections.")
    tensors.end()
    arguments = {
        "n_normal_tokens": n_normal,
        "n_abnormal_tokens": n_abnormal,
        "n_abnormal_prompts": n_prompts,
        **sizes,
    }
    return Converted(found, arguments, prompts, left_out)


FORMAT = Format(
    method="FAPrompt",
    project="github.com/mala-lab/FAPrompt",
    weights="on a drive that the repository names; its authors use epoch 7",
    licence="MIT for the repository; not stated for the weights on the drive",
    backbone=papers_backbone("bilinear", "quick_gelu"),
    arguments={
        "layer": 24,
        "vv_from": 6,
        "normal_words": NORMAL,
        "abnormal_words": ABNORMAL,
        "dap": True,
        "prior_patches": "first_k",  # as in the code; the paper uses the top patches
        "n_prior_patches": 10,
        "aggregation": "mean",
        "half_deep_tokens": True,
        "temperature": 0.07,
        "free_maximum_weight": 2 / 3,
        "map_sigma": 10.0,
    },
    recognises=recognises,
    convert=convert,
)
