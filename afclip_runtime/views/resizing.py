"""Resizing of maps with numpy alone: bilinear, or area mean for a smaller map. Equal to OpenCV's up to rounding."""

import numpy as np

BLOCK = 2**16  # values per interpolation step, few enough for the processor's cache


def resize_map(anomaly_map: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes a map: by the area mean if both sides shrink, else bilinearly.

    Pillow is no alternative. Its box filter does not weight pixels by the covered part, and its bilinear filter takes
    15 times as long.

    Args:
        anomaly_map: `[h, w]`, float32.
        height: Height of the result, in pixels.
        width: Width of the result, in pixels.
    """
    size = anomaly_map.shape
    if height < size[0] and width < size[1]:
        return area_mean(anomaly_map, height, width)
    return bilinear(anomaly_map, height, width)


def bilinear(anomaly_map: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes a map by linear interpolation between the centres of its pixels.

    Values are constant beyond the outermost.

    Args:
        anomaly_map: `[h, w]`, float32.
        height: Height of the result, in pixels.
        width: Width of the result, in pixels.
    """
    column, across = _between(anomaly_map.shape[1], width)
    row, down = _between(anomaly_map.shape[0], height)
    wide = np.take(anomaly_map, column, axis=1)  # indexing would give column-major order
    wide += across * np.take(_steps(anomaly_map, 1), column, axis=1)
    steps = _steps(wide, 0)
    result = np.empty((height, width), np.float32)
    rows = max(1, BLOCK // width)
    for start in range(0, height, rows):
        block = slice(start, start + rows)
        part = np.take(steps, row[block], axis=0, out=result[block], mode="clip")  # other modes copy
        part *= down[block, None]
        part += wide[row[block]]
    return result


def area_mean(anomaly_map: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes a map by the mean over the area of each new pixel. Partly covered pixels have a fractional weight.

    Args:
        anomaly_map: `[h, w]`, float32.
        height: Height of the result, in pixels, at most h.
        width: Width of the result, in pixels, at most w.
    """
    return _mean_of_rows(_mean_of_rows(anomaly_map, height).T, width).T


def _between(count: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns per new pixel along a side (of `wanted`) the old pixel (of `count`) before its centre, and the offset."""
    place = ((np.arange(wanted) + 0.5) * (count / wanted) - 0.5).clip(0, count - 1)
    before = place.astype(np.intp)
    return before, (place - before).astype(np.float32)


def _steps(values: np.ndarray, axis: int) -> np.ndarray:
    """Returns the difference of each value to the next along an axis; 0 for the last."""
    last = np.take(values, [-1], axis=axis)
    return np.diff(values, axis=axis, append=last)


def _mean_of_rows(values: np.ndarray, wanted: int) -> np.ndarray:
    """Returns per new row (`wanted`) the mean of the rows that it covers."""
    ends = np.arange(wanted + 1) * (len(values) / wanted)
    whole = ends.astype(np.intp)
    part = (ends - whole).astype(np.float32)[:, None]
    sums = np.add.reduceat(values, whole[:-1], axis=0)
    sums -= part[:-1] * values[whole[:-1]]
    sums[:-1] += part[1:-1] * values[whole[1:-1]]
    return sums / np.float32(len(values) / wanted)
