#!/bin/sh
# Pillow turns "white is zero" into "black is zero" for 8-bit TIFF, but leaves 16-bit and float TIFF as negatives.
# The mode (I;16, F) does not show it, so the same radiograph is a positive with 8 bits and a negative with 16.
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

print("Pillow", PIL.__version__)
read = {}
for name, type_, top in (("8 bits", np.uint8, 255), ("16 bits", np.uint16, 65535), ("float", np.float32, 1.0)):
    brightness = np.linspace(0, top, 64)[None].repeat(8, 0)  # black on the left, white on the right
    tifffile.imwrite("image.tif", (top - brightness).astype(type_), photometric="miniswhite")
    with Image.open("image.tif") as image:
        assert image.tag_v2[262] == 0  # white is zero
        read[name] = image.mode, *np.asarray(image)[0, [0, -1]].tolist()
    print(f"{name}: mode {read[name][0]}, left {read[name][1]}, right {read[name][2]}")
assert read["8 bits"] == ("L", 0, 255)
assert read["16 bits"] == ("I;16", 65535, 0)
assert read["float"] == ("F", 1.0, 0.0)
PYTHON
