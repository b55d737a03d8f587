#!/bin/sh
# label-studio-sdk's contour2rle swaps width and height: on an image that is wider than high, a region on the right is lost.
# The canvas has `width` rows and `height` columns. What lies outside is cut off. What lies inside is laid out in rows of
# the wrong length, and its pixels are 100 where those of mask2rle are 255.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    --no-deps label-studio-sdk==2.1.2 opencv-python-headless==4.12.0.88 numpy==2.2.6 pillow==13.0.0
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import importlib.util
from importlib.metadata import version

import numpy as np

# The one module, without the package's own dependencies
spec = importlib.util.spec_from_file_location("brush", "packages/label_studio_sdk/converter/brush.py")
brush = importlib.util.module_from_spec(spec)
spec.loader.exec_module(brush)
width, height = 60, 40


def painted(rle: list[int]) -> np.ndarray:
    return brush.decode_rle(rle).reshape(height, width, 4)[..., 3]  # how the tool lays a brush out


def square(left: int) -> tuple[np.ndarray, np.ndarray]:
    contour = np.array([[[left, 5]], [[left + 10, 5]], [[left + 10, 15]], [[left, 15]]])
    mask = np.zeros((height, width), np.uint8)
    mask[5:16, left : left + 11] = 255
    return contour, mask


print("label-studio-sdk", version("label-studio-sdk"))
for left in (45, 5):
    contour, mask = square(left)
    rle = brush.contour2rle([contour], 0, width, height)
    by_contour, by_mask = painted(rle), painted(brush.mask2rle(mask))
    print(f"square from column {left}: {int((mask > 0).sum())} pixels;", end=" ")
    print(f"contour2rle paints {int((by_contour > 0).sum())}, of them {int(((by_contour > 0) & (mask > 0)).sum())} right")
    assert np.array_equal(by_mask, mask)
    if left == 45:
        assert by_contour.max() == 0
    else:
        assert set(np.unique(by_contour).tolist()) == {0, 100}
        assert not np.array_equal(by_contour > 0, mask > 0)
PYTHON
