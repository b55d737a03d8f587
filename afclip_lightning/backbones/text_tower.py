"""The text towers of open_clip, which here also take learnable prompts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from afclip_lightning.backbones.causal_text import walk_to_ends
from afclip_lightning.backbones.tokenizers import Pooling
from afclip_runtime.errors import WeightsError


def check_text_tower(model: str, config: Mapping[str, Any]) -> None:
    """Rejects a model whose text tower is from the hub.

    Building it needs a download, and it takes no learnable prompts.

    Args:
        model: open_clip's name of an architecture.
        config: Its configuration.

    Raises:
        WeightsError: The text tower is from the hub. The message names multilingual models that work.
    """
    if name := config["text_cfg"].get("hf_model_name"):
        raise WeightsError(
            f"{model}: its text tower ({name}) is one of the hub's, which takes no learned prompts, and is not built "
            "here. Models of many languages that are: ViT-H-14-worldwide (MetaCLIP 2), ViT-B-16-SigLIP2-512."
        )


class TextTower(nn.Module):
    """open_clip's text transformer. It takes embeddings in place of tokens, such as learnable prompts.

    Args:
        clip: An open_clip model: plain `CLIP` holds the text parts itself, `CustomTextCLIP` under `text`.
    """

    token_embedding: nn.Embedding
    positional_embedding: Tensor
    transformer: Any
    ln_final: nn.Module
    attn_mask: Tensor | None

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        text: Any = getattr(clip, "text", clip)
        pool: Any = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", None)
        if pool not in get_args(Pooling) or getattr(text, "cls_emb", None) is not None:
            raise WeightsError(f"text tower {type(text).__name__} with pooling {pool!r} is not supported")
        self.pooling: Pooling = pool
        eos: Any = getattr(text, "text_eos_id", None) or getattr(text, "eos_id", 0)
        self.eos_id: int = eos
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.transformer = text.transformer
        self.ln_final = text.ln_final
        self.text_projection = text.text_projection
        self.register_buffer("attn_mask", text.attn_mask, persistent=False)
        self.context_length: int = self.positional_embedding.shape[0]

    @property
    def is_causal(self) -> bool:
        """Returns whether attention is causal.

        Positions after the end of a prompt then do not matter and may be cut.
        """
        return self.attn_mask is not None and self.pooling != "last"

    @property
    def width(self) -> int:
        """Returns the channels of a token embedding."""
        return self.token_embedding.embedding_dim

    @property
    def depth(self) -> int:
        """Returns the number of blocks."""
        return len(self.transformer.resblocks)

    def forward(
        self,
        embeddings: Tensor,
        end: Tensor,
        deep_tokens: Sequence[Tensor] = (),
        shared: int = 0,
        sizes: Sequence[int] | None = None,
        adapters: Sequence[Callable[[Tensor], Tensor]] = (),
        projection: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Returns text embeddings `[K, D]`, not normalised.

        Args:
            embeddings: `[K, T, width]`, token embeddings without the positional embedding. If the tower `is_causal`, T
                may end at the last end-of-text token of the K prompts. Otherwise T is the context length.
            end: `[K]`, int64, position of the end-of-text token per prompt.
            deep_tokens: Per block from the second on, tokens for the positions 1 to n: `[n, width]` for all prompts, or
                `[K, n, width]`.
            shared: Number of first positions that prompts have in common, deep tokens included. A causal tower computes
                them once.
            sizes: Numbers of consecutive prompts that have them in common. `None` means all K.
            adapters: Per block from the first on, a function of the tokens `[K, T, width]` after it.
            projection: Function from normalised end-of-text tokens `[K, width]` to text embeddings, in place of the
                tower's projection.
        """
        hidden = embeddings + self.positional_embedding[: embeddings.shape[1]]
        plain = all(isinstance(block, ResidualAttentionBlock) for block in self.transformer.resblocks)
        if self.is_causal and plain and not adapters:
            pooled = walk_to_ends(self.transformer.resblocks, hidden, end, deep_tokens, shared, sizes)
        else:
            hidden = self._run(hidden, deep_tokens, adapters)
            rows = torch.arange(hidden.shape[0], device=end.device)
            pooled = hidden[:, -1] if self.pooling == "last" else hidden[rows, end]
        pooled = self.ln_final(pooled)
        if projection is not None:
            return projection(pooled)
        if self.text_projection is None:
            return pooled
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(pooled)
        projected: Tensor = pooled @ self.text_projection
        return projected

    def _run(
        self, hidden: Tensor, deep_tokens: Sequence[Tensor], adapters: Sequence[Callable[[Tensor], Tensor]]
    ) -> Tensor:
        """Returns prompts `[K, T, width]` after the last block."""
        mask = None if self.attn_mask is None else self.attn_mask[: hidden.shape[1], : hidden.shape[1]]
        for index, block in enumerate(self.transformer.resblocks):
            if 1 <= index <= len(deep_tokens):
                tokens = deep_tokens[index - 1].to(hidden).expand(hidden.shape[0], -1, -1)
                hidden = torch.cat([hidden[:, :1], tokens, hidden[:, 1 + tokens.shape[1] :]], dim=1)
            hidden = block(hidden, attn_mask=mask)
            if index < len(adapters):
                hidden = adapters[index](hidden)
        return hidden
