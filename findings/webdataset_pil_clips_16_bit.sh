#!/bin/sh
# webdataset's decode("pil") and decode("pill") clip 16-bit grey images: every value from 255 on becomes white.
# The image is converted to 8 bits without scaling. Of a ramp over all 65,536 levels, only 0 and 255 are left.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    webdataset==1.0.2 pillow==13.0.0 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import io
import tarfile
from importlib.metadata import version

import numpy as np
import webdataset
from PIL import Image

ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(8, 0)
buffer = io.BytesIO()
Image.fromarray(ramp).save(buffer, "PNG")
with tarfile.open("images.tar", "w") as archive:
    member = tarfile.TarInfo("0.png")
    member.size = len(buffer.getvalue())
    archive.addfile(member, io.BytesIO(buffer.getvalue()))
print("webdataset", version("webdataset"), "; written:", ramp[0, [0, 1, 32, 63]].tolist())
for kind, mode in (("pil", "RGB"), ("pill", "L")):
    [sample] = webdataset.WebDataset("images.tar", shardshuffle=False).decode(kind)
    read = np.asarray(sample["png"]).reshape(8, 64, -1)[0, :, 0]
    print(f"decode({kind!r}): mode {sample['png'].mode}, {read[[0, 1, 32, 63]].tolist()}, {np.unique(read).size} levels")
    assert sample["png"].mode == mode
    assert np.unique(read).tolist() == [0, 255]
PYTHON
