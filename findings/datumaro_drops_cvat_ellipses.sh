#!/bin/sh
# Datumaro drops the ellipses of a CVAT export without a warning: an image with a defect becomes one without.
# A box beside it in the same export is read.
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

os.makedirs("export/images")
for name in ("box", "ellipse"):
    Image.new("RGB", (100, 80)).save(f"export/images/{name}.png")
shapes = {
    "box": '<box label="scratch" occluded="0" xtl="40" ytl="35" xbr="60" ybr="45" z_order="0"></box>',
    "ellipse": '<ellipse label="scratch" occluded="0" cx="50" cy="40" rx="10" ry="5" z_order="0"></ellipse>',
}
images = [
    f'<image id="{i}" name="{name}.png" width="100" height="80">{shape}</image>'
    for i, (name, shape) in enumerate(shapes.items())
]
labels = "<labels><label><name>scratch</name><attributes></attributes></label></labels>"
with open("export/annotations.xml", "w") as file:
    file.write(f"<annotations><version>1.1</version><meta><task>{labels}</task></meta>{''.join(images)}</annotations>")
found = {item.id: [type(shape).__name__ for shape in item.annotations] for item in datumaro.Dataset.import_from("export", "cvat")}
print("datumaro", version("datumaro"), found)
assert found == {"box": ["Bbox"], "ellipse": []}
PYTHON
