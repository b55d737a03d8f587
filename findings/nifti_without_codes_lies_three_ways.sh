#!/bin/sh
# A NIfTI file whose qform_code and sform_code are both 0 is oriented in three different ways. By the standard (nifti1.h, method 1), its axes
# run to the right, front and head. nibabel has them run to the left, front and head (as in Analyze files), and SimpleITK to the left, back and
# head. A volume that nibabel wrote without an affine is therefore reversed, front to back, in SimpleITK, and a mask that one of them reorients
# for the other marks the wrong side. Neither gives a warning.
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

image = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.int16), None)
nibabel.save(image, "a.nii")
read = nibabel.load("a.nii")
assert (read.header["qform_code"], read.header["sform_code"]) == (0, 0)
codes = {"nibabel": nibabel.aff2axcodes(read.affine)}
direction = np.array(SimpleITK.ReadImage("a.nii").GetDirection()).reshape(3, 3)
affine = np.eye(4)
affine[:3, :3] = np.diag([-1, -1, 1]) @ direction  # its world is LPS
codes["SimpleITK"] = nibabel.aff2axcodes(affine)
print(codes, "nibabel", nibabel.__version__, "SimpleITK", SimpleITK.Version.VersionString())
assert codes == {"nibabel": ("L", "A", "S"), "SimpleITK": ("L", "P", "S")}
PYTHON
