#!/bin/sh
# Pillow reads a 16-bit RGB TIFF whose colours are stored in planes as 8 bits of the wrong bytes: white becomes 125.
# The same picture with its colours stored pixel by pixel is read as 255.
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

ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(8, 0)
tifffile.imwrite("planes.tif", np.stack([ramp] * 3), photometric="rgb", planarconfig="separate")
tifffile.imwrite("pixels.tif", np.dstack([ramp] * 3), photometric="rgb", planarconfig="contig")
print("Pillow", PIL.__version__, "; values / 257:", np.round(ramp[0, [0, 16, 32, 48, 63]] / 257).astype(int).tolist())
read = {}
for name in ("pixels", "planes"):
    with Image.open(f"{name}.tif") as image:
        read[name] = np.asarray(image)[0, [0, 16, 32, 48, 63], 0].tolist()
        print(f"{name}.tif: mode {image.mode}, red {read[name]}")
assert np.array_equal(tifffile.imread("planes.tif")[0], ramp)
assert max(abs(a - b / 257) for a, b in zip(read["pixels"], ramp[0, [0, 16, 32, 48, 63]].tolist(), strict=True)) < 1
assert read["planes"][-1] == 125
PYTHON
