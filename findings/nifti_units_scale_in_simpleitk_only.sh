#!/bin/sh
# Of a NIfTI file in micrometres, SimpleITK converts the voxel size to millimetres, and nibabel's affine does not. A mask that is written
# with `Nifti1Image(mask, image.affine)` has no unit, which SimpleITK takes as millimetres: it is 1,000 times as large as its image, and a
# volume 10^9 times. Neither gives a warning. SimpleITK does not convert the "um" of NRRD's `space units`.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    nibabel==5.4.2 pynrrd==1.1.3 SimpleITK==2.5.7 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import nibabel
import nrrd
import numpy as np
import SimpleITK

pixels = np.zeros((2, 3, 4), np.uint8)
image = nibabel.Nifti1Image(pixels, np.diag([5.0, 5.0, 5.0, 1.0]))
image.header.set_xyzt_units("micron")
nibabel.save(image, "image.nii")
read = nibabel.load("image.nii")
nibabel.save(nibabel.Nifti1Image(pixels, read.affine), "mask.nii")
header = {"space": "LPS", "space directions": np.eye(3) * 5, "space origin": [0, 0, 0], "space units": ["um"] * 3}
nrrd.write("image.nrrd", pixels, header)
sizes = {name: SimpleITK.ReadImage(name).GetSpacing()[0] for name in ("image.nii", "mask.nii", "image.nrrd")}
print("nibabel", nibabel.__version__, "SimpleITK", SimpleITK.Version.VersionString())
print("voxels of 5 micrometres: nibabel's affine", read.affine[0, 0], "SimpleITK's spacing", sizes)
assert read.header.get_xyzt_units()[0] == "micron"
assert read.affine[0, 0] == 5
assert nibabel.load("mask.nii").header.get_xyzt_units()[0] == "unknown"
assert np.allclose(list(sizes.values()), [0.005, 5, 5])
PYTHON
