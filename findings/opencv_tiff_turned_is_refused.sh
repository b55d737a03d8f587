#!/bin/sh
# OpenCV 5.0.0 cannot read a TIFF with orientation 5 to 8 that is not square: `imread` returns None for every flag.
# IMREAD_IGNORE_ORIENTATION does not help either. Orientation 1 to 4, or a square picture, is read.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    opencv-python-headless==5.0.0.93 pillow==13.0.0 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import os

os.environ["OPENCV_LOG_LEVEL"] = "SILENT"
import cv2
import numpy as np
from PIL import Image

FLAGS = ("IMREAD_COLOR", "IMREAD_GRAYSCALE", "IMREAD_UNCHANGED", "IMREAD_IGNORE_ORIENTATION")
print("OpenCV", cv2.__version__)
read = {}
for shape in ((5, 7), (6, 6)):
    for orientation in range(1, 9):
        Image.fromarray(np.zeros(shape, np.uint8)).save("image.tif", tiffinfo={274: orientation})
        found = [cv2.imread("image.tif", getattr(cv2, flag)) is not None for flag in FLAGS]
        read[shape, orientation] = found
        print(f"{shape}, orientation {orientation}:", dict(zip(FLAGS, found, strict=True)))
assert all(all(read[(6, 6), orientation]) for orientation in range(1, 9))
assert all(all(read[(5, 7), orientation]) for orientation in range(1, 5))
assert not any(any(read[(5, 7), orientation]) for orientation in range(5, 9))
PYTHON
