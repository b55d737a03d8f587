"""Learnable prompt tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from afclip_lightning.backbones.clip import ClipBackbone


class StatePrompts(nn.Module):
    """Learnable tokens, shared by all states, in front of each state's words: `[V1] … [Vn] [SOT] words [EOT]`.

    The learnable tokens stand before the start token, as in the official code.

    Args:
        backbone: Its text tower is used and not kept.
        states: The words of each state, e.g. normal and abnormal; all must have the same number of tokens.
        n_tokens: Learnable tokens.
        init_std: Standard deviation of their initial values.

    Raises:
        ValueError: The states have different numbers of tokens, or do not fit beside the learnable ones.

    Reference: AF-CLIP, Eq. (8).
    """

    embeddings: Tensor

    def __init__(self, backbone: ClipBackbone, states: Sequence[str], n_tokens: int, init_std: float) -> None:
        super().__init__()
        ids = backbone.tokenize(states)
        ends = ids.argmax(dim=1)  # the end token has the largest id
        if len(set(ends.tolist())) != 1:
            raise ValueError(f"states must have the same number of tokens, got {ends.tolist()} for {list(states)}")
        self.end = n_tokens + int(ends[0])
        if self.end >= backbone.text.context_length:
            raise ValueError(
                f"{n_tokens} tokens and the words do not fit in {backbone.text.context_length}, got {self.end}"
            )
        embeddings = backbone.text.token_embedding(ids).detach()  # [K, context, width]
        self.register_buffer("embeddings", embeddings, persistent=False)
        self.tokens = nn.Parameter(init_std * torch.randn(1, n_tokens, embeddings.shape[-1]))

    def forward(self, backbone: ClipBackbone) -> Tensor:
        """Returns the states' text embeddings `[K, D]`, not normalised."""
        prefix = self.tokens.expand(len(self.embeddings), -1, -1)
        embedded: Tensor = backbone.text(torch.cat([prefix, self.embeddings], dim=1), end=self.end)
        return embedded
