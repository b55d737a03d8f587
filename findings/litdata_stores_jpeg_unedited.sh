#!/bin/sh
# litdata stores the original file of a JPEG image that was edited in memory, and so loses the edit. An image that is opened from a JPEG file
# and painted white comes back black. The same edit of a PNG file is stored. No warning is given. A copy of the image (image.copy()) keeps it.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    litdata==0.2.76 torch==2.15.0 torchvision==0.29.2 pillow==13.0.0 numpy==2.4.6
cd "$work"
cat >store.py <<'PYTHON'
from importlib.metadata import version

import litdata
import numpy as np
from PIL import Image


def edited(job):
    """Returns a black picture that was opened from a file and painted white."""
    suffix, copies = job
    image = Image.open(f"black.{suffix}")
    image = image.copy() if copies else image
    image.paste((255, 255, 255), (0, 0, *image.size))
    return {"image": image}


if __name__ == "__main__":
    print("litdata", version("litdata"), "pillow", version("pillow"))
    for suffix, copies, expected in (("jpg", False, 0), ("png", False, 255), ("jpg", True, 255)):
        Image.new("RGB", (16, 16)).save(f"black.{suffix}")
        folder = f"{suffix}_{copies}"
        litdata.optimize(edited, [(suffix, copies)], folder, num_workers=1, chunk_bytes="1MB")
        [sample] = litdata.StreamingDataset(folder)
        level = float(np.asarray(sample["image"]).mean())
        print(f"black.{suffix}, {'copied and ' if copies else ''}painted white, comes back with the mean level {level}")
        assert level == expected
PYTHON
PYTHONPATH="$work/packages" python3 store.py
