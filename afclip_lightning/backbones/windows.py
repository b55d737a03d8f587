"""Windows of patches, each seen by the vision tower as if it were the whole image."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from open_clip.transformer import ResidualAttentionBlock
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.compiler import is_exporting

from afclip_lightning.backbones.towers import VisionTower

# tokens a pass of the blocks: bounds the memory, whatever the batch and the grid; more of them leave a CPU's caches
WINDOW_TOKENS, WINDOW_TOKENS_CPU = 4096, 2048


def has_windows(vision: VisionTower) -> bool:
    """Returns whether the blocks need nothing but tokens, so that they take any part of an image's tokens."""
    return all(isinstance(block, (ResidualAttentionBlock, Block)) for block in vision.blocks)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def window_index(grid: tuple[int, int], size: int, device: torch.device | None = None) -> Tensor:
    """Returns the patches of each square window, at stride 1: `[W, size * size]`, int64, row-major throughout.

    Args:
        grid: Patch grid `(h, w)`.
        size: Side of a window in patches.
        device: Where it is kept.

    Raises:
        ValueError: The window does not fit the grid.
    """
    if not 1 <= size <= min(grid):
        raise ValueError(f"a window must be within 1 to {min(grid)} patches for a grid of {grid}, got {size}")
    patches = torch.arange(grid[0] * grid[1]).view(grid)
    return patches.unfold(0, size, 1).unfold(1, size, 1).reshape(-1, size * size).to(device)


@torch.no_grad()
def encode_windows(vision: VisionTower, image: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Returns the image embedding of each window alone, one `[B, W, D]` a size, not normalised.

    A window's patches keep the positions that they have in the image, and see each other and the class token only.

    Args:
        vision: A tower that `has_windows`.
        image: `[B, 3, H, W]`, normalised.
        sizes: Sides of the windows in patches.

    Raises:
        ValueError: A window does not fit the grid.

    Reference: WinCLIP, Sec. 4.2. Differs: the tower's first normalisation comes before the windows are taken and not
    after; it is of each token by itself.
    """
    grid = vision.grid(image.shape[2], image.shape[3])
    embedded = vision.embed(image)
    prefix = torch.arange(embedded.shape[1] - grid[0] * grid[1], device=image.device)  # class token, registers
    tokens = WINDOW_TOKENS_CPU if image.device.type == "cpu" else WINDOW_TOKENS
    encoded = []
    for size in sizes:
        patches = len(prefix) + window_index(grid, size, image.device)
        index = torch.cat([prefix.expand(len(patches), -1), patches], dim=1)  # [W, P + n]
        # a traced graph is of batches of any size: it has no loop whose length depends on that
        step = len(index) if is_exporting() else max(1, tokens // (len(image) * index.shape[1]))
        encoded.append(torch.cat([_encode(vision, embedded[:, part]) for part in index.split(step)], dim=1))
    return encoded


def _encode(vision: VisionTower, windows: Tensor) -> Tensor:
    """Returns the image embeddings `[B, w, D]` of windows' tokens `[B, w, T, C]`, all in one pass."""
    tokens = windows.flatten(0, 1)
    for block in vision.blocks:
        tokens = block(tokens)
    return vision.pool(tokens).unflatten(0, windows.shape[:2])
