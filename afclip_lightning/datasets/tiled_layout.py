"""Published recipes that make a test set from raw images: normal images are held out, large images cut into tiles."""

import copy
import math
import os
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.images import read_image, read_mask
from afclip_lightning.data.left_out import sentences, unread
from afclip_lightning.data.names import ClassNames
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.types import Split
from afclip_runtime.errors import DatasetError
from afclip_runtime.images.find import survey

Item = TypeVar("Item")
NO_TILE = "of which no tile is cut"


def hold_out(items: Sequence[Item], share: float = 0.25, seed: int = 42) -> tuple[list[Item], list[Item]]:
    """Divides items at random into those for training and those for testing. Both keep the given order.

    The items for testing are those of scikit-learn's `train_test_split` with this `test_size` and `random_state`.

    Args:
        items: The items, in an order that is the same on every machine.
        share: Share for testing, in (0, 1), rounded up to a whole item.
        seed: Seed of the draw.
    """
    drawn = np.random.RandomState(seed).permutation(len(items))[: math.ceil(share * len(items))]
    held = set(drawn.tolist())
    return [item for i, item in enumerate(items) if i not in held], [items[i] for i in sorted(held)]


@contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder that is renamed to `target` at the end, so that `target` is complete or absent.

    Raises:
        OSError: The folder cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        folder = Path(temporary) / target.name
        folder.mkdir()
        yield folder
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was first, with the same result
                raise


@dataclass(frozen=True)
class Tile:
    """A part of a raw image.

    Attributes:
        image: The raw image.
        box: Left, top, right and bottom of the part, in pixels; right and bottom are exclusive.
        kind: Kind of its defect; empty if it is normal.
        masks: Masks of the raw image, of which the union is used; none if the whole image is normal.
    """

    image: Path
    box: tuple[int, int, int, int]
    kind: str = ""
    masks: tuple[Path, ...] = ()


class TiledLayout(MVTecLayout):
    """A dataset whose images are cut into tiles by a published recipe. A quarter of the normal tiles is for testing.

    `prepare_data` writes the tiles into `root`, in MVTec AD's layout; Lightning calls it before a run. An existing root
    is used as it is. The raw dataset is only read, and `root` must not be inside it. Equal raw images give equal tiles
    and an equal split on every machine.

    Differs: The recipes list folders in the order of the disk, so that their seed determines how many normal tiles are
    held out, but not which ones. Here they are sorted by path.

    Args:
        root: Folder of the tiles; its default root by default.
        raw: Folder of the raw dataset. It is not needed if the tiles exist.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Number of loader processes; 0 loads in the main process.
        class_names: Names of categories in prompts. They replace or extend the dataset's own class names.

    Attributes:
        raw_layout: Layout of `raw`, as text of a few lines.
        raw_folder: Folder of the raw dataset in the folder of all datasets, as in the configs.

    Raises:
        ValueError: `root` lies in `raw`, or an argument is out of its range.
    """

    flat = True
    required = ("train/good", "test/good", "ground_truth")
    raw_layout: str
    raw_folder: str

    def __init__(
        self,
        root: str | Path | None = None,
        raw: str | Path | None = None,
        train_split: Split = "test",
        batch_size: int = 8,
        num_workers: int = 2,
        class_names: ClassNames = None,
    ) -> None:
        super().__init__(root, None, None, train_split, batch_size, num_workers, class_names)
        self.raw = None if raw is None else Path(raw).expanduser()
        if self.raw is not None and Path(os.path.realpath(self.root)).is_relative_to(os.path.realpath(self.raw)):
            raise ValueError(
                f"root is {self.root}, in the raw set {self.raw}, which is never written to: choose another"
            )

    @classmethod
    def variants(cls, root: Path) -> list[AnomalyDataModule]:
        """Returns nothing: tiles of different datasets cannot be distinguished."""
        return []

    @abstractmethod
    def find_tiles(self, raw: Path) -> list[Tile]:
        """Returns the tiles of the raw dataset, in an order that is the same on every machine. Reads the masks.

        Raises:
            DatasetError: A folder is missing, or a mask has no image or another size.
        """

    def is_absent(self) -> bool:
        """Returns whether there are neither tiles nor a raw dataset."""
        return super().is_absent() and (self.raw is None or not self.raw.exists())

    def check(self, stage: str = "fit") -> None:
        """Checks the tiles. If they are not cut yet, checks that the raw dataset exists.

        Raises:
            DatasetError: A folder is missing. The message says what it should contain and how to get it.
        """
        if self.raw is None or not super().is_absent():
            super().check(stage)
        elif not self.raw.is_dir():
            raise DatasetError(
                f"Dataset {self.name!r} was not found: neither its tiles, {self.root}, nor the raw set, {self.raw}.\n"
                f"The raw set must contain:\n{self.raw_layout}\nHow to get it: {self.source}\nLicence: {self.licence}"
            )

    @property
    def archive_root(self) -> Path:
        """Returns the folder of the raw set, by default its `raw_folder` beside the tiles."""
        return self.raw or self.root.with_name(self.raw_folder)

    @property
    def archive_layout(self) -> str:
        """Returns what the raw set must contain."""
        return self.raw_layout

    def lacking(self, folder: Path) -> int | None:
        """Returns 0 if `folder` is a raw set that can be cut, else `None`."""
        try:
            return 0 if self.find_tiles(folder) else None
        except DatasetError:
            return None

    def on_unpacked(self) -> None:
        """Cuts the raw set that was unpacked; see `prepare_data`."""
        raw = copy.copy(self)
        raw.raw = self.archive_root
        raw.prepare_data()

    def prepare_data(self) -> None:
        """Cuts the raw dataset, if it is given and there are no tiles. All tiles appear at once.

        Raises:
            DatasetError: The raw dataset is not as it must be, or the tiles cannot be written.
        """
        if self.raw is None or not super().is_absent():
            return
        self.check()
        tiles = self.find_tiles(self.raw)
        used = {path for tile in tiles for path in (tile.image, *tile.masks)}
        if said := sentences(unread(survey(self.raw), used, NO_TILE), self.raw):
            warnings.warn(f"{self.name}, raw set {self.raw}: {'; '.join(said)}.", stacklevel=2)
        if not tiles:
            raise DatasetError(f"{self.raw}: there is nothing to cut. It must contain:\n{self.raw_layout}")
        held = set(hold_out([tile for tile in tiles if not tile.kind])[1])
        by_image = groupby(tiles, key=lambda tile: tile.image)
        try:
            with complete_folder(self.root) as folder, tqdm(total=len(tiles), desc=f"cutting into {self.root}") as bar:
                for image, group in by_image:
                    bar.update(_write(folder, image, list(group), held))
        except OSError as error:
            raise DatasetError(f"{self.root}: cannot be written to ({error}). Choose another `root`.") from error


def _name(tile: Tile) -> str:
    return f"{tile.image.parent.name}_{tile.image.stem}_{tile.box[0]:04}_{tile.box[1]:04}"


def _write(folder: Path, image: Path, tiles: Sequence[Tile], held: set[Tile]) -> int:
    """Writes the tiles of an image and returns their number."""
    pixels = read_image(image)
    for tile in tiles:
        left, top, right, bottom = tile.box
        split = "test" if tile.kind or tile in held else "train"
        save_png(folder / split / (tile.kind or "good") / f"{_name(tile)}.png", pixels[top:bottom, left:right])
        if tile.kind:
            mask = union_of_masks(image, pixels.shape[:2], tile.masks)[top:bottom, left:right]
            save_png(folder / "ground_truth" / tile.kind / f"{_name(tile)}_mask.png", mask * np.uint8(255))
    return len(tiles)


def union_of_masks(image: Path, shape: tuple[int, ...], masks: Sequence[Path]) -> np.ndarray:
    """Returns the union of an image's masks, `[H, W]`, uint8 in {0, 1}.

    Args:
        image: The image, for the message.
        shape: Its height and width, in pixels.
        masks: Its masks.

    Raises:
        DatasetError: A mask has another size.
    """
    union = np.zeros(shape, np.uint8)
    for path in masks:
        mask = read_mask(path)
        if mask.shape != tuple(shape):
            raise DatasetError(
                f"{path}: the mask is {mask.shape[1]}×{mask.shape[0]} pixels and its image {image} is "
                f"{shape[1]}×{shape[0]}. Replace one of them."
            )
        union |= mask
    return union


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Writes an image `[H, W]` or `[H, W, 3]`, uint8, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    path.write_bytes(cv2.imencode(".png", stored)[1].tobytes())  # takes a third of Pillow's time
