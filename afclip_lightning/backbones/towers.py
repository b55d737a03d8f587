"""One small interface over the vision and text towers that open_clip builds."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from afclip_lightning.backbones.positional import resize_positional_embedding
from afclip_lightning.backbones.spec import PosEmbedResize
from afclip_lightning.errors import WeightsError

Taps = tuple[tuple[Tensor, ...], Tensor | None]  # tokens of each tapped layer, image embedding


class VisionTower(nn.Module, ABC):
    """A vision tower seen as blocks with taps and a per-token projection into the joint space.

    Attributes:
        depth: Number of blocks.
        width: C, channels of a tapped token.
        patch_size: Side of a patch in pixels.
    """

    depth: int
    width: int
    patch_size: int

    @abstractmethod
    def resize(self, image_size: int, rule: PosEmbedResize) -> None:
        """Makes the tower take square images of another size, a multiple of the patch size."""

    @abstractmethod
    def tap(self, image: Tensor, layers: Sequence[int], image_embedding: bool) -> Taps:
        """Returns the residual stream `[B, 1 + N, C]` after each of `layers`, and the image embedding `[B, D]`.

        Args:
            image: `[B, 3, H, W]`, normalised.
            layers: Blocks, counted from 1.
            image_embedding: Whether to run the remaining blocks for the embedding; `None` is returned otherwise.
        """

    @abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Returns tokens `[..., C]` in the joint space `[..., D]`: the tower's final normalisation and projection."""


class ClipVisionTower(VisionTower):
    """open_clip's own vision transformer.

    Raises:
        WeightsError: Another kind of tower, or one that pools by attention.
    """

    def __init__(self, visual: VisionTransformer) -> None:
        super().__init__()
        if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None or visual.proj is None:
            raise WeightsError(f"vision tower {type(visual).__name__} has no patch tokens that its projection fits")
        self.visual = visual
        self.depth = len(visual.transformer.resblocks)
        self.width = visual.transformer.width
        self.patch_size = visual.patch_size[0]

    def resize(self, image_size: int, rule: PosEmbedResize) -> None:
        """See the base class."""
        side = image_size // self.patch_size
        table = resize_positional_embedding(
            self.visual.positional_embedding.data, self.visual.grid_size, (side, side), rule
        )
        self.visual.positional_embedding = nn.Parameter(table, requires_grad=False)
        self.visual.grid_size = (side, side)
        self.visual.image_size = (image_size, image_size)

    def tap(self, image: Tensor, layers: Sequence[int], image_embedding: bool) -> Taps:
        """See the base class."""
        return _tap(self.visual, image, layers, image_embedding)

    def project(self, tokens: Tensor) -> Tensor:
        """See the base class."""
        projected: Tensor = self.visual.ln_post(tokens) @ self.visual.proj
        return projected


class TimmVisionTower(VisionTower):
    """A timm vision transformer inside an open_clip model, as in SigLIP.

    A tower without a class token (SigLIP pools by attention) gets the mean of its patch tokens in that place.
    """

    def __init__(self, visual: TimmModel) -> None:
        super().__init__()
        trunk = visual.trunk
        if not hasattr(trunk, "blocks") or not hasattr(trunk, "patch_embed"):
            raise WeightsError(f"vision tower {type(trunk).__name__} is no vision transformer: it cannot be tapped")
        self.visual = visual
        self.depth = len(trunk.blocks)
        self.width = trunk.embed_dim
        self.patch_size = trunk.patch_embed.patch_size[0]

    def resize(self, image_size: int, rule: PosEmbedResize) -> None:
        """See the base class."""
        trunk = self.visual.trunk
        grid, table = trunk.patch_embed.grid_size, trunk.pos_embed
        self.visual.set_input_size(image_size)
        if table is not None:  # set_input_size has used timm's rule; use ours
            resized = resize_positional_embedding(table.data[0], grid, trunk.patch_embed.grid_size, rule)
            trunk.pos_embed = nn.Parameter(resized[None], requires_grad=False)

    def tap(self, image: Tensor, layers: Sequence[int], image_embedding: bool) -> Taps:
        """See the base class."""
        return _tap(self.visual, image, layers, image_embedding)

    def project(self, tokens: Tensor) -> Tensor:
        """See the base class."""
        trunk = self.visual.trunk
        projected: Tensor = self.visual.head(trunk.head(trunk.fc_norm(trunk.norm(tokens))))
        return projected


def _tap(visual: VisionTransformer | TimmModel, image: Tensor, layers: Sequence[int], image_embedding: bool) -> Taps:
    output = visual.forward_intermediates(
        image,
        indices=[layer - 1 for layer in layers],  # papers count blocks from 1, open_clip from 0
        stop_early=not image_embedding,
        intermediates_only=not image_embedding,
        output_fmt="NLC",
        output_extra_tokens=True,
    )
    patches = output["image_intermediates"]
    prefixes = output.get("image_intermediates_prefix") or [p.mean(1, keepdim=True) for p in patches]
    tokens = tuple(torch.cat([pre[:, :1], p], dim=1) for pre, p in zip(prefixes, patches, strict=True))
    return tokens, output.get("image_features")


class TextTower(nn.Module):
    """open_clip's text transformer, open to embeddings that are not of tokens.

    Args:
        clip: An open_clip model: plain `CLIP` holds the text parts itself, `CustomTextCLIP` under `text`.
    """

    token_embedding: nn.Embedding
    positional_embedding: Tensor
    transformer: nn.Module
    ln_final: nn.Module
    attn_mask: Tensor | None

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        text: Any = getattr(clip, "text", clip)
        pool = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", None)
        if pool not in ("argmax", "last") or getattr(text, "cls_emb", None) is not None:
            raise WeightsError(f"text tower {type(text).__name__} with pooling {pool!r} is not supported")
        self.pools_last = pool == "last"
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.transformer = text.transformer
        self.ln_final = text.ln_final
        self.text_projection = text.text_projection
        self.register_buffer("attn_mask", text.attn_mask, persistent=False)
        self.context_length: int = self.positional_embedding.shape[0]

    def forward(self, embeddings: Tensor, end: int) -> Tensor:
        """Returns text embeddings `[K, D]`, not normalised.

        Args:
            embeddings: `[K, T, width]`, token embeddings without the positional one; cut to the context length.
            end: Position of the end-of-text token, the same for all K. Under the causal mask no later position can
                change the result, so the sequence is cut there.
        """
        length = self.context_length if self.attn_mask is None or self.pools_last else end + 1
        hidden = embeddings[:, :length] + self.positional_embedding[:length]
        hidden = self.transformer(
            hidden, attn_mask=None if self.attn_mask is None else self.attn_mask[:length, :length]
        )
        pooled = self.ln_final(hidden[:, -1 if self.pools_last else end])
        if self.text_projection is None:
            return pooled
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(pooled)
        projected: Tensor = pooled @ self.text_projection
        return projected
