#!/bin/sh
# supervision writes a mask that is one pixel high into COCO without a shape: read back, the defect has no pixel.
# Polygons with fewer than three corners are left out with a warning, and nothing replaces them. `segmentation`
# is an empty list, while the area is still 80 pixels. Cracks and scratches have such masks.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    supervision==0.31.2 opencv-python-headless==5.0.0.93 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import json

import cv2
import numpy as np
import supervision as sv

masks = np.zeros((2, 100, 100), bool)
masks[0, 50, 10:90] = True  # a crack
masks[1, 60:62, 10:90] = True  # one of two pixels
cv2.imwrite("a.png", np.zeros((100, 100, 3), np.uint8))
found = sv.Detections(xyxy=sv.mask_to_xyxy(masks), mask=masks, class_id=np.zeros(2, int))
sv.DetectionDataset(["crack"], ["a.png"], {"a.png": found}).as_coco(annotations_path="coco.json")
with open("coco.json") as file:
    written = json.load(file)["annotations"]
back = sv.DetectionDataset.from_coco(".", "coco.json", force_masks=True)
[image] = back.annotations
read = back.annotations[image].mask.sum((1, 2)).tolist()
print("supervision", sv.__version__)
for mask, entry, pixels in zip(masks, written, read, strict=True):
    print(f"{mask.sum()} pixels: area {entry['area']}, segmentation {entry['segmentation']}; read back: {pixels}")
assert written[0]["segmentation"] == []
assert written[0]["area"] == 80
assert read == [0, 160]
PYTHON
