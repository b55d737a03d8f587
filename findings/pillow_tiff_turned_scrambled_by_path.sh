#!/bin/sh
# Pillow scrambles an uncompressed TIFF with orientation 6 when it is opened by its path, and reads it correctly from a file object.
# The size is right before the pixels are loaded. After that the rows have the length of the columns, and the image is rotated.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    pillow==13.0.0 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import numpy as np
import PIL
from PIL import Image

stored = np.arange(35, dtype=np.uint8).reshape(5, 7)
Image.fromarray(stored).save("turned.tif", tiffinfo={274: 6})  # 6: the first row is the right edge
right = np.rot90(stored, -1)
with Image.open("turned.tif") as image:
    announced, by_path = image.size, np.asarray(image)
with open("turned.tif", "rb") as file, Image.open(file) as image:
    by_file = np.asarray(image)
print("Pillow", PIL.__version__)
print("by path: size", announced, "before loading, array of shape", by_path.shape, "\n", by_path)
print("by file: array of shape", by_file.shape, "\n", by_file)
assert np.array_equal(by_file, right)
assert announced == (5, 7)
assert by_path.shape == (5, 7)  # right is (7, 5)
assert not np.array_equal(by_path, stored)
assert np.array_equal(by_path.ravel()[:7], [30, 25, 20, 15, 10, 5, 0])
PYTHON
