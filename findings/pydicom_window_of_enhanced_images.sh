#!/bin/sh
# pydicom's apply_modality_lut and apply_voi_lut ignore an enhanced image's own rescale and window, without a warning.
# Enhanced CT and MR keep both in functional groups. The functions look only at the top level of the dataset and return the
# stored values. For the plain object of the same image they give HU and a windowed image.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    pydicom==3.0.2 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut

stored = np.array([[0, 1000, 1040, 1100, 4095]], np.uint16)


def image() -> Dataset:
    dataset = Dataset()
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsStored, dataset.BitsAllocated = 12, 16
    return dataset


rescale, window = Dataset(), Dataset()
rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1024, "HU"
window.WindowCenter, window.WindowWidth = 40, 400
plain, enhanced = image(), image()
plain.update(rescale)
plain.update(window)
groups = Dataset()
groups.PixelValueTransformationSequence, groups.FrameVOILUTSequence = [rescale], [window]
enhanced.SharedFunctionalGroupsSequence = [groups]
shown = {}
for name, dataset in (("plain", plain), ("enhanced", enhanced)):
    shown[name] = apply_voi_lut(apply_modality_lut(stored, dataset), dataset)
    print(name, shown[name].dtype, np.round(shown[name], 1).tolist())
print("pydicom", pydicom.__version__)
assert not np.array_equal(shown["plain"], stored)
assert np.array_equal(shown["enhanced"], stored)
PYTHON
