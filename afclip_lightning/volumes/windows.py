"""The black and the white value of slices: windows of CT, percentiles of a volume."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from afclip_runtime.errors import UserError

PRESETS = {  # centre and width in HU: Radiopaedia, Windowing (CT), rID 52108; what it gives as a range by its middle
    "brain": (40.0, 80.0),
    "lung": (-600.0, 1500.0),
    "bone": (400.0, 1800.0),
    "soft_tissue": (50.0, 400.0),
    "liver": (30.0, 150.0),
}
PERCENTILES = (0.5, 99.5)
BINS = 2**16
PERCENTILE = re.compile(r"percentile(?::([\d.]+),([\d.]+))?")
LIKE_CT = -500.0  # a volume with lower values is usually in Hounsfield units


@dataclass(frozen=True)
class Window:
    """The values that become black and white.

    Attributes:
        low: Black value. Lower values are black, too.
        high: White value. Higher values are white, too.
        rule: Rule that gave them, in words.
    """

    low: float
    high: float
    rule: str

    def grey(self, values: np.ndarray, bits: int) -> np.ndarray:
        """Returns values as grey, uint8 or uint16. NaN is black.

        Args:
            values: `[H, W]`, float32.
            bits: 8 or 16.
        """
        share = (values.astype(np.float64) - self.low) / max(self.high - self.low, 1e-12)
        share = np.where(np.isnan(share), 0, np.clip(share, 0, 1))
        return np.rint(share * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


@dataclass(frozen=True)
class Facts:
    """The range of a volume's values.

    Attributes:
        low: Lowest finite value.
        high: Highest finite value.
        not_finite: Number of values that are NaN or infinite.
    """

    low: float
    high: float
    not_finite: int


def facts_of(blocks: Iterator[np.ndarray]) -> Facts:
    """Returns the range of a volume's values.

    Raises:
        UserError: No value is finite.
    """
    low, high, lost = np.inf, -np.inf, 0
    for block in blocks:
        finite = np.isfinite(block)
        lost += int(block.size - finite.sum())
        seen = block if finite.all() else block[finite]
        if seen.size:
            low, high = min(low, float(seen.min())), max(high, float(seen.max()))
    if low > high:
        raise UserError("no voxel has a finite value. Export the volume again.")
    return Facts(low, high, lost)


def check_window(text: str) -> str:
    """Returns the text of a rule after a check.

    Raises:
        UserError: The text is not a rule.
    """
    if text != "auto" and text not in PRESETS and not _percentiles(text) and not _centre_and_width(text):
        raise UserError(
            f"--window {text}: give one of {', '.join(PRESETS)}, a centre and a width (40,400), percentile, "
            "percentile:1,99, or auto."
        )
    return text


def _percentiles(text: str) -> tuple[float, float] | None:
    match = PERCENTILE.fullmatch(text)
    try:
        low, high = PERCENTILES if match is None or match[1] is None else (float(match[1]), float(match[2]))
    except ValueError:
        return None
    return (low, high) if match and 0 <= low < high <= 100 else None


def _centre_and_width(text: str) -> tuple[float, float] | None:
    try:
        centre, width = (float(part) for part in text.split(","))
    except ValueError:
        return None
    return (centre, width) if width > 0 and np.isfinite([centre, width]).all() else None


def window_of(text: str, modality: str, facts: Facts, blocks: Callable[[], Iterator[np.ndarray]]) -> Window:
    """Returns the window of a volume.

    `auto` is the soft tissue window for CT, and percentiles for all else. Percentiles use the finite voxels. If no
    value is below 0, they leave out the voxels of value 0, the background of MR. They are exact to 1/65536 of the
    volume's range.

    Args:
        text: A preset, `CENTRE,WIDTH`, `percentile`, `percentile:LOW,HIGH` or `auto`.
        modality: `CT`, `MR` …, or empty if unknown.
        facts: Range of the volume's values.
        blocks: Yields the volume's values in blocks.
    """
    if text == "auto":
        text = "soft_tissue" if modality == "CT" else "percentile"
    chosen = PRESETS.get(text) or _centre_and_width(text)
    if chosen:
        centre, width = chosen
        name = f"{text} window" if text in PRESETS else "window"
        return Window(centre - width / 2, centre + width / 2, f"{name}: centre {centre:g}, width {width:g}")
    shares = _percentiles(text) or PERCENTILES
    background = facts.low >= 0
    step = (facts.high - facts.low) / BINS or 1.0
    edges = facts.low + step * np.arange(BINS + 1)
    counts = np.zeros(BINS, np.int64)
    for block in blocks():
        seen = block[np.isfinite(block) & (block > 0)] if background else block[np.isfinite(block)]
        bins = ((seen.astype(np.float64) - facts.low) / step).astype(np.int64)
        counts += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)
    total = np.cumsum(counts)
    low, high = (_at(total, edges, share / 100) for share in shares) if total[-1] else (facts.low, facts.high)
    which = "voxels above 0" if background else "voxels"
    return Window(low, high, f"percentiles {shares[0]:g} and {shares[1]:g} of the volume's {which}")


def _at(total: np.ndarray, edges: np.ndarray, share: float) -> float:
    """Returns the quantile of counted values at a share."""
    place = int(np.searchsorted(total, share * total[-1]))
    return float(edges[min(place + (share > 0.5), len(edges) - 1)])
