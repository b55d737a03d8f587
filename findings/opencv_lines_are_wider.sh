#!/bin/sh
# OpenCV draws lines wider than requested: thickness 2, 3, 4, 5 gives 3, 5, 5, 7 pixels, for line, polylines and
# drawContours. An outline hides up to one pixel more on either side of a small region. Pillow draws the requested width.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    opencv-python-headless==5.0.0.93 pillow==13.0.0 numpy==2.4.6
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import cv2
import numpy as np
import PIL
from PIL import Image, ImageDraw

asked = list(range(1, 8))
corners = np.array([[20, 30], [180, 30], [180, 90], [20, 90]])
found = {name: [] for name in ("line", "polylines", "drawContours", "Pillow")}
for thickness in asked:
    empty = np.zeros((120, 200), np.uint8)
    pictures = {
        "line": cv2.line(empty.copy(), (20, 30), (180, 30), 1, thickness),
        "polylines": cv2.polylines(empty.copy(), [corners], True, 1, thickness),
        "drawContours": cv2.drawContours(empty.copy(), [corners[:, None]], -1, 1, thickness),
    }
    image = Image.fromarray(empty)
    ImageDraw.Draw(image).line((20, 30, 180, 30), 1, thickness)
    pictures["Pillow"] = np.asarray(image)
    for name, picture in pictures.items():
        found[name].append(int(picture[:60, 100].sum()))  # pixels that a straight line covers across
print("OpenCV", cv2.__version__, "; Pillow", PIL.__version__, "; asked for", asked)
for name, widths in found.items():
    print(f"{name}: {widths}")
assert found["Pillow"] == asked
assert found["line"] == found["polylines"] == found["drawContours"] == [1, 3, 5, 5, 7, 7, 9]
PYTHON
