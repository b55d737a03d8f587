#!/bin/sh
# OpenCV mixes up a 16-bit RGB TIFF whose colours are stored in planes: neighbouring values of the first plane become the colours of a pixel.
# The same layout with 8 bits is read correctly.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    opencv-python-headless==5.0.0.93 tifffile==2026.3.3 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import cv2
import numpy as np
import tifffile

print("OpenCV", cv2.__version__)
right = {}
for type_, top in ((np.uint8, 255), (np.uint16, 65535)):
    red = np.linspace(0, top, 48).astype(type_)[None].repeat(8, 0)
    colours = np.stack([red, red // 2, red // 4])
    tifffile.imwrite("planes.tif", colours, photometric="rgb", planarconfig="separate")
    read = cv2.imread("planes.tif", cv2.IMREAD_UNCHANGED)[..., ::-1]  # to RGB
    right[type_] = np.array_equal(read, np.moveaxis(colours, 0, -1))
    print(f"{type_.__name__}: pixel 1 is {read[0, 1].tolist()}, written were {colours[:, 0, 1].tolist()}")
    if type_ is np.uint16:
        assert read[0, 1].tolist() == red[0, 3:6].tolist()
assert right == {np.uint8: True, np.uint16: False}
PYTHON
