"""Finds problems of a dataset on disk before they affect results."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
from tqdm import tqdm

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.defects import read_defects
from afclip_lightning.data.images import mask_files, turn_of
from afclip_lightning.data.left_out import LeftOut, sentences, short
from afclip_lightning.data.mapped import mapped
from afclip_lightning.data.masks import say_mostly
from afclip_lightning.data.published import Counts
from afclip_lightning.types import MOSTLY_MARKED, UNKNOWN, Sample, Split
from afclip_runtime.errors import DatasetError, UnpairedError, shown
from afclip_runtime.images.picture import Picture, say, upright
from afclip_runtime.images.reader import read

COUNTED = ("normal training", "normal test", "anomalous test")
SPLITS: tuple[Split, ...] = ("train", "test")
SHOWN = 40  # problems and notes that the report prints; the JSON has all


@dataclass
class CategoryReport:
    """Findings on one category.

    Attributes:
        category: The category.
        found: Numbers of images on disk: train normal, test normal, test anomalous; `None` if they cannot be listed.
        published: The published numbers; `None` if none are published.
        masks: Number of masks on disk.
        sizes: Smallest and largest width and height in pixels, `[w, h, w, h]`, of images that can be read.
    """

    category: str
    found: Counts
    published: Counts
    masks: int = 0
    sizes: tuple[int, int, int, int] | None = None


@dataclass
class Report:
    """Findings on a dataset.

    Attributes:
        dataset: Name of the dataset.
        root: Folder of the dataset.
        licence: Licence of the dataset.
        categories: One report per category.
        left_out: Unread files in its folders that might be images.
        problems: Problems, and doubts that should be checked, one sentence each; empty if there are none.
        notes: Remarks that are not problems, one sentence each.
    """

    dataset: str
    root: str
    licence: str
    categories: list[CategoryReport] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Seen:
    """One sample after its pixels were read.

    Attributes:
        sample: The sample.
        size: Width and height, `None` if the image cannot be read.
        digest: Digest of its pixels.
        problems: Problems of the sample, one sentence each.
        remarks: Remarks on the image, each as the end of a sentence on a number of images.
        mask_notes: Remarks on the mask, in the same form.
        marked: Share of the picture that its mask marks.
        cut: Highest normal value of a mask in a lossy format; `None` for a lossless format.
    """

    sample: Sample
    size: tuple[int, int] | None = None
    digest: str = ""
    problems: list[str] = field(default_factory=list)
    remarks: tuple[str, ...] = ()
    mask_notes: tuple[str, ...] = ()
    marked: float = 0.0
    cut: int | None = None


def examine(
    dataset: AnomalyDataModule,
    threads: int = 1,
    progress: bool = False,
    check: Callable[[AnomalyDataModule, str], None] = lambda dataset, stage: dataset.check(stage),
) -> Report:
    """Returns a report on a dataset. Reads every image and mask, and changes nothing.

    Args:
        dataset: The dataset.
        threads: Number of files that are read at a time.
        progress: Show a progress bar on the error stream.
        check: Function that checks its layout.
    """
    report = Report(dataset.name, str(dataset.root), dataset.licence)
    try:
        check(dataset, "predict")
    except DatasetError as error:
        report.problems.append(str(error))
    if not dataset.root.is_dir():  # not an error for a dataset that a run creates, but there is nothing to examine
        report.problems = report.problems or [f"{dataset.root}: there is no such folder."]
        return report
    complete = not report.problems
    try:
        categories = dataset.selected_categories()
    except DatasetError as error:  # such as an unreadable table or an unknown category
        report.problems = [str(error)]
        return report
    samples: dict[str, list[Sample]] = {}
    for category in tqdm(categories, desc="listing", unit="category", disable=not progress or len(categories) == 1):
        train, test = (_list(dataset, category, split, report.problems) for split in SPLITS)
        samples[category] = [*(train or ()), *(test or ())]
        if complete and test == []:
            report.problems.append(f"{category}: there is no test image.")
        counts = (_count(train, 0), _count(test, 0), _count(test, 1))
        published = dataset.published_counts.get(category, (None, None, None))
        report.categories.append(CategoryReport(category, counts, published))
    report.problems += _wrong_counts(dataset, report.categories)
    _tell_left_out(dataset, report)
    looked_at: list[_Seen] = []
    with ThreadPoolExecutor(threads) as pool:
        everything = [sample for part in samples.values() for sample in part]
        bar = tqdm(mapped(pool, _look, everything), total=len(everything), unit="image", disable=not progress)
        looked_at.extend(bar)
    by_category: dict[str, list[_Seen]] = defaultdict(list)
    for seen in looked_at:
        by_category[seen.sample.category].append(seen)
    for row in report.categories:
        part = by_category[row.category]
        row.masks = sum(seen.sample.mask_path is not None for seen in part)
        sizes = np.array([seen.size for seen in part if seen.size])
        if len(sizes):
            row.sizes = tuple(np.concatenate([sizes.min(0), sizes.max(0)]).tolist())
    report.problems += [problem for seen in looked_at for problem in seen.problems]
    _tell_pixels(looked_at, by_category, dataset, report)
    _find_duplicates(looked_at, dataset.root, report)
    if not dataset.published_counts and dataset.published_total == (None, None, None):
        report.notes.append("There are no published counts to compare with.")
    if unlabelled := sum(sample.label == UNKNOWN for part in samples.values() for sample in part):
        report.notes.append(f"{unlabelled} images have no labels: they can be predicted only.")
    return report


def _tell_left_out(dataset: AnomalyDataModule, report: Report) -> None:
    """Reports unread files, folders that may be read wrongly, and images whose names look alike."""
    try:
        for split in SPLITS:
            report.left_out += dataset.left_out(split)
            report.problems += [f"{doubt}." for doubt in dataset.doubts(split)]
        report.notes += [f"{note}." for note in dataset.notes()]
    except DatasetError as error:
        report.problems += [str(error)] if str(error) not in report.problems else []
    report.problems += [f"{said}." for said in sentences(report.left_out, dataset.root)]


def _list(dataset: AnomalyDataModule, category: str, split: Split, problems: list[str]) -> list[Sample] | None:
    """Returns the samples; if they cannot be listed, adds the problem and returns `None`."""
    try:
        return dataset.as_read(dataset.find_samples(category, split))
    except UnpairedError as error:
        problems += error.problems
    except DatasetError as error:
        problems.append(str(error))
    return None


def _count(samples: list[Sample] | None, label: int) -> int | None:
    return None if samples is None else sum(sample.label == label for sample in samples)


def _wrong_counts(dataset: AnomalyDataModule, rows: list[CategoryReport]) -> Iterable[str]:
    """Yields differences from the published numbers: per category, or of all together if a category has no number."""
    listed = [row for row in rows if row.found != (0, 0, 0)]  # the others have no folder or an empty one: reported
    for row in listed:
        for what, found, published in zip(COUNTED, row.found, row.published, strict=True):
            if published is not None and found is not None and found != published:
                yield f"{row.category}: {found} {what} images, published are {published}."
    if dataset.categories is not None or len(listed) < len(rows):
        return
    for index, (what, published) in enumerate(zip(COUNTED, dataset.published_total, strict=True)):
        counts = [row.found[index] for row in rows]
        known = [count for count in counts if count is not None]
        by_category = all(row.published[index] is not None for row in rows)
        if published is not None and not by_category and len(known) == len(counts) and sum(known) != published:
            yield f"All categories: {sum(known)} {what} images, published are {published}."


def _look(sample: Sample) -> _Seen:
    """Reads the files of a sample and returns the findings."""
    seen, picture = _Seen(sample), None
    try:
        picture = read(sample.image_path)
        image = picture.rgb(sample.white)
        height, width = image.shape[:2]
        seen.size = (width, height)
        seen.remarks = picture.remarks(sample.white)
        seen.digest = blake2b(image.tobytes(), digest_size=16, salt=str(image.shape[0]).encode()).hexdigest()
    except DatasetError as error:
        seen.problems.append(str(error))
    if sample.mask_path is None:
        return seen
    try:
        regions = [_look_at_mask(file, seen, picture) for file in mask_files(sample.mask_path)]
        if sample.saturations and picture and not seen.problems:
            read_defects(sample.mask_path, sample.saturations, picture.shape, picture.orientation)
    except DatasetError as error:
        seen.problems.append(str(error))
        return seen
    seen.marked = float(np.any([region for region in regions if region.shape == regions[0].shape], axis=0).mean())
    return seen


def _look_at_mask(file: Path, seen: _Seen, picture: Picture | None) -> np.ndarray:
    """Returns the pixels that a mask file marks, `[H, W]`, bool, and adds its problems.

    Args:
        file: The mask, or one of several masks of the image.
        seen: Findings on the sample, to which problems are added.
        picture: The image, if it could be read.

    Raises:
        DatasetError: The mask cannot be read.
    """
    mask = read(file, stored=True)
    seen.mask_notes = mask.notes
    values, cut = mask.grey(), mask.cut(seen.sample.mask_threshold)
    if seen.size and picture:
        values = upright(values, turn_of(mask, picture.shape, picture.orientation))
    mask_size = values.shape[1], values.shape[0]
    if seen.size and mask_size != seen.size:
        sizes = "{}×{} pixels and its image {}×{}".format(*mask_size, *seen.size)
        seen.problems.append(f"{file}: the mask is {sizes}.")
    seen.cut = cut if mask.lossy else None
    marked = np.unique(values[values > cut])
    if not len(marked):
        seen.problems.append(f"{file}: the mask is empty, but its image is anomalous.")
    # Several low values are class numbers, as in VisA. With a threshold, smooth edges are expected.
    elif not cut and len(marked) > 1 and marked[-1] > 127:
        seen.problems.append(f"{file}: the mask is not binary: {len(marked)} values above 0 count as anomalous.")
    return np.asarray(values > cut)


def _mask_of(seen: _Seen) -> Path:
    assert seen.sample.mask_path is not None
    return seen.sample.mask_path


def _tell_pixels(
    looked_at: list[_Seen], by_category: Mapping[str, list[_Seen]], dataset: AnomalyDataModule, report: Report
) -> None:
    """Adds remarks on pixels that are not faults of a single file, with numbers of images and masks."""
    report.notes += say(Counter(remark for seen in looked_at for remark in seen.remarks))
    report.notes += say(Counter(note for seen in looked_at for note in seen.mask_notes), "mask")
    for cut in sorted({seen.cut for seen in looked_at if seen.cut is not None}):
        masks = [short(_mask_of(seen), dataset.root) for seen in looked_at if seen.cut == cut]
        report.notes.append(
            f"{len(masks)} masks were saved with loss, as JPEG does, which blurs their edges: values above {cut} count "
            f"as anomalous. The first: {masks[0]}."
        )
    for row in report.categories:
        masked = [seen for seen in by_category[row.category] if seen.marked]
        most = [seen for seen in masked if seen.marked > MOSTLY_MARKED]
        if most:
            said = say_mostly(row.category, len(most), _mask_of(most[0]))
            # a defect may be large, but most of them rarely are
            (report.problems if 2 * len(most) > len(masked) else report.notes).append(said)


def _find_duplicates(looked_at: list[_Seen], root: Path, report: Report) -> None:
    """Reports images with equal pixels: a problem between training and test or between labels, otherwise a note."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for seen in looked_at:
        if seen.digest:
            groups[seen.digest].append(seen.sample)
    copies = 0
    for group in groups.values():
        if len(group) == 1:
            continue
        names = ", ".join(short(sample.image_path, root) for sample in group)
        if len({sample.split for sample in group}) > 1:
            report.problems.append(f"The same picture is in training and in test: {names}.")
        elif len({sample.label for sample in group}) > 1:
            report.problems.append(f"The same picture is normal and anomalous: {names}.")
        else:
            copies += len(group) - 1
    if copies:
        report.notes.append(f"{copies} images are pixel for pixel copies of others of the same split and label.")


def render(report: Report) -> str:
    """Returns the report as text."""
    rows: list[tuple[str, ...]] = [("category", "train normal", "test normal", "test anomalous", "masks", "pixels")]
    for row in report.categories:
        counts = [_against(found, published) for found, published in zip(row.found, row.published, strict=True)]
        smallest_largest = "{}×{} to {}×{}".format(*row.sizes) if row.sizes else "-"
        rows.append((row.category, *counts, str(row.masks), smallest_largest))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{report.dataset} in {report.root}", f"Licence: {report.licence or 'not known'}", ""]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", *_listed("note", "notes", report.notes), *_listed("PROBLEM", "PROBLEMS", report.problems)]
    text = "\n".join(lines if report.problems else [*lines, "Nothing is wrong."])
    return "\n".join(map(shown, text.split("\n")))


def _against(found: int | None, published: int | None) -> str:
    shown = "?" if found is None else str(found)
    return shown if published is None or found == published else f"{shown} (of {published})"


def _listed(one: str, several: str, sentences: list[str]) -> list[str]:
    if not sentences:
        return []
    shown = [f"  - {sentence}".replace("\n", "\n    ") for sentence in sentences[:SHOWN]]
    rest = [f"  … and {len(sentences) - SHOWN} more; --json has them all."] if len(sentences) > SHOWN else []
    return [f"{len(sentences)} {one if len(sentences) == 1 else several}:", *shown, *rest, ""]
