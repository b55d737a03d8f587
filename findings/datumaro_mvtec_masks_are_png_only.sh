#!/bin/sh
# Datumaro's MVTec importer finds only masks that end in .png: with .bmp or .tif the defect's mask is missing.
# The image keeps its label, so nothing fails. A user's own dataset in MVTec's layout then has no defect regions.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    datumaro==1.13.12 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import os
from importlib.metadata import version

import datumaro
from PIL import Image

print("datumaro", version("datumaro"))
found = {}
for suffix in ("png", "bmp", "tif"):
    for folder in ("train/good", "test/good", "test/crack", "ground_truth/crack"):
        os.makedirs(f"{suffix}/{folder}")
    for image in ("train/good/0", "test/good/0", "test/crack/0"):
        Image.new("RGB", (64, 64)).save(f"{suffix}/{image}.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (10, 10, 20, 20))
    mask.save(f"{suffix}/ground_truth/crack/0_mask.{suffix}")
    dataset = datumaro.Dataset.import_from(suffix, "mvtec_segmentation")
    [item] = [item for item in dataset if "crack" in item.id]
    found[suffix] = [type(annotation).__name__ for annotation in item.annotations]
    print(f"0_mask.{suffix}: {found[suffix]}")
assert found == {"png": ["Mask"], "bmp": ["Label"], "tif": ["Label"]}
PYTHON
