# %% [markdown]
# # Medical slices
#
# A volume is judged slice by slice, and the map goes back into the volume's own frame. The volume here is
# drawn: noise with a bright ball. The extra `medical` reads NIfTI, NRRD, MetaImage and DICOM ([medical
# volumes](../volumes.md)).

# %%
import csv
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from afclip_lightning.cli import verbs

rng = np.random.default_rng(0)
z, y, x = np.ogrid[:12, :96, :96]
tissue = 100 + 15 * np.sin(x / 9) * np.cos(y / 11) + rng.normal(0, 3, (12, 96, 96))
ball = (x - 60) ** 2 + (y - 40) ** 2 + (6 * (z - 6)) ** 2 < 13**2
affine = np.diag([1.0, 1.0, 4.0, 1.0])  # millimetres: voxels of 1 x 1 x 4
Path("scans").mkdir()
nibabel.save(
    nibabel.Nifti1Image((tissue + 90 * ball).transpose(2, 1, 0).astype(np.float32), affine), "scans/patient_7.nii.gz"
)

# %% [markdown]
# In a shell, this is `afclip inspect scans --methods PatchRarity …`. Here Python runs the same command. The
# threshold is set by hand.

# %%
command = "inspect scans --methods PatchRarity --axis axial --save nifti --out judged --threshold 0.12"
model = "--model.layers [2,4,6,8] --model.backbone.model tiny-8-112 --model.backbone.weights embedded"
code = verbs.run([*command.split(), *model.split(), "--model.backbone.image_size", "112"], "tutorial")
print("exit code", code)
print(*sorted(path.name for path in Path("judged").iterdir()), sep=", ")

# %%
with open("judged/inspections.csv") as file:
    for row in csv.DictReader(file):
        print(Path(row["path"]).name, row["score"], row["verdict"])

# %% [markdown]
# The map has the size and the affine of the scan, so a viewer can overlay them. A slice through the ball and its
# map:

# %%
(written,) = Path("judged").rglob("*.nii.gz")
anomaly_map = nibabel.load(written)
print(anomaly_map.shape, np.allclose(anomaly_map.affine, affine))
slice_map = np.asarray(anomaly_map.dataobj)[:, :, 6].T
slice_image = (tissue + 90 * ball)[6]
grey = [(255 * (plane - plane.min()) / np.ptp(plane)).astype(np.uint8) for plane in (slice_image, slice_map)]
Image.fromarray(np.hstack(grey)).resize((768, 384)).save("slice_and_map.png")
