#!/bin/sh
# pydicom's pixel_array(…, index=1) and iter_pixels cannot read the second frame of a 1-bit object of 13 x 11 pixels, such as a DICOM
# segmentation. Frames follow each other without padding (PS3.5, 8.1.1), and a frame that begins within a byte loses its end. Reading all
# frames at once is correct. So are frames of 512 x 512 pixels, which end with a byte.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    pydicom==3.0.2 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import io

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.pixels import iter_pixels, pack_bits, pixel_array
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

found = {}
for rows, columns in ((13, 11), (512, 512)):
    frames = np.random.default_rng(0).integers(0, 2, (3, rows, columns), dtype=np.uint8)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SegmentationStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    item = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    item.SOPClassUID, item.SOPInstanceUID = SegmentationStorage, "1.2.3"
    item.Rows, item.Columns, item.NumberOfFrames = rows, columns, 3
    item.BitsAllocated = item.BitsStored = item.SamplesPerPixel = 1
    item.HighBit = item.PixelRepresentation = 0
    item.PhotometricInterpretation = "MONOCHROME2"
    item.PixelData = pack_bits(frames, pad=True)
    file = io.BytesIO()
    item.save_as(file, enforce_file_format=True)
    assert np.array_equal(item.pixel_array, frames)  # all at once

    def said(read) -> str:
        file.seek(0)
        try:
            return "right" if np.array_equal(read(), frames[1]) else "wrong"
        except ValueError as error:
            return str(error)

    found[rows, columns] = (said(lambda: pixel_array(file, index=1)), said(lambda: list(iter_pixels(file))[1]))
    print(rows, "x", columns, found[rows, columns])
print("pydicom", pydicom.__version__)
assert found[512, 512] == ("right", "right")
assert all("cannot reshape array of size 137 into shape (13,11)" in text for text in found[13, 11])
PYTHON
