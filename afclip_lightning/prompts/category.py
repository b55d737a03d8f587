"""Learnable prompts with the name of the category."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.prompts.learner import SentenceIds, WordTokens, fill_gap
from afclip_lightning.types import Sample


class CategoryPrompts(WordTokens):
    """Learnable tokens, the same for every category: `[SOT] [N1] … [NK] normal bottle. [EOT]`.

    Args:
        backbone: The backbone whose text tower is used. It is not stored.
        normal: Words that may precede the category in a normal prompt.
        abnormal: Words that may precede the category in an abnormal prompt.
        n_tokens: K, number of learnable tokens per state.
        init_std: Standard deviation of the tokens' initial values.
        unified: Whether both states share the tokens (CoOp). Otherwise each state has its own (KAnoCLIP).
        start: Words whose embeddings initialise the tokens, one per token. Empty for a random initialisation.

    Raises:
        ValueError: The number of words in `start` is not the number of tokens.

    Reference: KAnoCLIP, Eq. (1); CoOp, Eq. (2).
    """

    word_tokens = ("tokens",)

    def __init__(
        self,
        backbone: ClipBackbone,
        normal: Sequence[str],
        abnormal: Sequence[str],
        n_tokens: int,
        init_std: float,
        unified: bool = False,
        start: str = "",
    ) -> None:
        super().__init__()
        self.adjectives = (tuple(normal), tuple(abnormal))
        self.unified = unified
        states = 1 if unified else 2
        if start:
            words = _embeddings(backbone, start)
            if len(words) != n_tokens:
                raise ValueError(
                    f"the words to start from, {start!r}, are {len(words)} tokens of this text tower, and there are "
                    f"{n_tokens} learnable ones: give as many, or no words for a random start"
                )
            self.tokens = nn.Parameter(words.expand(states, -1, -1).clone())
        else:
            self.tokens = nn.Parameter(init_std * torch.randn(states, n_tokens, backbone.text.width))
        self.ids = SentenceIds(self._texts, n_tokens)

    def _texts(self, class_name: str) -> list[str]:
        return [f"{adjective} {class_name}." for state in self.adjectives for adjective in state]

    def forward(self, backbone: ClipBackbone, class_names: Sequence[str]) -> Tensor:
        """Returns the embeddings of both states per category, averaged over the adjectives, `[M, 2, D]`, in one pass.

        Args:
            backbone: The backbone that the prompts were built for.
            class_names: Names of the M categories.

        Raises:
            ValueError: A prompt does not fit into the text tower's context.
        """
        # by state, so that prompts with the same tokens are adjacent
        ids, ends = self.ids(backbone, class_names)  # [M, adjectives, T] and [M, adjectives]
        counts = [len(adjectives) for adjectives in self.adjectives]
        end = torch.cat([of_state.flatten() for of_state in ends.split(counts, dim=1)])
        by_state = torch.cat([of_state.flatten(0, 1) for of_state in ids.split(counts, dim=1)])
        sizes = [len(class_names) * count for count in counts]
        of_states = self.tokens.expand(2, -1, -1)
        tokens = torch.cat([one.expand(size, -1, -1) for one, size in zip(of_states, sizes, strict=True)])
        prompts = fill_gap(backbone.text.token_embedding(by_state), tokens)
        alike = None if self.unified else sizes
        states = backbone.text(prompts, end, shared=1 + self.tokens.shape[1], sizes=alike).split(sizes)
        return torch.stack([state.unflatten(0, (len(class_names), -1)).mean(dim=1) for state in states], dim=1)

    def of_samples(self, backbone: ClipBackbone, samples: Sequence[Sample]) -> Tensor:
        """Returns the embeddings of the category of each sample, `[B, 2, D]`, L2-normalised, in one pass.

        Args:
            backbone: The backbone that the prompts were built for.
            samples: The B samples.

        Raises:
            ValueError: A prompt does not fit into the text tower's context.
        """
        class_names = list(dict.fromkeys(sample.class_name for sample in samples))
        text = F.normalize(self(backbone, class_names).float(), dim=-1)
        return torch.stack([text[class_names.index(sample.class_name)] for sample in samples])

    def shifted(self, backbone: ClipBackbone, class_names: Sequence[str], shift: Tensor) -> Tensor:
        """Returns the embeddings of both states with a shift added to every learnable token, `[B, 2, D]`, in one pass.

        Args:
            backbone: The backbone that the prompts were built for.
            class_names: Name of the category of each image, or one name for all.
            shift: `[B, width]`, one per image.

        Raises:
            ValueError: A prompt does not fit into the text tower's context.

        Reference: CoCoOp, Eq. (2).
        """
        ids, ends = self.ids(backbone, class_names)  # [B, adjectives, T] and [B, adjectives], or one row
        images, counts = shift.shape[0], [len(adjectives) for adjectives in self.adjectives]
        words = backbone.text.token_embedding(ids).expand(images, -1, -1, -1).flatten(0, 1)
        of_states = self.tokens.expand(2, -1, -1)
        tokens = torch.cat([one.expand(count, -1, -1) for one, count in zip(of_states, counts, strict=True)])
        prompts = fill_gap(words, (tokens + shift[:, None, None]).flatten(0, 1))
        embedded = backbone.text(prompts, ends.expand(images, -1).flatten(), shared=1)  # the start token is shared
        states = embedded.unflatten(0, (-1, sum(counts))).split(counts, dim=1)
        return torch.stack([state.mean(dim=1) for state in states], dim=1)


def _embeddings(backbone: ClipBackbone, words: str) -> Tensor:
    """Returns the token embeddings of words, `[n, width]`, without start and end token."""
    ids = backbone.tokenize([words])
    embedded: Tensor = backbone.text.token_embedding(ids[0, 1 : int(backbone.ends(ids))]).detach()
    return embedded
