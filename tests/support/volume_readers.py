"""Files of volumes as the test of all readers writes and reads them."""

from pathlib import Path

import numpy as np
import SimpleITK

from afclip_lightning.inspection.volumes import VolumeVerdict
from afclip_lightning.volumes.cutting import Cutting, cut_volume
from afclip_lightning.volumes.find import Source, find_volumes
from afclip_lightning.volumes.importing import VOLUMES, cut_all
from tests.support.dicom_volumes import write_segmentation, write_series
from tests.support.volumes import lesion, phantom, write_nifti

NAMES = ("volume-0001", "patient-0001")
VERDICT = VolumeVerdict(volume="volume-0001", path="a.nii", axis="axial", slices=3, rule="highest", score=0.5)


def write_itk(path: Path) -> Path:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(phantom()), str(path), True)
    return path


def write_nii(path: Path) -> Path:
    return write_nifti(path, phantom())


def write_slice(folder: Path) -> Path:
    """Writes a DICOM series, and returns one of its files."""
    return write_series(folder / "scan", phantom())[3]


def write_seg(folder: Path) -> Path:
    """Writes a DICOM series with a segmentation, and returns the segmentation."""
    paths = write_series(folder / "scan", phantom())
    mask = (lesion() > 0).astype(np.uint8)[::-1, ::-1].transpose(2, 1, 0)[..., None]
    return write_segmentation(folder / "scan/seg.dcm", paths, mask)


def write_manifest(folder: Path) -> Path:
    """Writes a set of one volume, and returns the file that lists its volumes."""
    source = Source((write_nii(folder / "a.nii"),))
    cut_all([source], [NAMES], folder / "set", Cutting(), False, iter)
    return folder / "set" / VOLUMES


def cut(path: Path) -> None:
    """Cuts all volumes of a file's folder."""
    place = path.parent.parent / "cut"
    for source in find_volumes(path.parent).volumes:
        cut_volume(source, NAMES, "", place, Cutting())
