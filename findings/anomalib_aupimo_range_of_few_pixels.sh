#!/bin/sh
# anomalib's AUPIMO, the mean recall between two false-positive rates, is wrong if the normal images have few pixels. Their rates are
# whole numbers of pixels. The integral runs between the rates that are nearest to the bounds, but is divided by the width of the whole
# range. A map that finds everything without a false alarm has 0.90 with four normal images of 200 x 200 pixels (it integrates from 1.25e-5,
# not from 1e-5). A map that finds 90 of 100 pixels has 1.00 with 140,000 pixels (from 7.1e-6). A warning in the log gives the lower end.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip="python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target $work/packages"
$pip torch==2.13.0 numpy
$pip --upgrade --no-deps anomalib==2.7.0
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

# the file of the metric alone, without the packages that the rest of anomalib imports
root = Path(find_spec("anomalib").submodule_search_locations[0])
for name in ("anomalib", "anomalib.metrics", "anomalib.metrics.pimo"):
    package = ModuleType(name)
    package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    sys.modules[name] = package
from anomalib.metrics.pimo.functional import aupimo_scores  # noqa: E402


def scored(pixels, found):
    """Returns the AUPIMO of an image of which so many of 100 anomalous pixels are above all normal ones, and others below."""
    normal = torch.linspace(0, 0.5, pixels)
    normal[-40:] = torch.linspace(0.5, 1, 41)[1:]  # far enough apart for its thresholds
    maps = torch.cat([normal.reshape(-1, 4).T.reshape(4, 1, -1), torch.zeros(1, 1, pixels // 4)])
    masks = torch.zeros(maps.shape, dtype=torch.bool)
    masks[4, 0, :100] = True
    maps[4, 0, :found] = 2.0
    *_, scores, _ = aupimo_scores(maps, masks)
    return round(float(scores[4]), 3)


print("anomalib", version("anomalib"), "torch", version("torch"))
scores = {(pixels, found): scored(pixels, found) for pixels in (100_000, 140_000, 160_000) for found in (100, 90)}
for (pixels, found), score in scores.items():
    print(f"{pixels:,} normal pixels, {found} of 100 anomalous ones above all of them: {score}")
assert list(scores.values()) == [1.0, 0.9, 1.0, 1.0, 0.903, 0.813]
PYTHON
