"""Ranges of values over all test images of a category. Some methods scale their image scores by them."""

from collections.abc import Sequence

from torch import Tensor

from afclip_lightning.components.memory import Key
from afclip_lightning.types import Batch
from afclip_runtime.errors import DatasetError

Ranges = dict[Key, tuple[float, float]]
"""Lowest and highest value, by `(dataset, category)`."""

SMALLEST_RANGE = 1e-4  # smallest range of a category: it must not amplify rounding differences between two passes


def merged(ranges: Sequence[Ranges]) -> Ranges:
    """Returns the union of ranges, per category."""
    found: Ranges = {}
    for part in ranges:
        for key, (low, high) in part.items():
            least, most = found.get(key, (low, high))
            found[key] = min(least, low), max(most, high)
    return found


def ranges_of(lowest: Tensor, highest: Tensor, batch: Batch) -> Ranges:
    """Returns the ranges of a batch, per category. Each image has a lowest and a highest value, `[B]` each."""
    pairs = zip(batch.keys, lowest.tolist(), highest.tolist(), strict=True)
    return merged([{key: (low, high)} for key, low, high in pairs])


def scaled(values: Tensor, batch: Batch, ranges: Ranges) -> Tensor:
    """Returns values `[B]`, scaled to [0, 1] over the range of their category. A range of width 0 gives 0.

    Args:
        values: One value per image.
        batch: The images.
        ranges: Ranges over all test images.

    Raises:
        DatasetError: A category has no range.
    """
    for sample, key in zip(batch.samples, batch.keys, strict=True):
        if key not in ranges:
            raise DatasetError(
                f"{sample.image_path}: no map of {'/'.join(key)} was measured. The image score is scaled over all test "
                "images of a category: use Trainer.validate, test or predict with a data module that has them."
            )
    low, high = values.new_tensor([ranges[key] for key in batch.keys]).T
    return (values - low) / (high - low).clamp(min=SMALLEST_RANGE)
