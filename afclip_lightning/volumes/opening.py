"""Opens a volume of any kind and its masks, and checks that their geometries are equal."""

from collections.abc import Collection
from pathlib import Path

from afclip_lightning.volumes.dicom_series import open_file, open_series
from afclip_lightning.volumes.find import Source
from afclip_lightning.volumes.grid import Grid
from afclip_lightning.volumes.nifti import open_nifti
from afclip_lightning.volumes.segmentation import open_segmentation
from afclip_lightning.volumes.text_headers import open_metaimage, open_nrrd
from afclip_lightning.volumes.volume import Reading, Volume
from afclip_runtime.errors import DatasetError

READERS = {"nii": open_nifti, "gz": open_nifti, "nrrd": open_nrrd, "nhdr": open_nrrd}
READERS |= {"mha": open_metaimage, "mhd": open_metaimage}


def open_volume(source: Source, scratch: Path, reading: Reading) -> Volume:
    """Returns a volume.

    Args:
        source: Files of the volume.
        scratch: Separate folder for unpacked files.
        reading: How ambiguous files are read.

    Raises:
        UserError: The volume cannot be read.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    if source.is_dicom:
        return open_series([open_file(path) for path in source.files], scratch)
    path = source.files[0]
    return READERS[path.suffix.lower().removeprefix(".")](path, scratch, reading)


def open_masks(
    source: Source, grid: Grid, anomalous: Collection[int] | None, scratch: Path, reading: Reading
) -> list[tuple[Volume, bool]]:
    """Returns the masks of a volume, each with whether its values were mapped already, so that 1 is anomalous.

    Args:
        source: The volume.
        grid: Grid of the volume.
        anomalous: Values of masks, or numbers of segments, that mean anomalous; `None` for all but 0.
        scratch: Folder for unpacked files.
        reading: How ambiguous files are read.

    Raises:
        UserError: A mask cannot be read, or its geometry differs from that of the volume.
    """
    found = []
    for number, path in enumerate(source.masks):
        plain = Reading(None, reading.form, reading.codes)
        mask = open_volume(Source((path,)), scratch / f"mask-{number}", plain)
        if difference := grid.difference(mask.grid):
            raise DatasetError(
                f"{path}: the mask has another geometry than its volume {source.name}: {difference}. Resample the mask "
                "to the volume (nearest neighbour), or give the mask that belongs to it."
            )
        found.append((mask, False))
    if source.segmentations:
        place = scratch / "segmentations"
        place.mkdir(parents=True, exist_ok=True)
        files = [open_file(path) for path in source.segmentations]
        found.append((open_segmentation(files, grid, anomalous, place), True))
    return found
