"""Single defects, for datasets with saturations: their mask files, and how much of each has to be found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from afclip_lightning.data.images import mask_files, turn_of
from afclip_lightning.types import Defect, Saturation, Saturations
from afclip_runtime.errors import DatasetError
from afclip_runtime.files import read_json
from afclip_runtime.images.find import list_folders
from afclip_runtime.images.picture import upright
from afclip_runtime.images.reader import read

SATURATION_FILE = "defects_config.json"
RESTORE = "Restore the file from the dataset's archive."


@dataclass(frozen=True)
class _Kind:
    """An entry of `defects_config.json`, in the format of MVTec LOCO AD. Its name is informative only."""

    pixel_value: int
    saturation_threshold: float
    relative_saturation: bool
    defect_name: str = ""


def read_saturations(path: Path) -> Saturations:
    """Returns the saturation of each kind of defect of a category, from its `defects_config.json`.

    The file is a list of objects with `defect_name`, `pixel_value` (1 to 65535, each once), `saturation_threshold`
    (above 0; at most 1 if it is a share) and `relative_saturation`.

    Raises:
        DatasetError: The file is absent or has another form. The message names the entry.
    """
    kinds: dict[int, Saturation] = {}
    for number, entry in enumerate(read_json(path, list[_Kind], remedy=RESTORE, error=DatasetError), 1):
        where, value, threshold = f"{path}, entry {number}", entry.pixel_value, entry.saturation_threshold
        if not 1 <= value <= 65535 or value in kinds:
            said = "is already that of an earlier entry" if value in kinds else "is not in 1 to 65535"
            raise DatasetError(f"{where}: pixel_value {value} {said}. {RESTORE}")
        if threshold <= 0 or (entry.relative_saturation and threshold > 1):
            bounds = "in (0, 1], a share of the defect's area" if entry.relative_saturation else "above 0, in pixels"
            raise DatasetError(f"{where}: saturation_threshold must be {bounds}; got {threshold:g}. {RESTORE}")
        kinds[value] = Saturation(value, threshold, entry.relative_saturation)
    return Saturations(path, tuple(kinds.values()))


def mask_folders(mask_root: Path, normal_folder: str = "good") -> list[Path]:
    """Returns the folder of the masks of each anomalous image: `<mask_root>/<kind>/<image>`.

    Args:
        mask_root: The folder `ground_truth` of a category.
        normal_folder: Name of the folder of normal images, which is left out.
    """
    kinds = (kind for kind in list_folders(mask_root) if kind.name != normal_folder)
    return [folder for kind in kinds for folder in list_folders(kind)]


def read_defects(
    folder: Path, saturations: Saturations, shape: tuple[int, int], orientation: int = 1
) -> list[tuple[np.ndarray, float]]:
    """Returns each defect of an image, `[H, W]`, uint8 in {0, 1}, upright, and its saturation, a share in (0, 1].

    Each file of the folder is one defect, whatever its number of parts. The value of its pixels is the kind of the
    defect; see `saturation_share`.

    Args:
        folder: Folder of the image's masks. `read_mask_of` returns their union.
        saturations: Saturations of the image's category.
        shape: Height and width of the upright image, in pixels.
        orientation: Orientation of the image in its file, 1 to 8.

    Raises:
        DatasetError: A file cannot be read, marks nothing, has several values, or is of an unknown kind.
    """
    kinds = {kind.value: kind for kind in saturations.kinds}
    found = []
    for file in mask_files(folder):
        mask = read(file, stored=True)
        values = mask.grey()
        marks = np.unique(values[values > 0])
        if len(marks) != 1:
            said = "nothing" if not len(marks) else f"pixels with {len(marks)} values, {marks[0]} and {marks[1]} first"
            raise DatasetError(
                f"{file}: marks {said}. Each file here is one defect, all of whose pixels have the value of its kind "
                f"in {saturations.file.name}. Restore it."
            )
        if (kind := kinds.get(int(marks[0]))) is None:
            known = ", ".join(map(str, sorted(kinds)))
            raise DatasetError(
                f"{file}: its pixels are {marks[0]}, a kind of defect that {saturations.file} does not have "
                f"(it has {known or 'none'}). Restore one of them."
            )
        region = upright((values > 0).astype(np.uint8), turn_of(mask, shape, orientation))
        found.append((region, saturation_share(kind, int(np.count_nonzero(region)))))
    return found


def saturation_share(kind: Saturation, area: int) -> float:
    """Returns the share of a defect that has to be found for it to count as wholly found, in (0, 1].

    For an absolute threshold, in pixels, it is `min(threshold, area) / area`. For a relative threshold it is
    `floor(threshold area) / area`, at least one pixel. The share holds for any size of the resized mask.

    Args:
        kind: Saturation of the defect's kind.
        area: Area of the defect at the image's own size, in pixels, at least 1.

    Reference: Bergmann et al., Beyond Dents and Scratches, IJCV 130 (2022); the rounding is that of the evaluation
        code that MVTec publishes with the set.
    """
    pixels = max(int(kind.threshold * area), 1) if kind.relative else min(kind.threshold, area)
    return pixels / area


def resized(
    defects: list[tuple[np.ndarray, float]], resize: Callable[[np.ndarray], np.ndarray], mask: np.ndarray
) -> list[tuple[np.ndarray, float]]:
    """Returns defects at another size, each within the resized mask. Defects that vanish by resizing are left out.

    Args:
        defects: See `read_defects`.
        resize: Resizes a mask, `[H, W]` to `[h, w]`.
        mask: `[h, w]`, their union, resized.
    """
    regions = ((resize(region) & (mask != 0), share) for region, share in defects)
    return [(region.astype(np.uint8), share) for region, share in regions if region.any()]


def as_defects(found: Sequence[tuple[np.ndarray, float]]) -> tuple[Defect, ...]:
    """Returns defects in the form of a batch; see `read_defects`."""
    import torch  # not needed for checks of a dataset's files

    parts = ((*cropped(region), share) for region, share in found)
    return tuple(Defect(torch.from_numpy(part), corner, share) for part, corner, share in parts)


def cropped(region: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns the smallest part of an array `[H, W]` with all its non-zero values, and the position of its corner."""
    rows, columns = region.any(1).nonzero()[0], region.any(0).nonzero()[0]
    part = region[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.ascontiguousarray(part), (int(rows[0]), int(columns[0]))
