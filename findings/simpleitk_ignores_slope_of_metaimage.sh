#!/bin/sh
# SimpleITK ignores ElementToIntensityFunctionSlope and …Offset of a MetaImage: the stored values come out as they are. By the format, the
# intensity is slope * value + offset. No warning is given, and nothing of it is in the image's metadata. The slopes of NIfTI and DICOM are
# applied. A CT volume in MetaImage with the offset -1024 is therefore brighter by 1024.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    SimpleITK==2.5.7 nibabel==5.4.2 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import nibabel
import numpy as np
import SimpleITK

values = np.arange(24, dtype="<i2").reshape(2, 3, 4)
fields = ["ObjectType = Image", "NDims = 3", "BinaryData = True", "ElementToIntensityFunctionSlope = 2"]
fields += ["ElementToIntensityFunctionOffset = -1024", "DimSize = 4 3 2", "ElementType = MET_SHORT", "ElementDataFile = LOCAL"]
with open("image.mha", "wb") as file:
    file.write("\n".join(fields).encode() + b"\n" + values.tobytes())
header = nibabel.Nifti1Header()
header.set_data_dtype(np.int16)
header.set_data_shape((4, 3, 2))
header.set_sform(np.eye(4), 1)
header["vox_offset"], header["scl_slope"], header["scl_inter"] = 352, 2, -1024
with open("image.nii", "wb") as file:
    file.write(header.binaryblock + b"\0" * 4 + values.tobytes())
read = {name: SimpleITK.ReadImage(name) for name in ("image.mha", "image.nii")}
firsts = {name: SimpleITK.GetArrayFromImage(image).ravel()[:3].astype(int).tolist() for name, image in read.items()}
print("SimpleITK", SimpleITK.Version.VersionString(), firsts, "metadata", read["image.mha"].GetMetaDataKeys())
assert firsts == {"image.mha": [0, 1, 2], "image.nii": [-1024, -1022, -1020]}
assert not [key for key in read["image.mha"].GetMetaDataKeys() if "Intensity" in key]
PYTHON
