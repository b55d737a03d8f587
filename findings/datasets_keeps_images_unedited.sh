#!/bin/sh
# Hugging Face datasets loses the edits of an image that was opened from a file: it stores the file's path in place of the pixels. A
# `Dataset.map` that paints its image in place and returns it changes nothing, whatever the file's format. No warning is given. A copy of
# the image (image.copy()) is stored with the edit.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# in a folder of this name, because dill pickles the modules of other folders
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/site-packages" \
    datasets==5.2.0 pyarrow==26.0.1 dill==0.4.1 pillow==13.0.0 numpy==2.4.6
cd "$work"
cat >paint.py <<'PYTHON'
import datasets
import numpy as np
from PIL import Image

datasets.disable_progress_bars()


def painted(row):
    """Returns the row with its picture painted white in place."""
    row["image"].paste((255, 255, 255), (0, 0, *row["image"].size))
    return row


def copied(row):
    """Returns the row with a white copy of its picture."""
    return painted({"image": row["image"].copy()})


print("datasets", datasets.__version__)
for suffix in ("png", "bmp"):
    path = f"black.{suffix}"
    Image.new("RGB", (8, 8)).save(path)
    files = datasets.Dataset.from_dict({"image": [path]}).cast_column("image", datasets.Image())
    image = painted({"image": Image.open(path)})["image"]
    levels = {
        "in memory": np.asarray(image).mean(),
        "from_dict": np.asarray(datasets.Dataset.from_dict({"image": [image]})[0]["image"]).mean(),
        "map": np.asarray(files.map(painted)[0]["image"]).mean(),
        "map with a copy": np.asarray(files.map(copied)[0]["image"]).mean(),
    }
    print(f"{path}, painted white; mean level:", {name: float(level) for name, level in levels.items()})
    assert list(levels.values()) == [255, 0, 0, 255]
PYTHON
HF_HUB_OFFLINE=1 HF_HOME="$work/home" PYTHONPATH="$work/site-packages" python3 paint.py
