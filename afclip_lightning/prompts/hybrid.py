"""Hybrid prompts: tokens at the blocks of a tower, the sum of learned tokens and of tokens computed from each image."""

import torch
from torch import Tensor, nn

from afclip_lightning.backbones.attention import run_beside
from afclip_lightning.backbones.clip import ClipBackbone


class HybridTokens(nn.Module):
    """Tokens for the first blocks of a tower: static ones, learned per block, and dynamic ones, computed from an image.

    The tokens of a block are the sum of both. The dynamic tokens are the same for all blocks. Each dynamic token has
    its own linear layer.

    Args:
        blocks: Number of blocks with tokens.
        n_tokens: Tokens per block.
        width: Channels of a token.
        condition: Channels of the image embedding that dynamic tokens are computed from.
        static: Whether there are static tokens.
        dynamic: Whether there are dynamic tokens.
        init_std: Standard deviation of the static tokens' initial values.
        half: Whether tokens are rounded to 16-bit floats, as in AdaCLIP's official code. In training, the gradient of
            each copy of a token is rounded as well.

    Raises:
        ValueError: The number of blocks or tokens is 0, or both kinds of tokens are off.

    Reference: AdaCLIP (Cao et al., 2024, arXiv 2407.15795).
    """

    def __init__(
        self,
        blocks: int,
        n_tokens: int,
        width: int,
        condition: int,
        static: bool = True,
        dynamic: bool = True,
        init_std: float = 0.02,
        half: bool = False,
    ) -> None:
        super().__init__()
        if min(blocks, n_tokens) < 1 or not (static or dynamic):
            raise ValueError(
                "hybrid prompts need at least 1 block, 1 token, and static or dynamic ones, got "
                f"{blocks} blocks, {n_tokens} tokens, static {static}, dynamic {dynamic}"
            )
        self.blocks, self.n_tokens, self.rounded = blocks, n_tokens, half
        self.static = nn.Parameter(init_std * torch.randn(blocks, n_tokens, width)) if static else None
        self.dynamic = nn.Linear(condition, n_tokens * width) if dynamic else None

    def made_of(self, condition: Tensor) -> Tensor:
        """Returns the dynamic tokens `[B, n, width]` for image embeddings `[B, condition]`.

        Raises:
            TypeError: The object has no dynamic tokens.
        """
        if self.dynamic is None:
            raise TypeError("these prompts have no dynamic tokens")
        tokens: Tensor = self.dynamic(condition).unflatten(-1, (self.n_tokens, -1))
        return tokens

    def forward(self, condition: Tensor, copies: int = 1) -> tuple[Tensor, ...]:
        """Returns the tokens per block, `[B * copies, n, width]`. The copies of an image are adjacent.

        Args:
            condition: `[B, condition]`, image embeddings. Static tokens use only B.
            copies: Number of sequences per image.
        """
        tokens = condition.new_zeros(self.blocks, 1, 1, 1) if self.static is None else self.static[:, None]
        if self.dynamic is not None:
            tokens = tokens + self.made_of(condition)
        tokens = tokens.expand(-1, condition.shape[0], -1, -1)[:, :, None].expand(-1, -1, copies, -1, -1).flatten(1, 2)
        if self.rounded:
            tokens = tokens.half().to(condition)
        return tokens.unbind()


class PromptedBlocks:
    """Runs the blocks of a vision tower with prompt tokens beside the image's tokens. An object serves one pass.

    In the first blocks, new prompts replace the output of the previous block at their positions. The later blocks
    receive that output.

    Args:
        backbone: The backbone.
        prompts: Prompts of the first blocks, `[B, n, C]` each, at least one.
    """

    def __init__(self, backbone: ClipBackbone, prompts: tuple[Tensor, ...]) -> None:
        self.n_prefix = backbone.vision.n_prefix
        self.prompts = prompts
        self.carried = prompts[0]

    def __call__(self, number: int, block: nn.Module, tokens: Tensor, rotation: Tensor | None) -> Tensor:
        """Returns the image's tokens after a block. See `towers.Step`."""
        prompts = self.prompts[number - 1] if number <= len(self.prompts) else self.carried
        tokens, self.carried = run_beside(block, tokens, prompts.to(tokens), self.n_prefix, rotation)
        return tokens
