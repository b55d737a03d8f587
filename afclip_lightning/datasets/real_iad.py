"""Real-IAD: thirty kinds of objects, each seen from five sides. JSON files list the images."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.defect_types import with_defect_types
from afclip_lightning.data.images import file_inside
from afclip_lightning.data.left_out import short
from afclip_lightning.data.names import ClassNames, Names
from afclip_lightning.data.published import Counts
from afclip_lightning.types import Sample, Split
from afclip_runtime.errors import DatasetError
from afclip_runtime.files import read_json

Lists = Literal["multi_view", "single_view"]
Pixels = Literal["256", "512", "1024", "raw"]
FOLDER_OF: Mapping[Lists, str] = {"multi_view": "realiad_jsons", "single_view": "realiad_jsons_sv"}
VIEWS = 5
RESTORE = "Restore the file from realiad_jsons.zip."

# audiojack_0012_NG_BX_C3_20231023...: the object and, after C, the view. The authors' command groups views like this.
OBJECT = re.compile(r"(?P<object>[a-zA-Z]\w*_\d{4}_[A-Z]+(?:_[A-Z]+)*)_C\d_")

DEFECTS: Mapping[str, str] = {
    "AK": "pit",
    "BX": "deformation",
    "CH": "abrasion",
    "HS": "scratch",
    "PS": "damage",
    "QS": "missing parts",
    "YW": "foreign objects",
    "ZW": "contamination",
}
"""Meaning of the codes of anomaly classes, from the project's page."""


@dataclass(frozen=True)
class _Meta:
    prefix: str
    normal_class: str


@dataclass(frozen=True)
class _Entry:
    category: str
    anomaly_class: str
    image_path: str
    mask_path: str | None = None


@dataclass(frozen=True)
class _List:
    """The file of a category."""

    meta: _Meta
    train: list[_Entry]
    test: list[_Entry]


class RealIAD(AnomalyDataModule):
    """Real-IAD: 30 categories, 63,256 normal and 51,329 anomalous test images, with masks; five views of each object.

    The file of a category, `<lists>/<category>.json`, names the images and masks of both splits. As in the authors'
    loader, an image is normal if its `anomaly_class` says so, or if it has no mask. So a view of a defective object
    that does not show the defect is normal. The views of an object are a group, which a test evaluates too (G-AUROC,
    the authors' S-AUROC). The name of the group is the part of the file name before `_C1_` to `_C5_`.

    Layout, names and rules follow the authors' code (github.com/Tencent/AnomalyDetection_Real-IAD). The totals are from
    their paper (99,721 normal and 51,329 anomalous images) and public lists (36,465 training images). They were not
    compared with the dataset itself. Lists with noise (`realiad_jsons_fuiad_…`) label defective training images as
    normal and are not read. Real-IAD Variety has other lists, which this class does not support. `Listing` or `Table`
    can read them, with a column `group`.

    Args:
        root: Folder of the dataset.
        lists: Lists to read: `multi_view` (`realiad_jsons`) or `single_view` (`realiad_jsons_sv`, the view from above).
        pixels: Images to read: scaled to 256, 512 or 1024 pixels (`realiad_1024`), or `raw`.
        categories: Categories to use; all by default.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Number of loader processes; 0 loads in the main process.
        class_names: Names of categories in prompts. They replace or extend the dataset's own class names.

    Raises:
        ValueError: An argument is out of its range.

    Reference: Wang et al., Real-IAD: A Real-World Multi-View Dataset, CVPR 2024, arXiv 2403.12580.
    """

    title = "Real-IAD"
    paper = "wang2024realiad"
    url = "https://realiad4ad.github.io/Real-IAD"
    labels = "image, pixel, objects of 5 views"
    name = "real_iad"
    published = (
        *("audiojack", "bottle_cap", "button_battery", "end_cap", "eraser", "fire_hood", "mint", "mounts", "pcb"),
        *("phone_battery", "plastic_nut", "plastic_plug", "porcelain_doll", "regulator", "rolled_strip_base"),
        *("sim_card_set", "switch", "tape", "terminalblock", "toothbrush", "toy", "toy_brick", "transistor1"),
        *("u_block", "usb", "usb_adaptor", "vcpill", "wooden_beads", "woodstick", "zipper"),
    )
    published_total: Counts = (36465, 63256, 51329)
    class_names: Mapping[str, str] = {
        "audiojack": "audio jack",
        "pcb": "printed circuit board",
        "terminalblock": "terminal block",
        "transistor1": "transistor",
        "usb": "USB connector",
        "usb_adaptor": "USB adaptor",
        "vcpill": "pill",
        "woodstick": "wooden stick",
    }
    layout = """
realiad_jsons/<category>.json                  which image is what; or one folder deeper, as the archive unpacks
realiad_1024/<category>/OK/S0001/*.jpg         images; realiad_256, realiad_512 or realiad_raw alike
realiad_1024/<category>/NG/<defect>/S0001/*.{jpg,png}   images and masks
"""
    source = "Real-IAD on request, from realiad4ad.github.io/Real-IAD, unpacked into this folder."
    licence = "research, see its source"

    def __init__(
        self,
        root: str | Path | None = None,
        lists: Lists = "multi_view",
        pixels: Pixels = "1024",
        categories: Names = None,
        train_split: Split = "test",
        batch_size: int = 8,
        num_workers: int = 2,
        class_names: ClassNames = None,
    ) -> None:
        super().__init__(root, categories, train_split, batch_size, num_workers, class_names)
        for name, value, choices in (("lists", lists, Lists), ("pixels", pixels, Pixels)):
            if value not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}; got {value!r}")
        self.lists: Lists = lists
        self.pixels: Pixels = pixels
        if lists == "single_view":
            self.published_total = (None, None, None)
        self._read: dict[Path, _List] = {}

    def find_categories(self) -> list[str]:
        """Returns the published categories."""
        return list(self.published)

    def list_of(self, category: str) -> Path:
        """Returns the path of a category's file, whether or not it exists."""
        folder = self.root / FOLDER_OF[self.lists]
        inner = self.root / FOLDER_OF["multi_view"] / FOLDER_OF[self.lists]  # the layout of the archive of all lists
        return (inner if inner.is_dir() else folder) / f"{category}.json"

    @property
    def image_root(self) -> Path:
        """Returns the folder of the images in the chosen size."""
        return self.root / f"realiad_{self.pixels}"

    def missing(self) -> list[Path]:
        """Returns the missing files and folders of images of the categories in use."""
        categories = self.selected_categories()
        folders = [self.image_root / category for category in categories]
        files = [self.list_of(category) for category in categories]
        return [*(p for p in files if not p.is_file()), *(p for p in folders if not p.is_dir())]

    def find_samples(self, category: str, split: Split) -> list[Sample]:
        """Returns the samples of one category and split, sorted by path.

        Raises:
            DatasetError: The file is absent or malformed, or an entry names a missing file or a file outside the folder
                of images.
        """
        path = self.list_of(category)
        found = self._entries(path)
        samples, types = [], {}
        for number, entry in enumerate(found.train if split == "train" else found.test, 1):
            where = f"{path}, {split}, entry {number}"
            image = file_inside(self.image_root, found.meta.prefix + entry.image_path, where)
            mask = None
            if entry.mask_path and entry.anomaly_class != found.meta.normal_class:
                mask = file_inside(self.image_root, found.meta.prefix + entry.mask_path, where)
                types[image] = DEFECTS.get(entry.anomaly_class, entry.anomaly_class)
            samples.append(Sample(self.name, category, split, image, int(mask is not None), mask, group=_object(image)))
        twice = [image for image, count in Counter(sample.image_path for sample in samples).items() if count > 1]
        if twice:
            raise DatasetError(f"{path}: lists {twice[0]} twice among the {split} images. {RESTORE}")
        return with_defect_types(sorted(samples, key=lambda sample: sample.image_path.as_posix()), types)

    def _entries(self, path: Path) -> _List:
        if path not in self._read:
            self._read[path] = read_json(path, _List, remedy=RESTORE, error=DatasetError)
        return self._read[path]

    def notes(self) -> list[str]:
        """Returns a sentence on objects with missing views, and one on images whose names contain no object."""
        said = []
        for category in self.selected_categories() if self.lists == "multi_view" else ():
            samples = self.find_samples(category, "test")
            views = Counter(sample.group for sample in samples if sample.group)
            odd = [name for name, count in sorted(views.items()) if count != VIEWS]
            if odd:
                said.append(
                    f"{category}: {len(odd)} of {len(views)} objects do not have {VIEWS} views, the first is "
                    f"{odd[0]} with {views[odd[0]]}; they are judged by those that are there"
                )
            if alone := [sample for sample in samples if not sample.group]:
                first = short(alone[0].image_path, self.root)
                said.append(
                    f"{category}: {len(alone)} images have names without an object, so each counts as one: {first}"
                )
        return said


def _object(image: Path) -> str:
    """Returns the object that an image shows, from its file name; empty if the name does not contain it."""
    match = OBJECT.match(image.name)
    return match["object"] if match else ""
