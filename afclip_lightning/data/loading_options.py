"""Options of reading images, the same for all datasets of a run."""

from dataclasses import dataclass
from typing import Literal

from afclip_runtime.images.white import White, check_white


@dataclass(frozen=True)
class Loading:
    """How images are read, the same for every dataset of a run.

    Attributes:
        on_error: `raise` stops at a file that cannot be read. `skip` leaves out its image, and images that have it as a
            reference, and lists them in the run folder. Training on several processes needs `raise`.
        draft: Decode JPEG files at 1/2, 1/4 or 1/8 of their size if that is not smaller than the backbone's input. This
            is faster, but the pixels differ slightly. Leave it off to compare with published numbers.
        cache_mb: Memory for resized images and masks (uint8) per loader, in MB; 0 for no cache. Images that do not fit
            are decoded again in each epoch. The cache helps from the second epoch on.
        persistent_workers: Keep the processes of the training loader from one epoch to the next.
        pin_memory: Load into page-locked memory if there is a GPU.
        white: White level of images with more than 8 bits per channel. `bits` is the largest value of the file's bit
            depth. `auto` is the largest value of the bits that the images of a dataset use, read from up to 64 of them.
            A number up to 16 is a number of bits (12 for a 12-bit camera), a larger number is the value itself. Give
            one for all datasets, or one per dataset by name (`{mvtec: bits, mine: 12}`); the default is `bits`.
        roi: Regions of interest: a file for all categories, or a folder of `CATEGORY.json` or `CATEGORY.png`. Images of
            categories without a file are used as a whole. Give one for all datasets, or one per dataset by name. Pixels
            outside are hidden from the backbone and count in no metric; see docs/roi.md.

    Raises:
        ValueError: `cache_mb` is negative, or `white` is not a white level.
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
