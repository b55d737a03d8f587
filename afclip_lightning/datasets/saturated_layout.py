"""MVTec LOCO AD's layout: a folder of masks per image, one file per defect, and a saturation per kind of defect."""

from dataclasses import replace
from pathlib import Path

from afclip_lightning.data.defects import SATURATION_FILE, mask_folders, read_saturations
from afclip_lightning.data.images import mask_files
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.types import Sample, Split


class SaturatedLayout(MVTecLayout):
    """A dataset in MVTec LOCO AD's layout: MVTec AD's layout with `ground_truth/<defect>/<image>/000.png, 001.png …`.

    Each file of such a folder marks one defect, whatever its number of parts. Their union is the mask of the image. The
    value of the pixels is the kind of the defect. `<category>/defects_config.json` says how much of a defect of each
    kind has to be found for it to count as wholly found. So a test reports sPRO in addition to PRO (`metrics/spro.py`).
    The arguments are those of `MVTecLayout`. The class can be used directly for your own dataset in that layout.

    Raises:
        ValueError: There is no root, or an argument is out of its range.

    Reference: Bergmann et al., Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Detection and
        Localization, IJCV 130 (2022).
    """

    saturates = True
    mask_suffixes = ("",)
    required = ("test", "ground_truth")
    layout = """
<category>/train/good/*.png          normal images (for few-shot)
<category>/test/good/*.png           normal images
<category>/test/<defect>/000.png     anomalous images
<category>/ground_truth/<defect>/000/000.png, 001.png …   one mask per defect of the image
<category>/defects_config.json       how much of each kind of defect has to be found
"""

    def missing(self) -> list[Path]:
        """Returns the missing required folders and saturation files of the categories in use."""
        configs = [self.category_folder(category) / SATURATION_FILE for category in self.selected_categories()]
        return [*super().missing(), *(path for path in configs if not path.is_file())]

    def mask_paths(self, mask_root: Path) -> list[Path]:
        """Returns the folder of the masks of each anomalous image."""
        return mask_folders(mask_root, self.normal_folder)

    def find_samples(self, category: str, split: Split) -> list[Sample]:
        """Returns the samples of one category and split, sorted by path.

        Raises:
            DatasetError: A mask has no image or an anomalous image no masks, or the saturation file is absent or
                malformed.
        """
        samples = super().find_samples(category, split)
        if not any(sample.mask_path for sample in samples):
            return samples
        saturations = read_saturations(self.category_folder(category) / SATURATION_FILE)
        return [replace(sample, saturations=saturations) if sample.label else sample for sample in samples]

    def files_of(self, category: str, split: Split) -> set[Path]:
        """Returns the images and mask files that are read.

        Raises:
            DatasetError: The files cannot be listed.
        """
        paths = super().files_of(category, split)
        return {file for path in paths for file in (mask_files(path) if path.is_dir() else (path,))}
