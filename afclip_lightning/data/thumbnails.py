"""Small pictures of images and of their defects, for pages."""

import cv2
import numpy as np

SIDE = 240  # pixels of a picture's longer side
CLOSE = (240, 120)  # width and height of a close-up, in pixels
SMALL, THIN = 0.25, 0.01  # a defect gets a close-up if its longer side, or area, is below this share of the image's
LINES = 300  # largest number of outlines of a picture; the longest are kept


def within(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Returns an image, reduced if needed to fit into a width and a height.

    Args:
        image: `[H, W, 3]`, uint8.
        width: Largest width, in pixels.
        height: Largest height, in pixels.
    """
    scale = min(width / image.shape[1], height / image.shape[0])
    if scale >= 1:
        return image
    size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def close_up(image: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
    """Returns a picture of the largest 8-connected region of a mask with its surroundings, or of a part if it is long.

    Returns `None` if there is no region, or it is large enough to be seen in the whole image.

    Args:
        image: `[H, W, 3]`, uint8.
        mask: `[H, W]`, uint8 in {0, 1}.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count < 2:
        return None
    label = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    left, top, width, height, area = stats[label].tolist()
    x, y, longest = left + width // 2, top + height // 2, SMALL * max(image.shape)
    if max(width, height) >= longest:
        if area >= THIN * mask.size:
            return None
        rows, columns = np.nonzero(labels == label)
        nearest = int(np.hypot(rows - y, columns - x).argmin())
        x, y, width, height = int(columns[nearest]), int(rows[nearest]), 0, round(longest / 2)
    tall = max(round(1.6 * height), round(0.8 * width), 32)
    x, y = (
        max(min(middle - cut // 2, whole - cut), 0)
        for middle, cut, whole in ((x, 2 * tall, image.shape[1]), (y, tall, image.shape[0]))
    )
    return within(image[y : y + tall, x : x + 2 * tall], *CLOSE).copy()  # the image itself goes


def outline_of(mask: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Returns closed lines around the regions of a mask, in the coordinates of a picture.

    The lines are slightly outside the regions, so that a thin crack stays visible between them.

    Args:
        mask: `[H, W]`, uint8 in {0, 1}.
        height: Height of the picture, in pixels.
        width: Width of the picture, in pixels.
    """
    # At twice the size, a pixel is marked if any pixel that it covers is marked, so that no crack is too thin.
    shape = 2 * width, 2 * height
    fine = cv2.resize(mask * np.float32(1), shape, interpolation=cv2.INTER_AREA) > 0
    wide = cv2.dilate(fine.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (13, 13)))
    found, _ = cv2.findContours(wide, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    longest = sorted(found, key=len, reverse=True)[:LINES]
    return tuple((cv2.approxPolyDP(line, 0.6, closed=True)[:, 0] + 0.5) / 2 for line in longest)
