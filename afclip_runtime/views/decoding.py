"""The path of images to the model: threads read them and cut them into views; maps of views are merged again."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from PIL import Image

from afclip_runtime.errors import UserError
from afclip_runtime.images.limits import check_most
from afclip_runtime.images.reader import Content, read, read_shape
from afclip_runtime.types import Tiling
from afclip_runtime.views.frame import Frame
from afclip_runtime.views.roi import Roi
from afclip_runtime.views.tiles import Layout

Source: TypeAlias = "str | Path | bytes | Content | Image.Image | np.ndarray"
Fetch: TypeAlias = Callable[[], Source]
A = TypeVar("A")
B = TypeVar("B")
NAMELESS = Path("image")  # name of an image without a file
BYTES_AHEAD = 2**28  # limit of encoded files in memory that wait for decoding; one more file of any size may be added


def read_pixels(source: Source, white: int | None = None) -> np.ndarray:
    """Returns an image `[H, W, 3]`, uint8, RGB, upright; see `pixels_and_remarks`."""
    return pixels_and_remarks(source, white)[0]


def pixels_and_remarks(source: Source, white: int | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns an image `[H, W, 3]`, uint8, RGB, upright, and the remarks on its file; see `Picture`.

    Args:
        source: A path, the bytes of a file with or without its name, a Pillow image, or an array `[H, W, 3]`, uint8,
            RGB.
        white: Value that becomes 255, for images of more than 8 bits. By default the largest value of their bits.

    Raises:
        DatasetError: The file cannot be read, or the image is too large.
        ValueError: The array has another shape or type.
    """
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or not source.size:
            raise ValueError(f"an image must be [H, W, 3], uint8, got {[*source.shape]}, {source.dtype}")
        return source, ()
    picture = read(Path(source) if isinstance(source, str) else source)
    return picture.rgb(white), picture.remarks(white)


def check_sources(images: Sequence[Source]) -> None:
    """Checks that images are a list of image sources.

    Raises:
        TypeError: They are not. The message names the type.
    """
    if isinstance(images, (str, bytes, Path, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim != 4):
        raise TypeError(f"a list of images is needed, got one {type(images).__name__}: predict takes one image")
    for index, image in enumerate(images):
        if not isinstance(image, (str, bytes, Path, Content, Image.Image, np.ndarray)):
            raise TypeError(
                f"image {index} is a {type(image).__name__}: an image is a path, the bytes of a file, a Pillow image, "
                "or an array [H, W, 3], uint8, RGB"
            )


def name_of(source: Source) -> Path | str:
    """Returns the path of an image, or `NAMELESS`."""
    if isinstance(source, Content):
        return source.name
    return Path(source) if isinstance(source, (str, Path)) else NAMELESS


@dataclass(frozen=True)
class View:
    """One view of an image.

    Attributes:
        index: Position of the image.
        view: Number of the view.
        pixels: `[h, w, 3]`, uint8, of the frame's shape.
    """

    index: int
    view: int
    pixels: np.ndarray


@dataclass(frozen=True)
class Decoded:
    """A decoded image.

    Attributes:
        index: Position of the image.
        name: Name of the image in messages.
        layout: Views of the image.
        remarks: Remarks on the file.
        first: The first view, `[h, w, 3]`, uint8, of the frame's shape.
        image: `[H, W, 3]`, uint8. `None` if neither the result nor another view needs it.
    """

    index: int
    name: Path | str
    layout: Layout
    remarks: tuple[str, ...]
    first: np.ndarray
    image: np.ndarray | None


@dataclass(frozen=True)
class Failure:
    """An image that cannot be read, and why."""

    index: int
    reason: str


class Begun:
    """An image whose views are being scored.

    Args:
        decoded: The image.
        tiling: Tiling of the image.
        keep_image: Whether the result contains the image.

    Attributes:
        left: Number of views that are not scored yet.
        finite: Whether all scores and maps so far are finite.
    """

    def __init__(self, decoded: Decoded, tiling: Tiling, keep_image: bool) -> None:
        self.index = decoded.index
        self.name = decoded.name
        self.layout = decoded.layout
        self.image = decoded.image if keep_image else None
        self.anomaly_map = np.zeros((self.layout.height, self.layout.width), np.float32)
        self.scores: list[float] = []
        self.mean = tiling.view_score == "mean"
        self.finite = True
        self.left = len(self.layout.views)

    def add(self, view: int, score: float, anomaly_map: np.ndarray) -> None:
        """Adds the result of the model for a view: its score, and its map `[h, w]`, float32."""
        self.scores.append(score)
        self.finite &= bool(np.isfinite(score) and np.isfinite(anomaly_map).all())
        self.layout.add(self.anomaly_map, view, anomaly_map)
        self.left -= 1

    @property
    def score(self) -> float:
        """Returns the score of the image. All views must be scored."""
        return sum(self.scores) / len(self.scores) if self.mean else max(self.scores)


class Decoder:
    """Reads images and cuts their views while earlier images are scored.

    Threads suffice, since Pillow decodes and resizes without the global interpreter lock.

    Args:
        images: Sources of images, or functions that return a source, called in the decoding thread. The iterable is
            consumed as needed.
        tiling: Tiling of the images.
        frame: Input frame of the backbone.
        keep_images: Whether the decoded images are kept.
        white: See `pixels_and_remarks`.
        ahead: Number of images that are decoded in advance.
        num_workers: Number of decoding threads. 0 decodes in the caller's thread.
        roi: Region of interest. By default the whole image.
        most_pixels: Maximum number of pixels of an image. The default is `MAX_PIXELS`.
    """

    def __init__(
        self,
        images: "Iterable[Source | Fetch]",
        tiling: Tiling,
        frame: Frame,
        keep_images: bool,
        white: int | None,
        ahead: int,
        num_workers: int,
        roi: Roi | None = None,
        most_pixels: int | None = None,
    ) -> None:
        self.images = images
        self.tiling = tiling
        self.frame = frame
        self.keep_images = keep_images
        self.white = white
        self.ahead = ahead
        self.num_workers = num_workers
        self.roi = roi
        self.most_pixels = most_pixels

    def __iter__(self) -> Iterator[tuple[Decoded | Failure, Iterator[View]]]:
        """Yields the images in order, each with its views. The views must be consumed before the next image."""
        with _threads(self.num_workers) as pool:
            ahead = self.ahead + self.num_workers
            for item in in_order(pool, self._decode, enumerate(self.images), ahead, _bytes_held):
                yield item, iter(()) if isinstance(item, Failure) else self._views(pool, item)

    def _decode(self, numbered: "tuple[int, Source | Fetch]") -> Decoded | Failure:
        index, source = numbered
        try:
            if callable(source):
                source = source()
            if self.most_pixels is not None and isinstance(source, (str, Path, bytes, Content)):  # others are decoded
                shape, _ = read_shape(Path(source) if isinstance(source, str) else source)
                check_most(name_of(source), shape, self.most_pixels)
            image, remarks = pixels_and_remarks(source, self.white)
            height, width, _ = image.shape
            layout = Layout(height, width, self.tiling, self.frame, self.roi, name_of(source))
        except UserError as error:
            return Failure(index, str(error))
        if self.keep_images:
            image = np.array(image)  # the caller may change its array
        needed = self.keep_images or len(layout.views) > 1
        return Decoded(
            index, name_of(source), layout, remarks, layout.cut(image, layout.views[0]), image if needed else None
        )

    def _views(self, pool: ThreadPoolExecutor | None, item: Decoded) -> Iterator[View]:
        yield View(item.index, item.layout.views[0], item.first)
        if (image := item.image) is not None:
            others = item.layout.views[1:]
            cut = in_order(pool, lambda view: item.layout.cut(image, view), others, 2 * self.num_workers)
            yield from (View(item.index, view, pixels) for view, pixels in zip(others, cut, strict=True))


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor | None]:
    if count == 0:
        yield None
        return
    pool = ThreadPoolExecutor(count, thread_name_prefix="decoder")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _bytes_held(numbered: "tuple[int, Source | Fetch]") -> int:
    source = numbered[1]
    return len(source.data) if isinstance(source, Content) else 0


def in_order(
    pool: ThreadPoolExecutor | None,
    do: Callable[[A], B],
    items: Iterable[A],
    ahead: int,
    weight: Callable[[A], int] = lambda item: 0,
) -> Iterator[B]:
    """Yields the result of a function for each item, in order. Threads compute results in advance.

    Args:
        pool: The threads. Without, nothing is computed in advance.
        do: The function.
        items: The items, consumed as needed.
        ahead: Maximum number of results in advance.
        weight: Function that returns the size of an item in bytes. Items in advance, without the last one, have at most
            `BYTES_AHEAD`.
    """
    if pool is None:
        yield from map(do, items)
        return
    begun: deque[tuple[Future[B], int]] = deque()
    held = 0
    for item in items:
        held += weight(item)
        begun.append((pool.submit(do, item), weight(item)))
        while len(begun) > ahead or (held > BYTES_AHEAD and begun):
            first, released = begun.popleft()
            held -= released
            yield first.result()
    while begun:
        yield begun.popleft()[0].result()
