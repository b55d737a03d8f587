#!/bin/sh
# label-studio-sdk writes a rotated box into COCO in the wrong place, unless the image is square.
# It rotates the box in percentages of width and height, which have different lengths. The enclosing box then misses the
# true corners by several pixels. For the same box on a square image it is right.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    label-studio-sdk==2.1.2
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import json
import math
from importlib.metadata import version

from label_studio_sdk.converter import Converter

CONFIG = """<View><Image name="image" value="$image"/>
<RectangleLabels name="box" toName="image"><Label value="scratch"/></RectangleLabels></View>"""
LEFT, TOP, WIDTH, HEIGHT, ANGLE = 300.0, 100.0, 120.0, 50.0, 35.0  # in pixels; turned about the upper left corner


def true_box() -> list[float]:
    cos, sin = math.cos(math.radians(ANGLE)), math.sin(math.radians(ANGLE))
    corners = [(x * cos - y * sin, x * sin + y * cos) for x in (0, WIDTH) for y in (0, HEIGHT)]
    (left, right), (top, bottom) = ((min(side), max(side)) for side in zip(*corners))
    return [LEFT + left, TOP + top, right - left, bottom - top]


print("label-studio-sdk", version("label-studio-sdk"))
for width, height in ((600, 600), (600, 400)):
    value = {"x": 100 * LEFT / width, "y": 100 * TOP / height, "rotation": ANGLE, "rectanglelabels": ["scratch"]}
    value |= {"width": 100 * WIDTH / width, "height": 100 * HEIGHT / height}
    result = {"id": "a", "from_name": "box", "to_name": "image", "type": "rectanglelabels", "value": value}
    result |= {"original_width": width, "original_height": height, "image_rotation": 0}
    annotation = {"id": 1, "completed_by": 1, "result": [result], "was_cancelled": False, "created_at": "2026-01-01"}
    with open("tasks.json", "w") as file:
        json.dump([{"id": 1, "data": {"image": "a.png"}, "annotations": [annotation]}], file)
    converter = Converter(CONFIG, project_dir=".", download_resources=False)
    converter.convert_to_coco("tasks.json", "out", is_dir=False, output_image_dir=".")
    with open("out/result.json") as file:
        [written] = [annotation["bbox"] for annotation in json.load(file)["annotations"]]
    off = max(abs(a - b) for a, b in zip(written, true_box()))
    print(f"{width}x{height}: {[round(v, 1) for v in written]}, true {[round(v, 1) for v in true_box()]}: off {off:.1f}")
    assert (off < 0.1) == (width == height)
PYTHON
