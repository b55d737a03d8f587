#!/bin/sh
# OpenCV multiplies packed 12-bit TIFF by 16 with IMREAD_UNCHANGED and cannot read it with IMREAD_GRAYSCALE.
# Pillow gives the values as they are, 0 to 4095. A threshold that was set with one reader therefore fails with the other.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    opencv-python-headless==5.0.0.93 pillow==13.0.0 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import os
import struct

os.environ["OPENCV_LOG_LEVEL"] = "SILENT"
import cv2
import numpy as np
from PIL import Image

values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
left, right = values[:, ::2].astype(int), values[:, 1::2].astype(int)
packed = np.dstack([left >> 4, (left & 15) << 4 | right >> 8, right & 255]).astype(np.uint8).tobytes()  # 2 in 3 bytes
tags = {256: 64, 257: 64, 258: 12, 259: 1, 262: 1, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: 64, 279: len(packed)}
entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
with open("image.tif", "wb") as file:
    file.write(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + packed)
unchanged = cv2.imread("image.tif", cv2.IMREAD_UNCHANGED)
grey = cv2.imread("image.tif", cv2.IMREAD_GRAYSCALE)
with Image.open("image.tif") as image:
    pillow = np.asarray(image)
print("OpenCV", cv2.__version__, "; IMREAD_UNCHANGED", unchanged.dtype, "up to", unchanged.max())
print("IMREAD_GRAYSCALE", grey, "; Pillow", pillow.dtype, "up to", pillow.max())
assert np.array_equal(pillow, values)
assert np.array_equal(unchanged, values * 16)
assert grey is None
PYTHON
