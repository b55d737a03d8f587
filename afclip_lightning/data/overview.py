"""What is in a dataset on disk, for people: how many images of what, their sizes and depths, the areas of defects.

Of a large set the headers of some and the pixels of few are read, spread evenly over it: time and memory stay bounded.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import ceil
from statistics import median
from typing import Literal, TypeVar

import numpy as np
from tqdm import tqdm

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.images import read_mask_of
from afclip_lightning.data.picture import Picture, say
from afclip_lightning.data.reader import read, read_shape
from afclip_lightning.errors import DatasetError, DatasetNotFoundError, UnpairedError
from afclip_lightning.types import Sample, Split

SPLITS: tuple[Split, ...] = ("train", "test")
HEADERS = 20_000  # files whose header is read, at most
MASKS = 2_000  # masks that are measured
DECODED = 200  # images that are decoded beside those that are shown
PICTURES = 1_000  # pictures that are kept
SIDE = 240  # pixels of a picture's longer side
CLOSE = (240, 120)  # width and height of a close-up, in pixels
SMALL, THIN = 0.25, 0.01  # a defect is shown close up whose longer side, or area, is below this share of the image's
LINES = 300  # outlines of a picture, the longest of them
T = TypeVar("T")
Kind = Literal["normal", "anomalous", "not labelled"]
KINDS: dict[int, Kind] = {0: "normal", 1: "anomalous"}
KINDS_IN_ORDER: tuple[Kind, ...] = ("normal", "not labelled", "anomalous")


@dataclass(frozen=True)
class Look:
    """What was seen of an image.

    Attributes:
        sample: The image.
        size: Width and height of the upright image, in pixels; `None` where its header was not or could not be read.
        depth: Bits and colours, as `8 bits, grey`; empty where it was not decoded.
        marked: Share of the image that its mask marks; `None` where that was not read.
        picture: The image at `SIDE` pixels, `[h, w, 3]`, uint8, RGB; `None` where it is not shown.
        close_up: The largest region of the mask and what is round it, likewise, at most `CLOSE` pixels; `None` where it
            is not small.
        outline: Closed lines round what is marked, a little outside of it so that a thin crack stays visible; points
            `[n, 2]`, x and y in pixels of the picture.
        problem: Why it or its mask could not be read; empty if it could.
        remarks: What is worth knowing of the file; see `Picture.remarks`.
    """

    sample: Sample
    size: tuple[int, int] | None = None
    depth: str = ""
    marked: float | None = None
    picture: np.ndarray | None = None
    close_up: np.ndarray | None = None
    outline: tuple[np.ndarray, ...] = ()
    problem: str = ""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Images of a category that are shown together.

    Attributes:
        category: The category.
        split: `train` or `test`.
        kind: `normal`, `anomalous` or `not labelled`.
        defect_type: What is wrong with them, as the set calls it; empty where it does not.
        images: How many there are.
        masks: How many of them have a mask.
        shown: Looks at some of them, those that are shown.
        marked: Shares of the image that masks mark, of those that were measured, in ascending order.
    """

    category: str
    split: Split
    kind: Kind
    defect_type: str
    images: int
    masks: int
    shown: tuple[Look, ...]
    marked: tuple[float, ...]

    @property
    def title(self) -> str:
        """Returns what they are, as `test, anomalous: crack`."""
        return f"{self.split}, {self.kind}" + (f": {self.defect_type}" if self.defect_type else "")

    @property
    def median(self) -> float | None:
        """Returns the median share that a mask marks; `None` if none was measured."""
        return median(self.marked) if self.marked else None


@dataclass(frozen=True)
class Overview:
    """What was found of a dataset.

    Attributes:
        name: The dataset's.
        root: Its folder.
        licence: Its licence; empty if it is not known.
        groups: By category, split, and defect type.
        groups_there: How many there are; more than `groups` in a set of very many.
        counts: Images by category, and by split and kind.
        sizes: Width and height, by how many of the images whose header was read.
        depths: Bits and colours, by how many of the images that were decoded.
        endings: Endings of the files' names, by how many.
        masks: How many images have a mask.
        together: How many groups of images there are that are judged together, as views of one object; see `Sample`.
        problems: What could not be listed or read, one sentence each.
        notes: What is worth knowing of files.
        seed: Of the selection.
    """

    name: str
    root: str
    licence: str
    groups: list[Group]
    groups_there: int
    counts: dict[str, Counter[tuple[Split, Kind]]]
    sizes: Counter[tuple[int, int]]
    depths: Counter[str]
    endings: Counter[str]
    masks: int
    together: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seed: int = 0

    @property
    def images(self) -> int:
        """Returns how many images there are."""
        return sum(row.total() for row in self.counts.values())

    def images_of(self, kind: Kind) -> int:
        """Returns how many images of a kind there are."""
        return sum(count for row in self.counts.values() for (_, found), count in row.items() if found == kind)


def spread(items: Sequence[T], count: int, seed: int) -> list[T]:
    """Returns items from all over a sequence, in its order: one of each of `count` equal parts; all if there are fewer.

    Args:
        items: The sequence.
        count: How many to take.
        seed: Decides which of each part.
    """
    if count >= len(items):
        return list(items)
    draw, total = random.Random(f"{seed} {len(items)}"), len(items)
    return [items[draw.randrange(i * total // count, (i + 1) * total // count)] for i in range(count)]


def outline_of(mask: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Returns closed lines round what a mask marks, as they lie in a picture of it; see `Look.outline`.

    Args:
        mask: `[H, W]`, uint8 in {0, 1}.
        height: Of the picture, in pixels.
        width: Likewise.
    """
    import cv2  # what only lists has no use for it

    # at twice the size; a pixel there is marked if any of those that it stands for is: no crack is too thin
    shape = 2 * width, 2 * height
    fine = cv2.resize(mask * np.float32(1), shape, interpolation=cv2.INTER_AREA) > 0
    wide = cv2.dilate(fine.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (13, 13)))
    found, _ = cv2.findContours(wide, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    longest = sorted(found, key=len, reverse=True)[:LINES]
    return tuple((cv2.approxPolyDP(line, 0.6, closed=True)[:, 0] + 0.5) / 2 for line in longest)


def look_over(
    dataset: AnomalyDataModule,
    per_type: int = 6,
    seed: int = 0,
    threads: int = 1,
    progress: bool = False,
    check: Callable[[AnomalyDataModule, str], None] = lambda dataset, stage: dataset.check(stage),
) -> Overview:
    """Returns what is in a dataset; of a set that is drawn or cut, it is made first. Reads, and changes nothing else.

    Args:
        dataset: The dataset.
        per_type: Pictures of each defect type of each category and split, at most, and of the normal images.
        seed: Of the selection.
        threads: Files that are read at a time.
        progress: Show a bar on the error stream.
        check: How its layout is checked.

    Raises:
        DatasetError: There is no image.
    """
    problems: list[str] = []
    absent: DatasetError | None = None
    try:
        dataset.prepare_data()
        check(dataset, "predict")
    except DatasetNotFoundError as error:
        absent = error
        problems.append(f"Not all of {dataset.name} is in {dataset.root}: {error.problem}.")
    except DatasetError as error:
        absent = error
        problems.append(str(error))
    found = _grouped(dataset, problems) if dataset.root.is_dir() else {}
    if not found:
        raise absent or DatasetError("\n".join(problems) or f"{dataset.root}: there is no image of {dataset.name}.")
    everything = [sample for part in found.values() for sample in part]
    chosen = spread(list(found), PICTURES // max(per_type, 1) or 1, seed)
    shown = {key: spread(found[key], per_type, seed) for key in chosen}
    masked = {key: [sample for sample in part if sample.mask_path] for key, part in found.items()}
    masks = sum(map(len, masked.values()))
    pictured = {id(sample) for part in shown.values() for sample in part}
    measured = {id(s) for part in masked.values() for s in spread(part, ceil(MASKS * len(part) / max(masks, 1)), seed)}
    decoded = pictured | {id(sample) for sample in spread(everything, DECODED, seed)}
    looked_at = {id(sample) for sample in spread(everything, HEADERS, seed)} | decoded | measured
    rest = [sample for sample in everything if id(sample) in looked_at]

    def look(sample: Sample) -> Look:
        return _look(sample, id(sample) in decoded, id(sample) in pictured, id(sample) in measured)

    with ThreadPoolExecutor(threads) as pool:
        bar = tqdm(pool.map(look, rest), total=len(rest), unit="image", disable=not progress)
        looks = {id(one.sample): one for one in bar}
    problems += [one.problem for one in looks.values() if one.problem]
    counts: dict[str, Counter[tuple[Split, Kind]]] = defaultdict(Counter)
    for (category, split, kind, _), part in found.items():
        counts[category][split, kind] += len(part)
    return Overview(
        dataset.name,
        str(dataset.root),
        dataset.licence,
        [_group(key, found[key], len(masked[key]), shown[key], looks) for key in chosen],
        len(found),
        dict(counts),
        Counter(one.size for one in looks.values() if one.size),
        Counter(one.depth for one in looks.values() if one.depth),
        Counter(sample.image_path.suffix.lower() or "none" for sample in everything),
        masks,
        len({(sample.category, sample.split, sample.group) for sample in everything if sample.group}),
        problems,
        say(Counter(remark for one in looks.values() for remark in one.remarks)),
        seed,
    )


_Key = tuple[str, Split, Kind, str]


def _grouped(dataset: AnomalyDataModule, problems: list[str]) -> dict[_Key, list[Sample]]:
    """Returns the samples by category, split, kind and defect type; notes what cannot be listed."""
    found: dict[_Key, list[Sample]] = {}
    for category in dataset.selected_categories():
        here: dict[_Key, list[Sample]] = defaultdict(list)
        for split in SPLITS:
            try:
                samples = dataset.with_white(dataset.find_samples(category, split))
            except UnpairedError as error:
                problems += error.problems
                continue
            except DatasetError as error:
                problems += [str(error)] if str(error) not in problems else []
                continue
            for sample in samples:
                kind = KINDS.get(sample.label, "not labelled")
                here[category, split, kind, sample.defect_type].append(sample)
        found |= {key: here[key] for key in sorted(here, key=_place)}
    return found


def _place(key: _Key) -> tuple[int, int, str]:
    _, split, kind, defect_type = key
    return KINDS_IN_ORDER.index(kind), SPLITS.index(split), defect_type


def _group(
    key: _Key, samples: Sequence[Sample], masks: int, shown: Sequence[Sample], looks: Mapping[int, Look]
) -> Group:
    seen = [looks[id(sample)] for sample in samples if id(sample) in looks]
    marked = sorted(one.marked for one in seen if one.marked is not None)
    return Group(*key, len(samples), masks, tuple(looks[id(sample)] for sample in shown), tuple(marked))


def _look(sample: Sample, decode: bool, keep: bool, measure: bool) -> Look:
    """Returns what the files of a sample hold, of what is to be read."""
    look = Look(sample)
    picture: Picture | None = None
    image: np.ndarray | None = None
    try:
        if decode:
            picture = read(sample.image_path, draft=None if sample.mask_path else 2 * SIDE)
            size = picture.shape[1], picture.shape[0]
            look = replace(look, size=size, depth=_depth(picture), remarks=picture.remarks(sample.white))
        else:
            height, width = read_shape(sample.image_path)[0]
            look = replace(look, size=(width, height))
        if picture is not None and keep:
            image = picture.rgb(sample.white)
            look = replace(look, picture=_within(image, SIDE, SIDE))
        if sample.mask_path is not None and (measure or keep):
            mask, _ = read_mask_of(picture or sample.image_path, sample.mask_path, sample.mask_threshold)
            look = replace(look, marked=float(mask.mean()))
            if look.picture is not None and image is not None:
                lines = outline_of(mask, *look.picture.shape[:2])
                look = replace(look, outline=lines, close_up=_close_up(image, mask))
    except DatasetError as error:
        look = replace(look, problem=str(error))
    return look


def _depth(picture: Picture) -> str:
    values = picture.values
    bits = f"{picture.bits} bits" if picture.bits else str(values.dtype)
    if values.ndim == 2:
        return f"{bits}, grey"
    alike = np.array_equal(values[..., 0], values[..., 1]) and np.array_equal(values[..., 0], values[..., 2])
    return f"{bits}, grey in three channels" if alike else f"{bits}, colour"


def _within(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Returns an image made small enough; one that is so keeps its pixels."""
    import cv2

    scale = min(width / image.shape[1], height / image.shape[0])
    if scale >= 1:
        return image
    size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _close_up(image: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
    """Returns the largest region of a mask, 8-connected, and what is round it; of a long and thin one a part.

    `None` where there is none, or it is large enough to be seen in the whole image.
    """
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count < 2:
        return None
    label = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    left, top, width, height, area = stats[label].tolist()
    x, y, longest = left + width // 2, top + height // 2, SMALL * max(image.shape)
    if max(width, height) >= longest:
        if area >= THIN * mask.size:
            return None
        rows, columns = np.nonzero(labels == label)
        nearest = int(np.hypot(rows - y, columns - x).argmin())
        x, y, width, height = int(columns[nearest]), int(rows[nearest]), 0, round(longest / 2)
    tall = max(round(1.6 * height), round(0.8 * width), 32)
    x, y = (
        max(min(middle - cut // 2, whole - cut), 0)
        for middle, cut, whole in ((x, 2 * tall, image.shape[1]), (y, tall, image.shape[0]))
    )
    return _within(image[y : y + tall, x : x + 2 * tall], *CLOSE).copy()  # the image itself goes
