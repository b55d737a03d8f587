#!/bin/sh
# pydicom's error for JPEG lossless and JPEG-LS begins with "gdcm - requires gdcm>=3.0.10", but PyPI has no such gdcm.
# The newest gdcm is 1.1. python-gdcm has the versions that the message asks for.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    pydicom==3.0.2 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import subprocess
import sys

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLosslessSV1

dataset = Dataset()
dataset.file_meta = FileMetaDataset()
dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
dataset.Rows = dataset.Columns = 2
dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
dataset.PixelData = encapsulate([bytes(2)])  # never reached: there is no decoder
print("pydicom", pydicom.__version__)
try:
    dataset.pixel_array
except RuntimeError as error:
    message = str(error)
print(message)
assert "gdcm - requires gdcm>=3.0.10" in message
command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--target", "x", "gdcm>=3.0.10"]
advised = subprocess.run(command, capture_output=True, text=True)
said = next(line for line in advised.stderr.splitlines() if "from versions" in line)
print("pip install 'gdcm>=3.0.10':", said)
assert advised.returncode != 0
assert "gdcm>=3.0.10" in said
command[-1] = "python-gdcm>=3.0.10"
assert subprocess.run(command, capture_output=True).returncode == 0
PYTHON
