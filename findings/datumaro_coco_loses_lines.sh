#!/bin/sh
# Datumaro leaves out lines and points when it writes COCO's instances, without a warning. An image with a crack that was drawn as a line
# gets no shape, and so looks like a normal image. Polygons and ellipses are written.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    datumaro==1.13.12 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import json
import os
from importlib.metadata import version

import datumaro
from datumaro.components.annotation import Ellipse, Points, Polygon, PolyLine
from datumaro.components.media import Image
from PIL import Image as Pictures

shapes = {
    "polygon": Polygon([10, 10, 30, 10, 20, 30], label=0),
    "ellipse": Ellipse(10, 10, 40, 30, label=0),
    "line": PolyLine([5, 5, 50, 30], label=0),
    "points": Points([5, 5], label=0),
}
items = []
for name, shape in shapes.items():
    Pictures.new("RGB", (60, 40)).save(f"{name}.png")
    media = Image.from_file(path=f"{name}.png", size=(40, 60))
    items.append(datumaro.DatasetItem(name, subset="all", media=media, annotations=[shape]))
dataset = datumaro.Dataset.from_iterable(items, categories=["scratch"])
dataset.export("coco_instances", "coco_instances", save_media=False)
with open("coco_instances/annotations/instances_all.json") as file:
    content = json.load(file)
names = {image["id"]: os.path.splitext(image["file_name"])[0] for image in content["images"]}
in_coco = {name: 0 for name in names.values()}
for annotation in content["annotations"]:
    in_coco[names[annotation["image_id"]]] += 1
print("datumaro", version("datumaro"))
print("COCO:", in_coco)
assert in_coco == {"polygon": 1, "ellipse": 1, "line": 0, "points": 0}
PYTHON
