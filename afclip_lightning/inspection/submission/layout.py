"""The layout of a submission: paths of its maps and masks, and its images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from afclip_lightning.datasets.mvtec_ad_2 import PRIVATE, MVTecAD2, Part
from afclip_runtime.errors import DatasetError
from afclip_runtime.images.find import walk_images

MAPS = "anomaly_images"
MASKS = "anomaly_images_thresholded"
PUBLIC: Part = "test_public"
VALIDATION: Part = "validation"
ARCHIVE = "submission.tar.gz"
RECORD = "submission.json"
"""Record of how a folder was made. It is not packed."""


@dataclass(frozen=True)
class Item:
    """One image of a submission.

    Attributes:
        category: Its category.
        part: Its part of the dataset.
        name: Its path in the part, without suffix: `000_regular`, or `bad/000_regular` in the public part.
        image: The image.
    """

    category: str
    part: Part
    name: str
    image: Path

    @property
    def key(self) -> str:
        """Returns the path of map and mask without their folder and suffix: `can/test_private/000_regular`."""
        return f"{self.category}/{self.part}/{self.name}"

    @property
    def map_name(self) -> str:
        """Returns the path of the map in a submission, with `/`."""
        return f"{MAPS}/{self.key}.tiff"

    @property
    def mask_name(self) -> str:
        """Returns the path of the mask in a submission, with `/`."""
        return f"{MASKS}/{self.key}.png"


def items_of(data: MVTecAD2, category: str, part: Part, may_be_absent: bool = False) -> list[Item]:
    """Returns the images of a part of a category, sorted by path.

    Args:
        data: The dataset.
        category: One of its categories.
        part: One of its parts.
        may_be_absent: Whether the part may have no images.

    Raises:
        DatasetError: The part has no images.
    """
    folder = data.root / category / part
    kinds: Sequence[Path] = [folder] if part in PRIVATE else [folder / "bad", folder / "good"]
    images = [image for kind in kinds for image in walk_images(kind)]
    if not images and not may_be_absent:
        raise DatasetError(f"{folder} has no image. Unpack the whole dataset, or leave the category or the part out.")
    names = [image.relative_to(folder).with_suffix("").as_posix() for image in images]
    return [Item(category, part, name, image) for name, image in zip(names, images, strict=True)]
