#!/bin/sh
# MONAI mirrors a NRRD volume whose `space` is "LPS" when it saves it as NIfTI: left and right, and front and back, are exchanged. NRRD allows
# the abbreviation for "left-posterior-superior", and of that spelling MONAI turns the affine into RAS. Of "LPS" it keeps the affine, and
# SaveImage writes it as if it were RAS. No warning is given. SimpleITK reads both spellings alike.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    monai==1.6.1 torch==2.15.0 pynrrd==1.1.3 nibabel==5.4.2 SimpleITK==2.5.7 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 -W ignore - <<'PYTHON'
import monai
import nibabel
import nrrd
import numpy as np
import SimpleITK
from monai.transforms import LoadImage, SaveImage

save = SaveImage(output_dir=".", output_postfix="saved", output_ext=".nii", separate_folder=False, print_log=False)
codes, placed = {}, {}
for space in ("left-posterior-superior", "LPS"):
    header = {"space": space, "space directions": np.diag([1.0, 2.0, 3.0]), "space origin": [10, 20, 30]}
    nrrd.write("volume.nrrd", np.zeros((2, 3, 4), np.int16), header)
    save(LoadImage(ensure_channel_first=True)("volume.nrrd"))
    codes[space] = nibabel.aff2axcodes(nibabel.load("volume_saved.nii").affine)
    images = [SimpleITK.ReadImage(name) for name in ("volume.nrrd", "volume_saved.nii")]
    placed[space] = [image.GetOrigin() for image in images]
    print(f"{space}: saved as {codes[space]}, origin of the NRRD file and of the NIfTI file: {placed[space]}")
print("MONAI", monai.__version__, "SimpleITK", SimpleITK.Version.VersionString())
assert codes == {"left-posterior-superior": ("L", "P", "S"), "LPS": ("R", "A", "S")}
assert placed["left-posterior-superior"] == [(10, 20, 30)] * 2
assert placed["LPS"] == [(10, 20, 30), (-10, -20, 30)]
PYTHON
