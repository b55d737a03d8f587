#!/bin/sh
# tifffile writes a boolean array as a 1-bit TIFF that is marked "white is zero": every other reader sees the mask's negative.
# tifffile itself ignores that mark and returns the original array, so a round trip does not show it.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    tifffile==2026.3.3 pillow==13.0.0 opencv-python-headless==5.0.0.93 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import cv2
import numpy as np
import tifffile
from PIL import Image

mask = np.zeros((8, 8), bool)
mask[2:4, 2:4] = True
tifffile.imwrite("mask.tif", mask)
with tifffile.TiffFile("mask.tif") as file:
    page = file.pages[0]
    photometric, bits = page.photometric.name, page.bitspersample
marked = {
    "tifffile": tifffile.imread("mask.tif"),
    "Pillow": np.asarray(Image.open("mask.tif")),
    "OpenCV": cv2.imread("mask.tif", cv2.IMREAD_UNCHANGED),
}
print("tifffile", tifffile.__version__, "; written as", photometric, bits, "bit; marked are 4 of 64 pixels")
for name, read in marked.items():
    print(f"{name}: {int((read > 0).sum())} marked")
assert (photometric, bits) == ("MINISWHITE", 1)
assert [int((read > 0).sum()) for read in marked.values()] == [4, 60, 60]
PYTHON
