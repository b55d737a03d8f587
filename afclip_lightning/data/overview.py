"""An overview of a dataset on disk: numbers, sizes and bit depths of images, and areas of defects.

In a large dataset, only the headers of some images and the pixels of a few are read, evenly spread over it. So time and
memory stay bounded.
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
from afclip_lightning.data.thumbnails import SIDE, close_up, outline_of, within
from afclip_lightning.types import Sample, Split
from afclip_runtime.errors import DatasetError, DatasetNotFoundError, UnpairedError
from afclip_runtime.images.picture import Picture, say
from afclip_runtime.images.reader import read, read_shape

SPLITS: tuple[Split, ...] = ("train", "test")
HEADERS = 20_000  # largest number of files whose header is read
MASKS = 2_000  # largest number of masks that are measured
DECODED = 200  # largest number of images that are decoded, apart from those that are shown
PICTURES = 1_000  # largest number of pictures that are kept
T = TypeVar("T")
Kind = Literal["normal", "anomalous", "not labelled"]
KINDS: dict[int, Kind] = {0: "normal", 1: "anomalous"}
KINDS_IN_ORDER: tuple[Kind, ...] = ("normal", "not labelled", "anomalous")


@dataclass(frozen=True)
class Look:
    """Findings on an image.

    Attributes:
        sample: The image.
        size: Width and height of the upright image, in pixels; `None` if its header was not or could not be read.
        depth: Bits and colours, such as `8 bits, grey`; empty if the image was not decoded.
        marked: Share of the image that its mask marks; `None` if the mask was not read.
        picture: The image at `SIDE` pixels, `[h, w, 3]`, uint8, RGB; `None` if it is not shown.
        close_up: The largest region of the mask with its surroundings, `[h, w, 3]`, uint8, RGB; `None` if it is not
            small.
        outline: Closed lines around the marked regions, slightly outside so that a thin crack stays visible; points
            `[n, 2]`, x and y in pixels of the picture.
        problem: Reason why the image or its mask could not be read; empty if both could.
        remarks: Remarks on the file; see `Picture.remarks`.
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
        defect_type: Their defect type, as the dataset names it; empty if it does not.
        images: Number of images.
        masks: Number of images with a mask.
        shown: Findings on the images that are shown.
        marked: Shares of the image that the measured masks mark, in ascending order.
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
        """Returns the title of the group, such as `test, anomalous: crack`."""
        return f"{self.split}, {self.kind}" + (f": {self.defect_type}" if self.defect_type else "")

    @property
    def median(self) -> float | None:
        """Returns the median share that a mask marks; `None` if none was measured."""
        return median(self.marked) if self.marked else None


@dataclass(frozen=True)
class Overview:
    """Findings on a dataset.

    Attributes:
        name: Name of the dataset.
        root: Folder of the dataset.
        licence: Licence of the dataset; empty if it is not known.
        groups: Groups by category, split, and defect type.
        groups_there: Number of all groups. It exceeds the number of `groups` in a dataset with very many.
        counts: Numbers of images by category, and by split and kind.
        sizes: Numbers of images by width and height, for images whose header was read.
        depths: Numbers of images by bits and colours, for images that were decoded.
        endings: Numbers of files by the ending of their names.
        masks: Number of images with a mask.
        together: Number of groups of images that are judged together, such as views of an object; see `Sample`.
        problems: Files that could not be listed or read, one sentence each.
        notes: Remarks on files.
        seed: Seed of the selection.
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
        """Returns the number of images."""
        return sum(row.total() for row in self.counts.values())

    def images_of(self, kind: Kind) -> int:
        """Returns the number of images of a kind."""
        return sum(count for row in self.counts.values() for (_, found), count in row.items() if found == kind)


def spread(items: Sequence[T], count: int, seed: int) -> list[T]:
    """Returns items that are evenly spread over a sequence, in its order: one per part, for `count` equal parts.

    Returns all items if there are fewer than `count`.

    Args:
        items: The sequence.
        count: Number of items to return.
        seed: Seed of the choice within each part.
    """
    if count >= len(items):
        return list(items)
    draw, total = random.Random(f"{seed} {len(items)}"), len(items)
    return [items[draw.randrange(i * total // count, (i + 1) * total // count)] for i in range(count)]


def look_over(
    dataset: AnomalyDataModule,
    per_type: int = 6,
    seed: int = 0,
    threads: int = 1,
    progress: bool = False,
    check: Callable[[AnomalyDataModule, str], None] = lambda dataset, stage: dataset.check(stage),
) -> Overview:
    """Returns the overview of a dataset. Changes nothing, except that a dataset that is drawn or cut is created first.

    Args:
        dataset: The dataset.
        per_type: Largest number of pictures per defect type (and of normal images), category and split. It is reduced
            if there would be more than `PICTURES` pictures.
        seed: Seed of the selection.
        threads: Number of files that are read at a time.
        progress: Show a progress bar on the error stream.
        check: Function that checks its layout.

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
    plan = _plan(found, per_type, seed)
    with ThreadPoolExecutor(threads) as pool:
        bar = tqdm(pool.map(plan.look, plan.looked_at), total=len(plan.looked_at), unit="image", disable=not progress)
        looks = {id(one.sample): one for one in bar}
    problems += [one.problem for one in looks.values() if one.problem]
    counts: dict[str, Counter[tuple[Split, Kind]]] = defaultdict(Counter)
    for (category, split, kind, _), part in found.items():
        counts[category][split, kind] += len(part)
    everything = [sample for part in found.values() for sample in part]
    return Overview(
        name=dataset.name,
        root=str(dataset.root),
        licence=dataset.licence,
        groups=[_group(key, found[key], shown, looks) for key, shown in plan.shown.items()],
        groups_there=len(found),
        counts=dict(counts),
        sizes=Counter(one.size for one in looks.values() if one.size),
        depths=Counter(one.depth for one in looks.values() if one.depth),
        endings=Counter(sample.image_path.suffix.lower() or "none" for sample in everything),
        masks=sum(sample.mask_path is not None for sample in everything),
        together=len({(sample.category, sample.split, sample.group) for sample in everything if sample.group}),
        problems=problems,
        notes=say(Counter(remark for one in looks.values() for remark in one.remarks)),
        seed=seed,
    )


_Key = tuple[str, Split, Kind, str]  # category, split, kind and defect type


@dataclass(frozen=True)
class _Plan:
    """The samples that are read, and the parts of them that are read. Samples are identified by their `id`.

    Attributes:
        shown: Samples whose pictures are kept, by their group.
        looked_at: All samples of which any part is read.
        pictured: Samples whose pictures are kept.
        decoded: Samples that are decoded.
        measured: Samples whose mask is read.
    """

    shown: dict[_Key, list[Sample]]
    looked_at: list[Sample]
    pictured: set[int]
    decoded: set[int]
    measured: set[int]

    def look(self, sample: Sample) -> Look:
        """Reads the planned parts of a sample and returns the findings."""
        this = id(sample)
        return _look(sample, this in self.decoded, this in self.pictured, this in self.measured)


def _plan(found: Mapping[_Key, Sequence[Sample]], per_type: int, seed: int) -> _Plan:
    everything = [sample for part in found.values() for sample in part]
    chosen = spread(list(found), PICTURES, seed)
    shown = {key: spread(found[key], min(per_type, PICTURES // len(chosen)), seed) for key in chosen}
    masked = [[sample for sample in part if sample.mask_path] for part in found.values()]
    share = min(1.0, MASKS / max(sum(map(len, masked)), 1))
    pictured = {id(sample) for part in shown.values() for sample in part}
    measured = {id(sample) for part in masked for sample in spread(part, ceil(share * len(part)), seed)}
    decoded = pictured | {id(sample) for sample in spread(everything, DECODED, seed)}
    any_of = {id(sample) for sample in spread(everything, HEADERS, seed)} | decoded | measured
    return _Plan(shown, [sample for sample in everything if id(sample) in any_of], pictured, decoded, measured)


def _grouped(dataset: AnomalyDataModule, problems: list[str]) -> dict[_Key, list[Sample]]:
    """Returns the samples by category, split, kind and defect type.

    Adds a problem for samples that cannot be listed.
    """
    found: dict[_Key, list[Sample]] = {}
    for category in dataset.selected_categories():
        here: dict[_Key, list[Sample]] = defaultdict(list)
        for split in SPLITS:
            try:
                samples = dataset.as_read(dataset.find_samples(category, split))
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


def _group(key: _Key, samples: Sequence[Sample], shown: Sequence[Sample], looks: Mapping[int, Look]) -> Group:
    seen = [looks[id(sample)] for sample in samples if id(sample) in looks]
    marked = sorted(one.marked for one in seen if one.marked is not None)
    masks = sum(sample.mask_path is not None for sample in samples)
    return Group(*key, len(samples), masks, tuple(looks[id(sample)] for sample in shown), tuple(marked))


def _look(sample: Sample, decode: bool, keep: bool, measure: bool) -> Look:
    """Reads the requested parts of a sample and returns the findings."""
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
            look = replace(look, picture=within(image, SIDE, SIDE))
        if sample.mask_path is not None and (measure or keep):
            mask, _ = read_mask_of(picture or sample.image_path, sample.mask_path, sample.mask_threshold)
            look = replace(look, marked=float(mask.mean()))
            if look.picture is not None and image is not None:
                lines = outline_of(mask, *look.picture.shape[:2])
                look = replace(look, outline=lines, close_up=close_up(image, mask))
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
