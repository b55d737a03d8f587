"""Describes the anomaly of one image in a sentence derived from its mask, without a language model."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from afclip_lightning.knowledge.base import MAX_TOKENS, count_tokens

# American spelling in what CLIP reads, as in the paper's own prompts.
PLACES = (
    ("in the upper left", "at the top", "in the upper right"),
    ("on the left", "in the center", "on the right"),
    ("in the lower left", "at the bottom", "in the lower right"),
)
SIZES = (
    (0.002, "tiny"),
    (0.01, "small"),
    (0.04, "medium-sized"),
    (0.15, "large"),
    (1.0, "very large"),
)  # upper limit of the share
COLOURS = {
    "black": (20, 20, 20),
    "dark gray": (75, 75, 75),
    "gray": (128, 128, 128),
    "light gray": (190, 190, 190),
    "white": (245, 245, 245),
    "red": (205, 40, 40),
    "dark red": (110, 25, 30),
    "orange": (235, 130, 40),
    "brown": (120, 75, 40),
    "beige": (215, 190, 150),
    "yellow": (235, 215, 60),
    "olive": (120, 120, 50),
    "green": (60, 160, 60),
    "dark green": (25, 75, 40),
    "teal": (40, 150, 150),
    "light blue": (150, 190, 235),
    "blue": (45, 85, 200),
    "dark blue": (25, 35, 95),
    "purple": (120, 55, 150),
    "pink": (235, 150, 175),
}
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")

# Names of folders that only say that there is a defect, or several.
_NAMELESS = frozenset(
    {"abnormal", "anomalous", "anomaly", "bad", "combined", "defect", "defective", "defects", "ko", "ng", "nok"}
)
_SPECK = 0.05  # pieces below this share of the largest one do not count


def describe_anomaly(
    image: NDArray[np.uint8], mask: np.ndarray, class_name: str, defect: str | None = None
) -> str | None:
    """Returns a sentence on place, size, shape and colour of the anomaly, or `None` if the mask is empty.

    The place is the centroid's cell in a 3 × 3 grid. The size is the share of the image. The colour is the name nearest
    in CIELAB to the mean inside the mask. The same arguments give the same sentence, of at most `MAX_TOKENS` tokens.

    Args:
        image: `[H, W, 3]`, uint8, RGB.
        mask: `[H, W]`, non-zero = anomalous.
        class_name: Name of the item in the sentence (`metal nut`).
        defect: Kind of the defect (`scratch neck`); see `defect_name`. It is left out if the sentence gets too long.

    Raises:
        ValueError: The sizes of image and mask differ, or the class name is too long for a sentence.

    Reference: KAnoCLIP, Sec. 2.2.1.
    Differs: a template over the training mask, which the losses read anyway, replaces a visual question answering
        model. The paper does not specify that model (the named one takes no images).
    """
    if image.shape != (*mask.shape, 3):
        raise ValueError(f"image must be [H, W, 3] for a mask [H, W], got {image.shape} and {mask.shape}")
    region = (mask != 0).astype(np.uint8)
    if not region.any():
        return None
    shape, pieces = _shape(region)
    sentence = f"The {class_name} has a {_size(region)}, {shape}, {_colour(image, region)} anomaly {_place(region)}"
    if pieces > 1:
        sentence += f", in {NUMBERS[pieces - 2] if pieces - 2 < len(NUMBERS) else 'many'} pieces"
    for ending in (f": {defect}." if defect else ".", "."):
        if count_tokens(sentence + ending) <= MAX_TOKENS:
            return sentence + ending
    raise ValueError(f"class_name must leave room for a sentence of {MAX_TOKENS} tokens, got {class_name!r}")


def defect_name(image_path: Path) -> str | None:
    """Returns the kind of defect from MVTec's layout, `test/<defect>/<image>`, with spaces for underscores.

    It is `None` in any other layout, and for uninformative names (`bad`, `combined`, a number).
    """
    name = image_path.parent.name
    named = any(letter.isalpha() for letter in name) and name.lower() not in _NAMELESS
    return name.replace("_", " ").strip() if named and image_path.parent.parent.name == "test" else None


def _place(region: NDArray[np.uint8]) -> str:
    moments = cv2.moments(region, binaryImage=True)
    y, x = (moments[key] / moments["m00"] + 0.5 for key in ("m01", "m10"))
    height, width = region.shape
    return PLACES[int(3 * y / height)][int(3 * x / width)]


def _size(region: NDArray[np.uint8]) -> str:
    share = region.mean()
    return next(name for limit, name in SIZES if share <= limit)


def _colour(image: NDArray[np.uint8], region: NDArray[np.uint8]) -> str:
    mean = _lab([cv2.mean(image, mask=region)[:3]])
    return list(COLOURS)[int(np.linalg.norm(_lab(list(COLOURS.values())) - mean, axis=1).argmin())]


def _lab(colours: list[tuple[float, ...]]) -> NDArray[np.float32]:
    """Returns colours `[M, 3]`, RGB in [0, 255], in CIELAB."""
    rgb = np.array(colours, np.float32) / np.float32(255)
    return np.asarray(cv2.cvtColor(rgb[None], cv2.COLOR_RGB2LAB)[0], np.float32)


def _shape(region: NDArray[np.uint8]) -> tuple[str, int]:
    """Returns a word for the shape and the number of pieces."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(region, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]  # label 0 is the background
    pieces = int((areas >= _SPECK * areas.max()).sum())
    if pieces > 1:
        return "scattered", pieces
    largest = 1 + int(areas.argmax())
    left, top, width, height = (int(stats[largest, i]) for i in range(4))
    piece = (labels[top : top + height, left : left + width] == largest).astype(np.uint8)
    contours, _ = cv2.findContours(piece, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    hull = cv2.convexHull(contours[0])
    sides = np.array(cv2.minAreaRect(hull)[1]) + 1  # distances between pixel centres lack half a pixel at each end
    aspect = sides.max() / sides.min()
    solidity = piece.sum() / cv2.fillConvexPoly(np.zeros_like(piece), hull, 1).sum()
    if aspect >= 6:
        return "thin", 1
    if solidity < 0.5:
        return "winding", 1
    if aspect >= 2.5:
        return "elongated", 1
    return ("compact" if solidity >= 0.85 else "irregular"), 1
