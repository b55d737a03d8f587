#!/bin/sh
# Datumaro reads the turned boxes of CVAT, and then cannot write the dataset in its own format.
# The error is a NotImplementedError without text, which names neither the box nor the image.
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

result = {}
for name, turned in (("straight", ""), ("turned", ' rotation="30.00"')):
    os.makedirs(f"{name}/images")
    Image.new("RGB", (100, 80)).save(f"{name}/images/a.png")
    box = f'<box label="scratch" occluded="0" xtl="40" ytl="35" xbr="60" ybr="45"{turned} z_order="0"></box>'
    image = f'<image id="0" name="a.png" width="100" height="80">{box}</image>'
    labels = "<labels><label><name>scratch</name><attributes></attributes></label></labels>"
    with open(f"{name}/annotations.xml", "w") as file:
        file.write(f"<annotations><version>1.1</version><meta><task>{labels}</task></meta>{image}</annotations>")
    dataset = datumaro.Dataset.import_from(name, "cvat")
    [shape] = [annotation for item in dataset for annotation in item.annotations]
    try:
        dataset.export(f"{name}-out", "datumaro")
        result[name] = (type(shape).__name__, "written")
    except NotImplementedError as error:
        result[name] = (type(shape).__name__, f"{type(error).__name__} {str(error)!r}")
print("datumaro", version("datumaro"), result)
assert result == {"straight": ("Bbox", "written"), "turned": ("RotatedBbox", "NotImplementedError ''")}
PYTHON
