#!/bin/sh
# Pillow reads TIFF of unsigned 32 bits into signed ones: a label of 2^31 or more becomes negative.
# `labels > 0` then misses what is marked.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import numpy as np
import PIL
import tifffile
from PIL import Image

labels = np.zeros((8, 8), np.uint32)
labels[2:4, 2:4], labels[5:7, 5:7] = 7, 2**31 + 7
tifffile.imwrite("labels.tif", labels)
with Image.open("labels.tif") as image:
    mode, read = image.mode, np.asarray(image)
print("Pillow", PIL.__version__, "; mode", mode, read.dtype, "; labels", np.unique(read).tolist())
print("pixels above 0:", int((read > 0).sum()), "of", int((labels > 0).sum()))
assert np.array_equal(tifffile.imread("labels.tif"), labels)
assert np.unique(read).tolist() == [7 - 2**31, 0, 7]
assert (read > 0).sum() == 4
PYTHON
