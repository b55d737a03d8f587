"""One small interface over the vision towers that open_clip builds."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from afclip_lightning.backbones.attention import dual_block, has_dual_path
from afclip_lightning.backbones.positional import resize_positional_embedding
from afclip_lightning.backbones.spec import FeatureSpec, PosEmbedResize
from afclip_lightning.errors import WeightsError
from afclip_lightning.types import ClipFeatures


class VisionTower(nn.Module, ABC):
    """A vision tower seen as blocks with taps and a per-token projection into the joint space.

    Attributes:
        depth: Number of blocks.
        width: C, channels of a tapped token.
        patch_size: Side of a patch in pixels.
    """

    visual: VisionTransformer | TimmModel
    depth: int
    width: int
    patch_size: int

    @abstractmethod
    def resize(self, image_size: tuple[int, int], rule: PosEmbedResize) -> None:
        """Makes the tower take images of another height and width, both multiples of the patch size."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns the patch grid `(h, w)` of an image of this height and width, in pixels."""
        return height // self.patch_size, width // self.patch_size

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """Returns the blocks."""

    @abstractmethod
    def embed(self, image: Tensor) -> Tensor:
        """Returns what the first block takes, `[B, P + N, C]`: P prefix tokens (class token, registers), patches."""

    @abstractmethod
    def pool(self, tokens: Tensor) -> Tensor:
        """Returns the image embedding `[B, D]` of what the last block gives, `[B, P + N, C]`."""

    @abstractmethod
    def normalise(self, tokens: Tensor) -> Tensor:
        """Returns tokens `[..., C]` after the tower's final normalisation."""

    @abstractmethod
    def project(self, tokens: Tensor, final_norm: bool = True) -> Tensor:
        """Returns tokens `[..., C]` in the joint space `[..., D]`: the tower's final normalisation and projection."""

    @property
    def has_dual_path(self) -> bool:
        """Returns whether the V-V path can run beside the blocks."""
        return all(has_dual_path(block) for block in self.blocks)

    def tap(self, image: Tensor, spec: FeatureSpec) -> ClipFeatures:
        """Returns the residual streams after the blocks that `spec` names, both paths from one pass.

        Args:
            image: `[B, 3, H, W]`, normalised.
            spec: Which features. The blocks after the last tap are run for the image embedding only.
        """
        grid = self.grid(image.shape[2], image.shape[3])
        if not spec.vv_layers:
            return self._tap_original(image, spec, grid)
        count = grid[0] * grid[1]
        tokens, vv_tokens = [], []
        last = self.depth if spec.image_embedding else max(spec.layers + spec.vv_layers)
        for number, original, value in self._dual_path(image, spec.vv_from or 1, last):
            if number in spec.layers:
                tokens.append(_class_and_patches(original, original, count))
            if number in spec.vv_layers:
                vv_tokens.append(_class_and_patches(original, value, count))
        features = ClipFeatures(tuple(tokens), grid, tuple(vv_tokens))
        if spec.image_embedding:
            features.class_token = _class_and_patches(original, original, count)[:, 0]
            features.image_embedding = self.pool(original)
        return features

    def _tap_original(self, image: Tensor, spec: FeatureSpec, grid: tuple[int, int]) -> ClipFeatures:
        """Returns features without the V-V path, from open_clip's own walk, which knows every kind of block."""
        layers = sorted({*spec.layers, self.depth}) if spec.image_embedding else list(spec.layers)
        output = self.visual.forward_intermediates(
            image,
            indices=[layer - 1 for layer in layers],  # papers count blocks from 1, open_clip from 0
            stop_early=not spec.image_embedding,
            intermediates_only=not spec.image_embedding,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        patches = output["image_intermediates"]
        prefixes = output.get("image_intermediates_prefix") or [p.mean(1, keepdim=True) for p in patches]
        tokens = {
            layer: torch.cat([prefix[:, :1], p], dim=1)
            for layer, prefix, p in zip(layers, prefixes, patches, strict=True)
        }
        features = ClipFeatures(tuple(tokens[layer] for layer in spec.layers), grid)
        if spec.image_embedding:
            features.class_token = tokens[self.depth][:, 0]
            features.image_embedding = output["image_features"]
        return features

    def _dual_path(self, image: Tensor, first: int, last: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields the number of each block and both streams after it; they are one before the block `first`."""
        original = value = self.embed(image)
        for number, block in enumerate(self.blocks[:last], 1):
            if number < first:
                original = value = block(original)
            else:
                original, value = dual_block(block, original, value)
            yield number, original, value


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

    def resize(self, image_size: tuple[int, int], rule: PosEmbedResize) -> None:
        """See the base class."""
        grid = self.grid(*image_size)
        table = resize_positional_embedding(self.visual.positional_embedding.data, self.visual.grid_size, grid, rule)
        self.visual.positional_embedding = nn.Parameter(table, requires_grad=False)
        self.visual.grid_size = grid
        self.visual.image_size = image_size

    @property
    def blocks(self) -> nn.ModuleList:
        """See the base class."""
        return self.visual.transformer.resblocks

    def embed(self, image: Tensor) -> Tensor:
        """See the base class."""
        visual = self.visual
        patches = visual.conv1(image).flatten(2).transpose(1, 2)
        # `len` would fix the batch in a traced graph
        tokens = torch.cat([visual.class_embedding.expand(image.shape[0], 1, -1).to(patches), patches], dim=1)
        embedded: Tensor = visual.ln_pre(tokens + visual.positional_embedding.to(tokens))
        return embedded

    def pool(self, tokens: Tensor) -> Tensor:
        """See the base class."""
        pooled: Tensor = self.visual._pool(tokens)[0] @ self.visual.proj
        return pooled

    def normalise(self, tokens: Tensor) -> Tensor:
        """See the base class."""
        normed: Tensor = self.visual.ln_post(tokens)
        return normed

    def project(self, tokens: Tensor, final_norm: bool = True) -> Tensor:
        """See the base class."""
        projected: Tensor = (self.normalise(tokens) if final_norm else tokens) @ self.visual.proj
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

    def resize(self, image_size: tuple[int, int], rule: PosEmbedResize) -> None:
        """See the base class."""
        trunk = self.visual.trunk
        grid, table = trunk.patch_embed.grid_size, trunk.pos_embed
        self.visual.set_input_size(image_size)
        if table is not None:  # set_input_size has used timm's rule; use ours
            resized = resize_positional_embedding(table.data[0], grid, trunk.patch_embed.grid_size, rule)
            trunk.pos_embed = nn.Parameter(resized[None], requires_grad=False)

    @property
    def blocks(self) -> nn.ModuleList:
        """See the base class."""
        return self.visual.trunk.blocks

    def embed(self, image: Tensor) -> Tensor:
        """See the base class."""
        trunk = self.visual.trunk
        embedded: Tensor = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(image)))
        return embedded

    def pool(self, tokens: Tensor) -> Tensor:
        """See the base class."""
        trunk = self.visual.trunk
        pooled: Tensor = self.visual.head(trunk.forward_head(trunk.norm(tokens)))
        return pooled

    def normalise(self, tokens: Tensor) -> Tensor:
        """See the base class."""
        trunk = self.visual.trunk
        normed: Tensor = trunk.fc_norm(trunk.norm(tokens))
        return normed

    def project(self, tokens: Tensor, final_norm: bool = True) -> Tensor:
        """See the base class."""
        normed = self.normalise(tokens) if final_norm else tokens
        projected: Tensor = self.visual.head(self.visual.trunk.head(normed))
        return projected


def _class_and_patches(prefix: Tensor, patches: Tensor, count: int) -> Tensor:
    """Returns `[B, 1 + N, C]`: the first token of one stream, the last `count` of another; no registers.

    A tower without a class token has the mean of its patches in that place.
    """
    first = prefix[:, :1] if prefix.shape[1] > count else prefix.mean(1, keepdim=True)
    return torch.cat([first, patches[:, -count:]], dim=1)
