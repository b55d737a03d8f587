#!/bin/sh
# SimpleITK adds scl_inter of a NIfTI file whose scl_slope is 0. The standard (nifti1.h: "If the scl_slope field is nonzero, then each voxel
# value in the dataset should be scaled") means that the stored values are then used as they are. nibabel reads them so.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    nibabel==5.4.2 SimpleITK==2.5.7 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import nibabel
import numpy as np
import SimpleITK

header = nibabel.Nifti1Header()
header.set_data_dtype(np.int16)
header.set_data_shape((2, 2, 2))
header.set_sform(np.eye(4), 1)
header["vox_offset"], header["scl_slope"], header["scl_inter"] = 352, 0, 7
with open("a.nii", "wb") as file:
    file.write(header.binaryblock + b"\0" * 4 + np.arange(8, dtype="<i2").tobytes())
found = {
    "nibabel": np.asarray(nibabel.load("a.nii").dataobj).ravel(order="F").tolist(),
    "SimpleITK": SimpleITK.GetArrayFromImage(SimpleITK.ReadImage("a.nii")).ravel().astype(int).tolist(),
}
print(found, "nibabel", nibabel.__version__, "SimpleITK", SimpleITK.Version.VersionString())
assert found == {"nibabel": list(range(8)), "SimpleITK": list(range(7, 15))}
PYTHON
