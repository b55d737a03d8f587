"""Types for how the model sees images: sizes and tiles."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

ImageSize = int | tuple[int, int]  # in pixels: the side of a square, or height and width
Fit = Literal["squash", "pad", "tiles"]
ViewScore = Literal["highest", "mean"]


def height_and_width(size: ImageSize) -> tuple[int, int]:
    """Returns the height and the width of an image size, in pixels."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def in_pixels(size: ImageSize) -> str:
    """Returns an image size in words: `518 px`, `336 x 672 px`, the height first."""
    return f"{size} px" if isinstance(size, int) else f"{size[0]} x {size[1]} px"


@dataclass(frozen=True)
class Tiling:
    """How the model sees an image: as a whole, and optionally also in tiles of a chosen scale.

    The map of an image is the mean of the maps of the whole and of the tiles.

    Attributes:
        fit: How an image whose aspect ratio differs from the backbone's frame (usually a square) becomes the view of
            the whole. `squash` resizes it to the frame, as the papers do (or as the backbone's `resize` says). `pad`
            keeps its aspect ratio and fills the frame with repeated border pixels. `tiles` covers it with the largest
            tiles of the frame's aspect ratio.
        tiles: Number of tiles along the shorter side. 1 means no tiles. Tiles have the frame's aspect ratio.
        tile_size: Shorter side of the tiles in pixels of the image, in place of `tiles`. Limited by the image's size.
        overlap: Minimum share of a tile's side that overlaps with the next tile, 0 to 0.75.
        view_score: Score of an image: the `highest` score of its views, or their `mean` (AnoVL, on VisA).

    Raises:
        ValueError: A value is out of its range, or both `tiles` and `tile_size` are given.
    """

    fit: Fit = "squash"
    tiles: int = 1
    tile_size: int | None = None
    overlap: float = 0.25
    view_score: ViewScore = "highest"

    def __post_init__(self) -> None:
        for name, value, choices in (("fit", self.fit, Fit), ("view_score", self.view_score, ViewScore)):
            if value not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")
        if self.tiles < 1:
            raise ValueError(f"tiles must be at least 1, got {self.tiles}")
        if self.tile_size is not None and (self.tile_size < 1 or self.tiles > 1):
            raise ValueError(f"tile_size must be at least 1 and without tiles, got {self.tile_size} and {self.tiles}")
        if not 0 <= self.overlap <= 0.75:
            raise ValueError(f"overlap must be 0 to 0.75, got {self.overlap}")

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain values, as calibrations store them.

        `view_score` is included only if it is `mean`.
        """
        return {key: value for key, value in asdict(self).items() if (key, value) != ("view_score", "highest")}

    def tile(self, largest: tuple[int, int]) -> tuple[int, int] | None:
        """Returns height and width of the tiles in pixels of an image, or `None` without tiles.

        Args:
            largest: Height and width in pixels of the largest tile with the frame's aspect ratio in the image.
        """
        if self.tile_size is None and self.tiles == 1:
            return None
        short, long = sorted(largest)
        parts = 1 + (self.tiles - 1) * (1 - self.overlap)
        side = math.ceil(short / parts) if self.tile_size is None else min(self.tile_size, short)
        other = max(1, round(side * long / short))
        return (side, other) if largest[0] == short else (other, side)
