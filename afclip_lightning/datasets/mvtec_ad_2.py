"""MVTec AD 2: eight scenes of industrial inspection. The labels of some parts are only on a server."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, get_args

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.images import pair_masks
from afclip_lightning.data.names import ClassNames, Names
from afclip_lightning.types import UNKNOWN, Sample, Split
from afclip_runtime.errors import DatasetError
from afclip_runtime.images.find import walk_images

Part = Literal["test_public", "test_private", "test_private_mixed", "validation"]
PRIVATE: tuple[Part, ...] = ("test_private", "test_private_mixed")
PRIVATE_IMAGES = 4090
"""Number of images of both private parts in all categories, as the server counts them."""


class MVTecAD2(AnomalyDataModule):
    """MVTec AD 2: 8 categories. Only the public part has labels and masks.

    A part without labels can only be predicted (`predict --data.part test_private`). `submit` writes the files that the
    server scores. Few-shot images are from `train/good`, normal images for thresholds from `validation/good`.

    Args:
        root: Folder of the dataset.
        part: Part that is used as the test split. `test_public` has labels. The labels of `test_private` and
            `test_private_mixed` (other lighting) are only on the server. `validation` has normal images only.
        categories: Categories to use; all by default.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Number of loader processes; 0 loads in the main process.
        class_names: Names of categories in prompts. They replace or extend the dataset's own class names.

    Raises:
        ValueError: An argument is out of its range.

    Reference: Heckler-Kram et al., The MVTec AD 2 dataset, arXiv 2503.21622.
    """

    title = "MVTec AD 2"
    paper = "hecklerkram2025mvtecad2"
    url = "https://www.mvtec.com/research-teaching/datasets/mvtec-ad-2"
    name = "mvtec_ad_2"
    published: ClassVar[tuple[str, ...]] = (
        "can",
        "fabric",
        "fruit_jelly",
        "rice",
        "sheet_metal",
        "vial",
        "wallplugs",
        "walnuts",
    )
    class_names: Mapping[str, str] = {"wallplugs": "wall plugs"}
    layout = """
<category>/train/good/*.png                  normal images (for few-shot)
<category>/validation/good/*.png             normal images (for thresholds)
<category>/test_public/good/*.png            normal images
<category>/test_public/bad/*.png             anomalous images
<category>/test_public/ground_truth/bad/<image>_mask.png
<category>/test_private/*.png                images whose labels the server has
<category>/test_private_mixed/*.png          alike, in other lighting
"""
    source = "MVTec AD 2 from mvtec.com (research, datasets), unpacked into this folder."
    licence = "CC BY-NC-SA 4.0"

    def __init__(
        self,
        root: str | Path | None = None,
        part: Part = "test_public",
        categories: Names = None,
        train_split: Split = "test",
        batch_size: int = 8,
        num_workers: int = 2,
        class_names: ClassNames = None,
    ) -> None:
        super().__init__(root, categories, train_split, batch_size, num_workers, class_names)
        if part not in get_args(Part):
            raise ValueError(f"part must be one of {', '.join(get_args(Part))}; got {part!r}")
        self.part: Part = part

    def find_categories(self) -> list[str]:
        """Returns the published categories."""
        return list(self.published)

    def missing(self) -> list[Path]:
        """Returns the missing folders of the part."""
        inner = {"test_public": ("good", "bad", "ground_truth/bad"), "validation": ("good",)}.get(self.part, ("",))
        folders = [self.root / category / self.part / name for category in self.selected_categories() for name in inner]
        return [folder for folder in folders if not folder.is_dir()]

    def check(self, stage: str = "fit") -> None:
        """Checks that the part is on disk, and that images without labels are only predicted. Reads no image.

        Raises:
            DatasetError: A folder is missing, or the stage needs labels that are only on the server.
        """
        super().check(stage)
        if self.part in PRIVATE and stage != "predict":
            raise DatasetError(
                f"{self.name}: the labels of {self.part} are not published, so it can be predicted and not used to "
                f"{stage}. Test on part test_public; what the server scores, the command submit writes."
            )

    def find_samples(self, category: str, split: Split) -> list[Sample]:
        """Returns the samples of one category and split, sorted by path.

        Raises:
            DatasetError: A mask has no image or an anomalous image no mask.
        """
        folder = self.root / category
        if split == "train":
            return self.make_samples(category, split, walk_images(folder / "train/good"), [], None)
        part = folder / self.part
        if self.part in PRIVATE:
            return [Sample(self.name, category, split, p, UNKNOWN, mask_known=False) for p in walk_images(part)]
        masks, anomalous = part / "ground_truth/bad", walk_images(part / "bad")
        paired = pair_masks(anomalous, walk_images(masks), ("", "_mask"), (part / "bad", masks))
        return self.make_samples(category, split, walk_images(part / "good"), anomalous, paired)

    def folders_of(self, category: str, split: Split) -> list[Path]:
        """Returns the folder of the split."""
        return [self.root / category / ("train" if split == "train" else self.part)]

    def threshold_samples(self, category: str) -> list[Sample]:
        """Returns the normal images of `validation/good`, sorted by path.

        Raises:
            DatasetError: There is none.
        """
        folder = self.root / category / "validation/good"
        if not (images := walk_images(folder)):
            raise DatasetError(f"{folder} has no image, so no threshold comes from it. Unpack the whole dataset.")
        return self.as_read(self.make_samples(category, "test", images, [], None))
