#!/bin/sh
# Ray Data with max_errored_blocks drops all images of a block in which one is damaged, but count() includes them until the data was read once.
# Of 20 images in two blocks, one image damaged: count() says 20, take_all() gives 10, and count() of the same dataset then says 10.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    "ray[data]==2.60.0" pillow==13.0.0 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON' 2>log || { cat log; exit 1; }
import logging
from pathlib import Path

from PIL import Image

import ray

folder = Path("images").absolute()
folder.mkdir()
for level in range(20):
    Image.new("RGB", (8, 8), (level, level, level)).save(folder / f"{level:02}.png")
whole = folder / "07.png"
whole.write_bytes(whole.read_bytes()[:40])
ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False, logging_level="error")
logging.getLogger("ray.data").setLevel("CRITICAL")
ray.data.DataContext.get_current().max_errored_blocks = -1
images = ray.data.read_images(str(folder), override_num_blocks=2)
before, rows, after = images.count(), len(images.take_all()), images.count()
print(f"ray {ray.__version__}: 20 images in 2 blocks, 1 of them damaged: count() = {before}; {rows} rows; count() = {after}")
assert (before, rows, after) == (20, 10, 10)
ray.shutdown()
PYTHON
