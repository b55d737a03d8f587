"""The embedded dataset: drawn products with drawn defects, so that everything runs without a download."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from tqdm import tqdm

from afclip_lightning.data.names import ClassNames, Names
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.datasets.procedural import CATEGORIES, VERSION, picture
from afclip_lightning.datasets.tiled_layout import complete_folder, save_png
from afclip_lightning.types import Split
from afclip_runtime.errors import DatasetError, UserError
from afclip_runtime.files import read_json

SYNTHETIC_TRAIN = ("cloth", "wood", "terrazzo", "gear", "biscuit", "circuit_board")
SYNTHETIC_TEST = ("metal", "mesh", "leather", "capsule", "bottle", "toothbrush")

_RECORD = "synthetic.json"


class Synthetic(MVTecLayout):
    """Twelve categories of drawn products with exact masks: six for training and six others for testing.

    `prepare_data` draws the pictures into `root`; Lightning calls it before a run. The same arguments give the same
    pictures, whichever categories are drawn, and in any order.

    Args:
        root: Folder into which the pictures are drawn; by default `synthetic` in the folder of all datasets.
        categories: Categories to use, for example `SYNTHETIC_TRAIN` or `SYNTHETIC_TEST`; all twelve by default.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Number of loader processes; 0 loads in the main process.
        seed: Seed of the pictures.
        image_size: Side of the pictures, in pixels.
        train_normal: Normal training images per category.
        test_normal: Normal test images per category.
        test_anomalous: Anomalous test images per category, distributed over its kinds of defect.
        class_names: Names of categories in prompts. They replace the dataset's own class names.

    Raises:
        ValueError: An argument is out of its range.
    """

    title = "Synthetic"
    name = "synthetic"
    published = SYNTHETIC_TRAIN + SYNTHETIC_TEST
    required = ("test", "ground_truth")
    layout = """
cloth/train/good/000.png               normal images (for few-shot)
cloth/test/good/000.png                normal images
cloth/test/hole/000.png                anomalous images, one folder a kind of defect
cloth/ground_truth/hole/000_mask.png
cloth/synthetic.json                   the settings that the pictures were drawn with
wood/ … toothbrush/                    12 categories
"""
    source = """
Nothing to get: the project draws it when a run starts, or when `prepare_data` of the dataset is called.
"""
    licence = "the project's own"

    def __init__(
        self,
        root: str | Path | None = None,
        categories: Names = None,
        train_split: Split = "test",
        batch_size: int = 8,
        num_workers: int = 2,
        seed: int = 0,
        image_size: int = 224,
        train_normal: int = 8,
        test_normal: int = 20,
        test_anomalous: int = 40,
        class_names: ClassNames = None,
    ) -> None:
        super().__init__(root, None, categories, train_split, batch_size, num_workers, class_names)
        self.settings = {
            "version": VERSION,
            "seed": seed,
            "image_size": image_size,
            "train_normal": train_normal,
            "test_normal": test_normal,
            "test_anomalous": test_anomalous,
        }
        least = {"seed": 0, "image_size": 64}
        for name, value in self.settings.items():
            if value < least.get(name, 1):
                raise ValueError(f"{name} must be at least {least.get(name, 1)}, got {value}")

    def is_absent(self) -> bool:
        """Returns false: missing pictures can be drawn."""
        return False

    def check(self, stage: str = "fit") -> None:
        """Checks that the pictures on disk were drawn with the settings. Missing pictures are not an error.

        Raises:
            DatasetError: A category on disk was drawn with other settings, or does not belong to this dataset.
        """
        if self.root.exists() and not self.root.is_dir():
            raise DatasetError(f"{self.root} is not a folder. Choose another `root`.")
        for category in self.selected_categories():
            folder = self.category_folder(category)
            if not folder.exists():
                continue
            remedy = f"Choose another `root` or delete the folder {folder}."
            try:
                found = read_json(folder / _RECORD, dict[str, Any], remedy="")
            except UserError as error:
                raise DatasetError(f"{folder} was not drawn by this dataset: {error} {remedy}") from error
            if found != self.settings:
                raise DatasetError(
                    f"{folder} was drawn with other settings.\n  there:  {json.dumps(found)}\n"
                    f"  wanted: {json.dumps(self.settings)}\n{remedy}"
                )

    def prepare_data(self) -> None:
        """Draws the missing categories in use. A category appears complete or not at all.

        Raises:
            DatasetError: A category on disk was drawn with other settings, or the root cannot be written to.
        """
        self.check()
        absent = [category for category in self.selected_categories() if not self.category_folder(category).exists()]
        images = sum(self.settings[key] for key in ("train_normal", "test_normal", "test_anomalous"))
        try:
            with tqdm(total=len(absent) * images, desc="drawing", unit="image", disable=not absent) as progress:
                for category in absent:
                    self._draw(category, progress)
        except OSError as error:
            raise DatasetError(f"{self.root}: cannot be written to ({error}). Choose another `root`.") from error
        self.check()  # another process may have drawn a category meanwhile, with other settings

    def setup(self, stage: str) -> None:
        """Checks that all categories in use are drawn with these settings. Lightning calls this on every process."""
        self.check(stage)
        super().check(stage)

    def _draw(self, category: str, progress: "tqdm[None]") -> None:
        # one thread per processor: NumPy, OpenCV and PNG encoding release the interpreter's lock
        with complete_folder(self.category_folder(category)) as folder, ThreadPoolExecutor(_processors()) as pool:
            for _ in pool.map(partial(self._draw_one, folder, category), self._plan(category)):
                progress.update()
            (folder / _RECORD).write_text(json.dumps(self.settings), encoding="utf-8")

    def _draw_one(self, folder: Path, category: str, planned: tuple[str, str, int]) -> None:
        """Draws a picture of the plan, and its mask, into the category's folder."""
        split, kind, index = planned
        entropy = [self.settings["seed"], *(crc32(word.encode()) for word in (category, split, kind)), index]
        normal = kind == self.normal_folder
        image, mask = picture(category, None if normal else kind, entropy, self.settings["image_size"])
        save_png(folder / split / kind / f"{index:03d}.png", image)
        if not normal:
            save_png(folder / "ground_truth" / kind / f"{index:03d}_mask.png", mask * np.uint8(255))

    def _plan(self, category: str) -> Iterator[tuple[str, str, int]]:
        """Yields split, kind and index of every image of a category."""
        for split, key in (("train", "train_normal"), ("test", "test_normal")):
            for index in range(self.settings[key]):
                yield split, self.normal_folder, index
        kinds = CATEGORIES[category].defects
        for index in range(self.settings["test_anomalous"]):
            yield "test", kinds[index % len(kinds)], index // len(kinds)


def _processors() -> int:
    """Returns the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
