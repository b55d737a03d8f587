"""Hybrid prompts: tokens between the blocks of a tower, of which one part is learned and one is made for each image."""

import torch
from torch import Tensor, nn

from afclip_lightning.backbones.attention import run_beside
from afclip_lightning.backbones.clip import ClipBackbone


class HybridTokens(nn.Module):
    """Tokens for the first blocks of a tower: static ones, learned for each block, and dynamic ones, made of an image.

    A block's tokens are the sum of both. The dynamic ones are the same for every block, each of a linear layer's own.

    Args:
        blocks: Blocks that have tokens.
        n_tokens: Tokens a block.
        width: Channels of a token.
        condition: Channels of what dynamic tokens are made of.
        static: Whether there are static tokens.
        dynamic: Whether there are dynamic tokens.
        init_std: Standard deviation of the static tokens' initial values.
        half: Round the tokens to 16-bit floats, as AdaCLIP's official code does, and so, in training, what each
            copy of them adds to their gradient.

    Raises:
        ValueError: There are no blocks, no tokens, or neither kind of them.

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
        """Returns the dynamic tokens `[B, n, width]` of `[B, condition]`.

        Raises:
            TypeError: There are none.
        """
        if self.dynamic is None:
            raise TypeError("these prompts have no dynamic tokens")
        tokens: Tensor = self.dynamic(condition).unflatten(-1, (self.n_tokens, -1))
        return tokens

    def forward(self, condition: Tensor, copies: int = 1) -> tuple[Tensor, ...]:
        """Returns the tokens of each block, `[B * copies, n, width]`, those of an image together.

        Args:
            condition: `[B, condition]`, what dynamic tokens are made of; of static ones it is the B alone.
            copies: Sequences that each image's tokens are for.
        """
        tokens = condition.new_zeros(self.blocks, 1, 1, 1) if self.static is None else self.static[:, None]
        if self.dynamic is not None:
            tokens = tokens + self.made_of(condition)
        tokens = tokens.expand(-1, condition.shape[0], -1, -1)[:, :, None].expand(-1, -1, copies, -1, -1).flatten(1, 2)
        if self.rounded:
            tokens = tokens.half().to(condition)
        return tokens.unbind()


class PromptedBlocks:
    """Runs the blocks of a vision tower with prompts beside the image's tokens; one is for one pass.

    The first blocks have prompts of their own, which take the place of what the block before made of its prompts; the
    others are given just that.

    Args:
        backbone: Whose blocks they are.
        prompts: Of the first blocks, `[B, n, C]` each; one at least.
    """

    def __init__(self, backbone: ClipBackbone, prompts: tuple[Tensor, ...]) -> None:
        self.n_prefix = backbone.vision.n_prefix
        self.prompts = prompts
        self.carried = prompts[0]

    def __call__(self, number: int, block: nn.Module, tokens: Tensor, rotation: Tensor | None) -> Tensor:
        """Returns the image's tokens after a block; see `towers.Step`."""
        prompts = self.prompts[number - 1] if number <= len(self.prompts) else self.carried
        tokens, self.carried = run_beside(block, tokens, prompts.to(tokens), self.n_prefix, rotation)
        return tokens
