"""MVTec AD's layout, which many datasets follow. It can be used directly for your own dataset in that layout."""

from pathlib import Path
from typing import ClassVar

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.defect_types import with_defect_types
from afclip_lightning.data.images import pair_masks
from afclip_lightning.data.left_out import LeftOut, directly_in, unread, unread_folders
from afclip_lightning.data.names import (
    ClassNames,
    Names,
    find,
    holds_no_pictures,
    means_normal,
    normal_form,
    refuse_twins,
)
from afclip_lightning.types import Sample, Split
from afclip_runtime.errors import DatasetError, UnpairedError, shown
from afclip_runtime.images.find import list_folders, walk_images

IN_NO_KIND = "in no folder of a kind (normal, or a defect)"
NO_CATEGORY = "folders that are no category, having no folder `test`"
OTHER_FOLDER = "folders of a category that are not read"


class MVTecLayout(AnomalyDataModule):
    """A dataset in MVTec AD's layout: `<category>/{train,test}/<normal>`, `test/<defect>`, `ground_truth/<defect>`.

    The name of a folder `test/<defect>` is the defect type of its images, if there are several such folders. Images in
    subfolders, such as `test/good/camera_2/`, are read too, with their masks in corresponding subfolders. Subfolders
    whose name says masks, labels or depths are not read. A category without a `ground_truth` folder has no masks, so
    its pixel metrics are absent. A published dataset in this layout is a subclass that only sets class attributes.

    Args:
        root: Folder with one folder per category. Published datasets have a default.
        name: Name in metric keys and tables; by default the published name, or the name of the root folder.
        categories: Categories to use; by default all published ones, or every folder that has a `test` folder.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Number of loader processes; 0 loads in the main process.
        class_names: Names of categories in prompts. They replace or extend the dataset's own class names.

    Attributes:
        published: The dataset's categories in their published order; empty if they are read from disk.
        normal_folder: Name of the folders of normal images.
        mask_suffixes: Suffixes that the stem of a mask may have after the stem of its image.
        flat: Whether the root itself is the folder of the only category.
        required: Folders that each category must have.
        validation: Folder of a category with normal images for thresholds. If it is empty, images of `train` are used.

    Raises:
        ValueError: There is no root, or an argument is out of its range.
    """

    published: ClassVar[tuple[str, ...]] = ()
    normal_folder: ClassVar[str] = "good"
    mask_suffixes: ClassVar[tuple[str, ...]] = ("", "_mask")
    flat: ClassVar[bool] = False
    required: ClassVar[tuple[str, ...]] = ("test",)
    validation: ClassVar[str] = ""
    layout = """
<category>/train/good/*.png          normal images (for few-shot)
<category>/test/good/*.png           normal images
<category>/test/<defect>/*.png       anomalous images
<category>/ground_truth/<defect>/<image>_mask.png
"""
    source = "Your own data. One folder per category, in the layout above; any image format."
    licence = "your own"

    def __init__(
        self,
        root: str | Path | None = None,
        name: str | None = None,
        categories: Names = None,
        train_split: Split = "test",
        batch_size: int = 8,
        num_workers: int = 2,
        class_names: ClassNames = None,
    ) -> None:
        super().__init__(root, categories, train_split, batch_size, num_workers, class_names)
        self.name = name or self.name or self.root.resolve().name

    def find_categories(self) -> list[str]:
        """Returns the published categories, or else all folders in the root that have a `test` folder, sorted by name.

        Raises:
            DatasetError: The names of two folders differ only by their Unicode form.
        """
        if self.published:
            return list(self.published)
        names = [p.name for p in list_folders(self.root) if (p / "test").is_dir()]
        refuse_twins(self.root, names)
        return [normal_form(name) for name in names]

    def category_folder(self, category: str) -> Path:
        """Returns the folder that holds the category's `train`, `test` and `ground_truth`."""
        return self.root if self.flat else find(self.root, category)

    def missing(self) -> list[Path]:
        """Returns the missing required folders of the categories in use."""
        wanted = [self.category_folder(c) / folder for c in self.selected_categories() for folder in self.required]
        return [path for path in wanted if not path.is_dir()]

    def find_samples(self, category: str, split: Split) -> list[Sample]:
        """Returns the samples of one category and split, sorted by path.

        Raises:
            DatasetError: A mask has no image or an anomalous image no mask.
        """
        folder = self.category_folder(category)
        mask_root = folder / "ground_truth"
        normal = _images(folder / split / self.normal_folder)
        anomalous = self._defects(folder / split)
        masks = None
        if split == "test" and mask_root.is_dir():
            roots = (folder / split, mask_root)
            try:
                masks = pair_masks(anomalous, self.mask_paths(mask_root), self.mask_suffixes, roots)
            except UnpairedError as error:
                raise UnpairedError(error.problems, self._hint(folder)) from error
        samples = self.make_samples(category, split, normal, anomalous, masks)
        return with_defect_types(samples, {image: image.relative_to(folder / split).parts[0] for image in anomalous})

    def mask_paths(self, mask_root: Path) -> list[Path]:
        """Returns the masks of a category's anomalous images, in the subfolders of `ground_truth`."""
        return self._defects(mask_root)

    def threshold_samples(self, category: str) -> list[Sample]:
        """Returns the normal images of the validation folder, or of `train` without one, sorted by path.

        Raises:
            DatasetError: There is no such image.
        """
        if not self.validation:
            return super().threshold_samples(category)
        folder = self.category_folder(category) / self.validation
        if not (images := _images(folder)):
            raise DatasetError(f"{folder} has no image, so no threshold comes from it. Unpack the whole dataset.")
        return self.as_read(self.make_samples(category, "test", images, [], None))

    def folders_of(self, category: str, split: Split) -> list[Path]:
        """Returns the folders of the split and of its masks, without the masks of normal images."""
        folder = self.category_folder(category)
        masks = [kind for kind in list_folders(folder / "ground_truth") if kind.name != self.normal_folder]
        return [folder / split, *(masks if split == "test" else ())]

    def left_out(self, split: Split) -> list[LeftOut]:
        """Returns unread files in the folders of all categories, and unread folders beside them."""
        found = super().left_out(split)
        if split == "train":
            return found
        for category in self.selected_categories():
            folder = self.category_folder(category)
            for inner in (folder, folder / "ground_truth"):
                found += unread(directly_in(inner), (), IN_NO_KIND)
            known = ("train", "test", "ground_truth", *Path(self.validation).parts[:1])
            found += unread_folders(folder, known, OTHER_FOLDER)
        if not self.flat:
            categories = {find(self.root, category).name for category in self.find_categories()}
            found += unread(directly_in(self.root), (), IN_NO_KIND)
            found += unread_folders(self.root, categories, NO_CATEGORY)
        return found

    def doubts(self, split: Split) -> list[str]:
        """Returns one sentence per folder of anomalous images without masks whose name says that they are normal."""
        found = []
        for category in self.selected_categories():
            folder = self.category_folder(category)
            for kind in self._doubtful(folder / split):
                if not _images(folder / "ground_truth" / kind.name):
                    found.append(
                        f"{shown(kind)}: its {len(_images(kind))} images count as anomalous, and its name says normal; "
                        f"normal images belong in {self.normal_folder!r}"
                    )
        return found

    def _doubtful(self, folder: Path) -> list[Path]:
        kinds = (kind for kind in list_folders(folder) if kind.name != self.normal_folder)
        return [kind for kind in kinds if means_normal(kind.name) and _images(kind)]

    def _hint(self, folder: Path) -> str:
        names = ", ".join(str(kind) for kind in self._doubtful(folder / "test"))
        return f" If the images in {names} are normal, move them to {self.normal_folder!r}." if names else ""

    def _defects(self, folder: Path) -> list[Path]:
        """Returns the images in all subfolders of `folder` except the normal one; none if the folder is missing."""
        kinds = (kind for kind in list_folders(folder) if kind.name != self.normal_folder)
        return [image for kind in kinds for image in _images(kind)]


def _images(kind: Path) -> list[Path]:
    """Returns the images of a kind at any depth, except in folders whose name says masks or labels."""
    found = walk_images(kind)
    return [path for path in found if not any(map(holds_no_pictures, path.relative_to(kind).parts[:-1]))]
