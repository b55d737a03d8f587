"""Images on their way to a model: read and cut into views by loader processes, and put together again."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.data.reader import read
from afclip_lightning.data.tiles import Layout
from afclip_lightning.errors import UserError
from afclip_lightning.types import Tiling

Source: TypeAlias = "str | Path | bytes | Image.Image | np.ndarray"
NAMELESS = Path("image")  # what an image that comes from no file is called


def read_pixels(source: Source, white: int | None = None) -> np.ndarray:
    """Returns an image `[H, W, 3]`, uint8, RGB, upright; see `pixels_and_remarks`."""
    return pixels_and_remarks(source, white)[0]


def pixels_and_remarks(source: Source, white: int | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns an image `[H, W, 3]`, uint8, RGB, upright, and what of its file is worth a word; see `Picture`.

    Args:
        source: A path, the bytes of a file, a Pillow image, or an array `[H, W, 3]`, uint8, RGB.
        white: The value that becomes 255, in images of more than 8 bits; by default the largest that their bits hold.

    Raises:
        DatasetError: The file cannot be read, or the image is too large.
        ValueError: The array is of another kind.
    """
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or not source.size:
            raise ValueError(f"an image must be [H, W, 3], uint8, got {[*source.shape]}, {source.dtype}")
        return source, ()
    picture = read(Path(source) if isinstance(source, str) else source)
    return picture.rgb(white), picture.remarks(white)


def check_sources(images: Sequence[Source]) -> None:
    """Refuses what is no list of images.

    Raises:
        TypeError: Names what it is.
    """
    if isinstance(images, (str, bytes, Path, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim != 4):
        raise TypeError(f"a list of images is needed, got one {type(images).__name__}: predict takes one image")
    for index, image in enumerate(images):
        if not isinstance(image, (str, bytes, Path, Image.Image, np.ndarray)):
            raise TypeError(
                f"image {index} is a {type(image).__name__}: an image is a path, the bytes of a file, a Pillow image, "
                "or an array [H, W, 3], uint8, RGB"
            )


def name_of(source: Source) -> Path:
    """Returns the path of an image, or `NAMELESS`."""
    return Path(source) if isinstance(source, (str, Path)) else NAMELESS


@dataclass(frozen=True)
class View:
    """One view of an image on its way from a loader process.

    Attributes:
        index: Position of the image.
        view: Which of its views.
        shape: Height and width of the image.
        pixels: `[h, w, 3]`, uint8, at the backbone's size; `None` once it is in the batch's tensor.
        image: `[H, W, 3]`, uint8, with the first view, if images are kept.
        remarks: With the first view, what is worth a word of the image's file.
    """

    index: int
    view: int
    shape: tuple[int, int]
    pixels: np.ndarray | None
    image: Tensor | None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """An image that cannot be read, and why."""

    index: int
    reason: str


class Begun:
    """An image whose views are being scored.

    Args:
        first: Its first view.
        tiling: How it is seen.
        preprocess: Of the backbone.
    """

    def __init__(self, first: View, tiling: Tiling, preprocess: Preprocess) -> None:
        self.layout = Layout(*first.shape, tiling, preprocess)
        self.image = None if first.image is None else first.image.numpy()
        self.anomaly_map = np.zeros(first.shape, np.float32)
        self.scores: list[float] = []
        self.mean = tiling.view_score == "mean"
        self.finite = True
        self.left = len(self.layout)

    def add(self, view: int, score: float, anomaly_map: np.ndarray) -> bool:
        """Adds a view, and returns whether it was the last."""
        self.scores.append(score)
        self.finite &= bool(np.isfinite(score) and np.isfinite(anomaly_map).all())
        self.layout.add(self.anomaly_map, view, anomaly_map)
        self.left -= 1
        return not self.left

    @property
    def score(self) -> float:
        """Returns the image's score, once all of its views are there."""
        return sum(self.scores) / len(self.scores) if self.mean else max(self.scores)


class Views(IterableDataset[Any]):
    """Decodes images and yields their views one by one, so that no more than one image is held.

    Loader processes take the images in turns, a batch's number at a time: where each has one view, batches come in
    the images' order.
    """

    def __init__(
        self,
        images: Sequence[Source],
        tiling: Tiling,
        preprocess: Preprocess,
        block: int,
        keep_images: bool,
        white: int | None = None,
    ) -> None:
        self.images = images
        self.tiling = tiling
        self.preprocess = preprocess
        self.block = block
        self.keep_images = keep_images
        self.white = white

    def __iter__(self) -> Iterator[View | Failure]:
        for index in self._mine():
            try:
                image, remarks = pixels_and_remarks(self.images[index], self.white)
                height, width, _ = image.shape
                layout = Layout(height, width, self.tiling, self.preprocess)
            except UserError as error:
                yield Failure(index, str(error))
                continue
            kept = torch.from_numpy(np.array(image)) if self.keep_images else None
            for view in range(len(layout)):
                shape = (layout.height, layout.width)
                first = (kept, remarks) if view == 0 else (None, ())
                yield View(index, view, shape, layout.cut(image, view), *first)

    def _mine(self) -> Iterable[int]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for start in range(number * self.block, len(self.images), workers * self.block):
            yield from range(start, min(start + self.block, len(self.images)))


def collate(items: Sequence[View | Failure]) -> tuple[list[View | Failure], Tensor | None]:
    """Returns the items without their pixels, and these in one tensor `[n, h, w, 3]`, uint8; `None` for none."""
    pixels = [item.pixels for item in items if isinstance(item, View)]
    bare = [replace(i, pixels=None) if isinstance(i, View) else i for i in items]
    return bare, default_collate(pixels) if pixels else None
