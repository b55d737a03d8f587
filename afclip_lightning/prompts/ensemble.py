"""Text embeddings of the two states, averaged over an ensemble of sentences."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.types import Sample

Rule = Literal["mean_then_norm", "norm_mean_norm"]
Names = Literal["category", "class_name"]


def name_of(sample: Sample, names: Names) -> str:
    """Returns the name of a sample's category in prompts.

    Args:
        sample: The sample.
        names: `category` is the name of its folder (`metal_nut`). `class_name` is the name that the dataset gives for
            prompts (`metal nut`).
    """
    return sample.class_name if names == "class_name" else sample.category


def average_states(normal: Tensor, abnormal: Tensor, rule: Rule) -> Tensor:
    """Returns one embedding per state `[..., 2, D]`, L2-normalised, row 0 normal and row 1 abnormal.

    Args:
        normal: `[..., K, D]`, one row per sentence, not normalised.
        abnormal: The same for the abnormal state. K may differ.
        rule: `mean_then_norm` averages the embeddings without normalisation, so that longer vectors weigh more
            (WinCLIP's re-implementations, AnoVL). `norm_mean_norm` normalises each embedding first (CLIP, APRIL-GAN,
            AA-CLIP).

    Raises:
        ValueError: The rule is unknown, or a state has no sentence.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
    counts = normal.shape[-2], abnormal.shape[-2]
    if 0 in counts:
        raise ValueError(f"each state needs a sentence, got {counts[0]} normal and {counts[1]} abnormal")
    states = [normal, abnormal]
    if rule == "norm_mean_norm":
        states = [F.normalize(state, dim=-1) for state in states]
    return F.normalize(torch.stack([state.mean(dim=-2) for state in states], dim=-2), dim=-1)


def embed_states(backbone: ClipBackbone, normal: Sequence[str], abnormal: Sequence[str], rule: Rule) -> Tensor:
    """Returns one text embedding per state `[2, D]`, L2-normalised, row 0 normal and row 1 abnormal.

    It is an ordinary tensor without gradient, also inside Lightning's inference mode, so that test-time adaptation can
    use it.

    Args:
        backbone: The backbone, which encodes all sentences in one call.
        normal: Sentences of the normal state.
        abnormal: Sentences of the abnormal state.
        rule: See `average_states`.

    Raises:
        ValueError: The rule is unknown, or a state has no sentence.
    """
    with torch.inference_mode(False), torch.no_grad():
        embeddings = backbone.encode_text([*normal, *abnormal])
        return average_states(embeddings[: len(normal)], embeddings[len(normal) :], rule)


class CategoryText:
    """A cache of text embeddings per category. An entry is made for the first image of a category.

    Args:
        embed: Function from a sample to the text embeddings of its category, `[2, D]`.
    """

    def __init__(self, embed: Callable[[Sample], Tensor]) -> None:
        self.embed = embed
        self.kept: dict[tuple[str, str], Tensor] = {}

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        """Returns the text embeddings of the category of each sample, `[B, 2, D]`."""
        for sample in samples:
            if (sample.dataset, sample.category) not in self.kept:
                self.kept[sample.dataset, sample.category] = self.embed(sample)
        return torch.stack([self.kept[sample.dataset, sample.category] for sample in samples])

    def reset(self) -> None:
        """Clears the cache, because the backbone may move to another device between two passes."""
        self.kept.clear()
