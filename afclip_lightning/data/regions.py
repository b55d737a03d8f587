"""The regions of interest of a dataset, and their use in a test."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from afclip_lightning.types import Sample
from afclip_runtime.errors import DatasetError
from afclip_runtime.views.roi import SUFFIXES, Roi, read_roi

if TYPE_CHECKING:
    from torch import Tensor

    from afclip_lightning.backbones.preprocess import Preprocess


def find_region(place: Path, category: str) -> Path | None:
    """Returns the file of a category's region of interest; `None` if it has none.

    Args:
        place: A file for all categories, or a folder of files that are named after their categories.
        category: The category.

    Raises:
        DatasetError: There is no such file or folder, or a category has two files.
    """
    if not place.is_dir():
        if not place.exists():
            raise DatasetError(f"{place}: there is no such file or folder of regions of interest. Fix --loading.roi.")
        return place
    found = [path for path in sorted(place.iterdir()) if path.stem == category and path.suffix.lower() in SUFFIXES]
    if len(found) > 1:
        raise DatasetError(f"{found[0]}: {found[1].name} beside it is for the same category. Keep one.")
    return found[0] if found else None


def regions_of(place: Path, categories: Sequence[str]) -> dict[str, Roi]:
    """Returns the regions of interest by category. Images of other categories are used as a whole.

    Args:
        place: See `find_region`.
        categories: Categories in use.

    Raises:
        DatasetError: A file cannot be read or is not a region of interest, or the folder has none for these categories.
    """
    files = {category: find_region(place, category) for category in categories}
    found = {category: read_roi(path) for category, path in files.items() if path is not None}
    if not found:
        raise DatasetError(
            f"{place}: the folder has no region of interest for {', '.join(categories)}. Each file is named after its "
            f"category: {categories[0]}.json or {categories[0]}.png."
        )
    return found


def inside_frame(samples: Sequence[Sample], preprocess: "Preprocess") -> "Tensor | None":
    """Returns which pixels at the backbone's size are inspected, `[B, H, W]`, bool; `None` if all pixels are.

    Args:
        samples: Samples of the images.
        preprocess: Preprocessing of the backbone.
    """
    import torch

    if all(sample.roi is None for sample in samples):
        return None
    every = torch.ones(preprocess.shape, dtype=torch.bool)
    return torch.stack(
        [every if s.roi is None else torch.from_numpy(preprocess.inside(s.roi).astype(bool)) for s in samples]
    )


def inspected_maps(maps: "Tensor", samples: Sequence[Sample], preprocess: "Preprocess") -> "Tensor":
    """Returns maps `[B, H, W]` at the backbone's size. Pixels outside the region get the lowest value inside."""
    inside = inside_frame(samples, preprocess)
    if inside is None:
        return maps
    inside = inside.to(maps.device)
    lowest = maps.masked_fill(~inside, float("inf")).flatten(1).amin(1)
    return maps.where(inside, lowest[:, None, None])
