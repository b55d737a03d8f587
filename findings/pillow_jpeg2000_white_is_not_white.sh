#!/bin/sh
# Pillow reads a JPEG 2000 mask of 1 bit with 128 as white, so that `mask > 128` and `mask == 255` find nothing. It shifts values up to 8 or
# 16 bits and leaves the low bits 0: white of 2 bits becomes 192, and 4095 of 12 bits becomes 65520. The same pixels in PNG get 255.
# OpenCV gives the values of 12 bits as they are, and cannot read fewer than 8 bits.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    pillow==13.0.0 imagecodecs==2026.3.6 opencv-python-headless==5.0.0.93 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import os

os.environ["OPENCV_LOG_LEVEL"] = "SILENT"
import cv2
import imagecodecs
import numpy as np
import PIL
from PIL import Image

print("Pillow", PIL.__version__, "OpenCV", cv2.__version__)
found = {}
for bits in (1, 2, 8, 12, 16):
    values = np.resize(np.arange(2**bits, dtype=np.uint8 if bits <= 8 else np.uint16), (64, 256))
    values[0, 0] = white = 2**bits - 1
    data = imagecodecs.jpeg2k_encode(values, bitspersample=bits, reversible=True, level=0, codecformat="jp2")
    assert np.array_equal(imagecodecs.jpeg2k_decode(data), values)  # without loss
    with open("image.jp2", "wb") as file:
        file.write(data)
    with Image.open("image.jp2") as image:
        pillow = int(np.asarray(image)[0, 0])
    opencv = cv2.imread("image.jp2", cv2.IMREAD_UNCHANGED)
    found[bits] = pillow, None if opencv is None else int(opencv[0, 0])
    print(f"white of {bits} bits, {white}: Pillow {pillow}, OpenCV {found[bits][1]}")
Image.fromarray(np.full((8, 8), True)).save("mask.png")
with Image.open("mask.png") as mask:
    assert np.asarray(mask.convert("L")).max() == 255
assert found == {1: (128, None), 2: (192, None), 8: (255, 255), 12: (65520, 4095), 16: (65535, 65535)}
PYTHON
