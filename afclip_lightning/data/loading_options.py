"""How a run reads its images: what a user can set, the same for all datasets."""

from dataclasses import dataclass
from typing import Literal

from afclip_runtime.images.white import White, check_white


@dataclass(frozen=True)
class Loading:
    """How images are read, the same for every dataset of a run.

    Attributes:
        on_error: `raise` stops at a file that cannot be read; `skip` leaves its image out, and those that it is a
            reference of, and lists them in the run folder. Training on several processes needs `raise`.
        draft: Decode JPEG files at 1/2, 1/4 or 1/8 of their size where that is still no smaller than the backbone's
            input. Faster, and the pixels differ a little: leave it off to compare with published numbers.
        cache_mb: Memory for resized images and masks, uint8, per loader; 0 keeps none. What does not fit is decoded
            again each epoch, so it helps from the second epoch on.
        persistent_workers: Keep the processes of the training loader from one epoch to the next.
        pin_memory: Load into page-locked memory where there is a GPU.
        white: What is white in images of more than 8 bits per channel: `bits`, the largest value that the file's depth
            holds; `auto`, the largest that the bits hold which the images of a dataset use, looked up in up to 64 of
            them; or a number: up to 16 of bits (12 for a 12-bit camera), above of the value itself. One for all
            datasets, or one for each by its name (`{mvtec: bits, mine: 12}`), where `bits` holds for those not named.
        roi: Regions of interest: a file for all categories, or a folder of `CATEGORY.json` or `CATEGORY.png`, whose
            other categories are seen as a whole; one for all datasets, or one for each by its name. What lies outside
            is hidden from the backbone and counts in no metric; see docs/roi.md.

    Raises:
        ValueError: `cache_mb` is negative, or `white` is none of these.
    """

    on_error: Literal["raise", "skip"] = "raise"
    draft: bool = False
    cache_mb: int = 0
    persistent_workers: bool = False
    pin_memory: bool = True
    white: Literal["auto", "bits"] | int | dict[str, Literal["auto", "bits"] | int] = "bits"
    roi: str | dict[str, str] | None = None

    def __post_init__(self) -> None:
        if self.cache_mb < 0:
            raise ValueError(f"cache_mb must not be negative, got {self.cache_mb}")
        for white in self.white.values() if isinstance(self.white, dict) else [self.white]:
            check_white(white)

    def white_of(self, dataset: str) -> White:
        """Returns the white level of a dataset, by its name."""
        return self.white.get(dataset, "bits") if isinstance(self.white, dict) else self.white

    def roi_of(self, dataset: str) -> str | None:
        """Returns the file or folder of the regions of interest of a dataset, by its name; `None` for none."""
        return self.roi.get(dataset) if isinstance(self.roi, dict) else self.roi
