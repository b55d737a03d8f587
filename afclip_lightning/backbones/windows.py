"""Windows of patches. The vision tower encodes each as if it were the whole image."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.compiler import is_exporting

from afclip_lightning.backbones.attention import run_block
from afclip_lightning.backbones.towers import VisionTower

# tokens per pass of the blocks: bounds the memory for any batch and grid, and fits into a CPU's caches
WINDOW_TOKENS, WINDOW_TOKENS_CPU = 4096, 2048


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def window_index(grid: tuple[int, int], size: int, device: torch.device | None = None) -> Tensor:
    """Returns the patches of each square window, at stride 1: `[W, size * size]`, int64, row-major throughout.

    Args:
        grid: Patch grid `(h, w)`.
        size: Side of a window in patches.
        device: Device of the result.

    Raises:
        ValueError: The window does not fit the grid.
    """
    if not 1 <= size <= min(grid):
        raise ValueError(f"a window must be within 1 to {min(grid)} patches for a grid of {grid}, got {size}")
    patches = torch.arange(grid[0] * grid[1]).view(grid)
    return patches.unfold(0, size, 1).unfold(1, size, 1).reshape(-1, size * size).to(device)


@torch.no_grad()
def encode_windows(vision: VisionTower, image: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Returns the image embedding of each window by itself, `[B, W, D]` per size, not normalised.

    The patches of a window keep their positions in the image, and attend to each other and the class token only.

    Args:
        vision: The vision tower.
        image: `[B, 3, H, W]`, normalised.
        sizes: Sides of the windows in patches.

    Raises:
        ValueError: A window does not fit the grid.

    Reference: WinCLIP, Sec. 4.2. Differs: the tower's first normalisation precedes the windows. It works per token, so
    the result is the same.
    """
    embedded, rotations = vision.embed(image)
    prefix = torch.arange(vision.n_prefix, device=image.device)  # class token, registers
    tokens = WINDOW_TOKENS_CPU if image.device.type == "cpu" else WINDOW_TOKENS
    encoded = []
    for size in sizes:
        patches = window_index(vision.grid, size, image.device)  # [W, n]
        # a traced graph is of batches of any size: it has no loop whose length depends on that
        step = len(patches) if is_exporting() else max(1, tokens // (len(image) * (len(prefix) + size * size)))
        parts = []
        for part in patches.split(step):
            index = torch.cat([prefix.expand(len(part), -1), len(prefix) + part], dim=1)  # [w, P + n]
            parts.append(_encode(vision, embedded[:, index], [_rows(rotation, part) for rotation in rotations]))
        encoded.append(torch.cat(parts, dim=1))
    return encoded


def _rows(rotation: Tensor | None, patches: Tensor) -> Tensor | None:
    """Returns the rotations `[w, h, n, 2 * d]` of the patches `[w, n]` of windows, from the grid's `[h, N, 2 * d]`."""
    return None if rotation is None else rotation[:, patches].transpose(0, 1)


def _encode(vision: VisionTower, windows: Tensor, rotations: Sequence[Tensor | None]) -> Tensor:
    """Returns the image embeddings `[B, w, D]` of windows' tokens `[B, w, T, C]`, all in one pass."""
    tokens = windows.flatten(0, 1)
    for block, rotation in zip(vision.blocks, rotations, strict=True):
        of_all = None if rotation is None else rotation.repeat(len(windows), 1, 1, 1)
        tokens = run_block(block, tokens, of_all)
    return vision.pool(tokens).unflatten(0, windows.shape[:2])
