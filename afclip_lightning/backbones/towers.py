"""A common interface of the vision towers of open_clip and timm."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from afclip_lightning.backbones.attention import dual_block, has_dual_path, run_block
from afclip_lightning.backbones.positional import resize_positional_embedding
from afclip_lightning.backbones.spec import FeatureSpec, PosEmbedResize
from afclip_lightning.types import ClipFeatures
from afclip_runtime.errors import WeightsError

Rotations = Sequence[Tensor | None]
Step = Callable[[int, nn.Module, Tensor, Tensor | None], Tensor]
"""A block's part of a pass: from its number, counted from 1, itself, tokens `[B, P + N, C]` and rotation to tokens."""


class VisionTower(nn.Module, ABC):
    """A vision tower seen as blocks with taps and a per-token projection into the joint space.

    The tokens of a tower are P prefix tokens and then the patches of its grid, row-major. The first prefix token is the
    class token if the tower has one. The others are registers, which a pass leaves out.

    Attributes:
        depth: Number of blocks.
        width: C, channels of a tapped token.
        patch_size: Side of a patch in pixels: the stride of the whole stem.
        n_prefix: P, number of prefix tokens.
        has_class_token: Whether the first token is a class token.
    """

    visual: VisionTransformer | TimmModel
    depth: int
    width: int
    patch_size: int
    n_prefix: int
    has_class_token: bool

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Returns the patch grid `(h, w)` at the current size."""

    @abstractmethod
    def resize(self, image_size: tuple[int, int], rule: PosEmbedResize) -> None:
        """Sets another height and width of the input, both multiples of the patch size."""

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """Returns the blocks."""

    @abstractmethod
    def embed(self, image: Tensor) -> tuple[Tensor, Rotations]:
        """Returns the input of the first block, `[B, P + N, C]`, and the rotary embedding of the patches per block.

        The rotary embedding is `[1 or heads, N, 2 * d]`, sines and cosines, or `None` in a tower without one.
        """

    @abstractmethod
    def pool(self, tokens: Tensor) -> Tensor:
        """Returns the image embedding `[B, D]` from the output of the last block, `[B, P + N, C]`."""

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

    def tap(self, image: Tensor, spec: FeatureSpec, step: Step | None = None) -> ClipFeatures:
        """Returns the residual streams after the blocks that `spec` names, both paths from one pass.

        Args:
            image: `[B, 3, H, W]`, normalised.
            spec: The features. The blocks after the last tap run for the image embedding only.
            step: Function that replaces `run_block` for blocks before the V-V path, with trained parts between blocks.
        """
        tokens, vv_tokens = [], []
        last = self.depth if spec.image_embedding else max(spec.layers + spec.vv_layers)
        for number, original, value in self._walk(image, spec.vv_from or self.depth + 1, last, step):
            if number in spec.layers:
                tokens.append(self._class_and_patches(original, original))
            if number in spec.vv_layers:
                vv_tokens.append(self._class_and_patches(original, value))
        features = ClipFeatures(tuple(tokens), self.grid, tuple(vv_tokens))
        if spec.image_embedding:
            features.class_token = self._class_and_patches(original, original)[:, 0]
            features.image_embedding = self.pool(original)
        return features

    def _walk(self, image: Tensor, vv_from: int, last: int, step: Step | None) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields the number of each block and both streams after it. Before the block `vv_from` they are the same."""
        embedded, rotations = self.embed(image)
        original = value = embedded
        for number, (block, rotation) in enumerate(zip(self.blocks[:last], rotations, strict=False), 1):
            if number < vv_from:
                original = value = (
                    run_block(block, original, rotation) if step is None else step(number, block, original, rotation)
                )
            else:
                original, value = dual_block(block, original, value, rotation)
            yield number, original, value

    def _class_and_patches(self, original: Tensor, patches: Tensor) -> Tensor:
        """Returns `[B, 1 + N, C]`: the class token of one stream, and the patches of another.

        A tower without a class token has the mean of its patches in its place.
        """
        first = original[:, :1] if self.has_class_token else original[:, self.n_prefix :].mean(1, keepdim=True)
        return torch.cat([first, patches[:, self.n_prefix :]], dim=1)


class ClipVisionTower(VisionTower):
    """open_clip's own vision transformer.

    Raises:
        WeightsError: The tower is of another kind, or pools by attention.
    """

    def __init__(self, visual: VisionTransformer) -> None:
        super().__init__()
        if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None or visual.proj is None:
            raise WeightsError(
                f"vision tower {type(visual).__name__} has no patch tokens that its projection fits; use a vision "
                "transformer that pools its class token, such as ViT-B-16"
            )
        self.visual = visual
        self.depth = len(visual.transformer.resblocks)
        self.width = visual.transformer.width
        self.patch_size = visual.patch_size[0]
        self.n_prefix, self.has_class_token = 1, True

    @property
    def grid(self) -> tuple[int, int]:
        """See the base class."""
        grid: tuple[int, int] = self.visual.grid_size
        return grid

    def resize(self, image_size: tuple[int, int], rule: PosEmbedResize) -> None:
        """See the base class."""
        grid = image_size[0] // self.patch_size, image_size[1] // self.patch_size
        table = resize_positional_embedding(self.visual.positional_embedding.data, self.visual.grid_size, grid, rule)
        self.visual.positional_embedding = nn.Parameter(table, requires_grad=False)
        self.visual.grid_size = grid
        self.visual.image_size = image_size

    @property
    def blocks(self) -> nn.ModuleList:
        """See the base class."""
        return self.visual.transformer.resblocks

    def embed(self, image: Tensor) -> tuple[Tensor, Rotations]:
        """See the base class."""
        visual = self.visual
        patches = visual.conv1(image).flatten(2).transpose(1, 2)
        # `len` would fix the batch in a traced graph
        tokens = torch.cat([visual.class_embedding.expand(image.shape[0], 1, -1).to(patches), patches], dim=1)
        return visual.ln_pre(tokens + visual.positional_embedding.to(tokens)), [None] * self.depth

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
    """A vision transformer of timm inside an open_clip model: SigLIP, EVA, PE, ViTamin, MobileCLIP-B, DINOv2 and 3.

    Raises:
        WeightsError: The tower is of another kind.
    """

    def __init__(self, visual: TimmModel) -> None:
        super().__init__()
        trunk = visual.trunk
        if not isinstance(trunk, (TimmVisionTransformer, Eva)):
            raise WeightsError(
                f"vision tower {type(trunk).__name__} is not a vision transformer, so it cannot be tapped; use one, "
                "such as ViT-B-16-SigLIP2, PE-Core-B-16, MobileCLIP2-B, or of timm vit_base_patch16_dinov3, "
                "vit_base_patch16_radio_v3"
            )
        self.visual = visual
        self.depth = len(trunk.blocks)
        self.width = trunk.embed_dim
        stem: Any = trunk.patch_embed
        self.patch_size = stem.feat_ratio()  # its `patch_size` is 1 if it has several layers
        self.n_prefix, self.has_class_token = trunk.num_prefix_tokens, trunk.cls_token is not None

    @property
    def grid(self) -> tuple[int, int]:
        """See the base class."""
        h, w = self.visual.trunk.patch_embed.grid_size
        return h, w

    def resize(self, image_size: tuple[int, int], rule: PosEmbedResize) -> None:
        """See the base class."""
        trunk = self.visual.trunk
        grid, table = trunk.patch_embed.grid_size, trunk.pos_embed
        self.visual.set_input_size(image_size)
        if table is not None:  # set_input_size has used timm's rule; use ours
            resized = resize_positional_embedding(table.data[0], grid, trunk.patch_embed.grid_size, rule)
            trunk.pos_embed = nn.Parameter(resized[None], requires_grad=False)
        made = self.embed(torch.zeros(1, 3, *image_size))[0].shape[1] - self.n_prefix
        h, w = self.grid
        if made != h * w or (h * self.patch_size, w * self.patch_size) != image_size:
            raise WeightsError(
                f"vision tower {type(trunk).__name__} makes {made} tokens of {image_size[0]} x {image_size[1]} pixels, "
                f"which do not form a grid of patches of {self.patch_size} pixels; take another image_size or model"
            )

    @property
    def blocks(self) -> nn.ModuleList:
        """See the base class."""
        return self.visual.trunk.blocks

    def embed(self, image: Tensor) -> tuple[Tensor, Rotations]:
        """See the base class."""
        trunk = self.visual.trunk
        placed = trunk._pos_embed(trunk.patch_embed(image))
        tokens, rope = placed if isinstance(trunk, Eva) else (placed, None)
        rotations: Rotations = [None] * self.depth
        if rope is not None:  # one per block, or one for all
            rotations = list(rope) if rope.ndim == 4 else [rope[None]] * self.depth
        return trunk.norm_pre(tokens), rotations

    def pool(self, tokens: Tensor) -> Tensor:
        """See the base class."""
        trunk = self.visual.trunk
        pooled: Tensor = self.visual.head(trunk.forward_head(trunk.norm(tokens)))
        return pooled

    def normalise(self, tokens: Tensor) -> Tensor:
        """See the base class."""
        trunk = self.visual.trunk
        normed: Tensor = trunk.norm(tokens)
        return normed if trunk.attn_pool is not None else trunk.fc_norm(normed)

    def project(self, tokens: Tensor, final_norm: bool = True) -> Tensor:
        """See the base class.

        A tower that pools by attention (SigLIP, PE) projects a token as it would embed an image of that single token:
        attention over one token gives its value for any query.

        Reference: MaskCLIP, Sec. 3.2 (arXiv 2112.01071), which takes the value path of CLIP's own attention pooling.
        """
        trunk = self.visual.trunk
        pooled = self.normalise(tokens) if final_norm else tokens
        if trunk.attn_pool is not None:
            alone = trunk.attn_pool(pooled.reshape(-1, 1, self.width))
            pooled = trunk.fc_norm(alone).unflatten(0, pooled.shape[:-1])
        projected: Tensor = self.visual.head(trunk.head(pooled))
        return projected
