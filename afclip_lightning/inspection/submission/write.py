"""Writes a submission: thresholds from validation images, then maps and masks, each file atomically."""

import gzip
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from afclip_lightning.inspection.submission.encoding import Encoding, resized
from afclip_lightning.inspection.submission.layout import ARCHIVE, RECORD, Item
from afclip_lightning.inspection.submission.sources import MapSource
from afclip_lightning.metrics.fixed_thresholds import FACTOR, Moments, mean_plus_sd
from afclip_runtime.errors import UserError, shown
from afclip_runtime.files import atomic_path, read_json, write_json
from afclip_runtime.files.png import write_png
from afclip_runtime.images.reader import read_shape
from afclip_runtime.thresholds import is_anomalous

Progress = Callable[[Any, int, str], Any]


@dataclass(frozen=True)
class Rules:
    """How a submission is made.

    Attributes:
        factor: Distance of the threshold above the mean of the validation images' pixels, in standard deviations.
        threshold: Threshold set by hand for all categories, in the unit of the maps. `None` takes it from validation
            images.
        masks: Whether masks are written.
        longest: Longest side of a stored map in pixels; `None` for the size of its image. Masks always have the size of
            the image.
    """

    factor: float = FACTOR
    threshold: float | None = None
    masks: bool = True
    longest: int | None = None


@dataclass(frozen=True)
class Fixed:
    """The values of a category that are fixed before a test image is seen.

    Attributes:
        threshold: Pixels above it are anomalous, in the unit of the method's maps.
        factor: Factor of the encoding: stored = (score - threshold) * factor.
        mean: Mean of the pixels that give the threshold.
        sd: Standard deviation of these pixels.
        images: Number of images of these pixels.
        of_validation: Whether these are validation images. Otherwise they are images of the private parts, which only
            scale the maps and set no threshold.
        facts: Facts that determine the maps.
        beyond: Number of pixels so far that were clipped to float16's limits.
        files: Identity of each written map's source file by key, for maps that come from files.
    """

    threshold: float
    factor: float
    mean: float
    sd: float
    images: int
    of_validation: bool
    facts: dict[str, Any]
    beyond: int = 0
    files: dict[str, str] = field(default_factory=dict)

    @property
    def encoding(self) -> Encoding:
        """Returns how scores become float16."""
        return Encoding(self.threshold, self.factor)


@dataclass(frozen=True)
class _Record:
    """The record of how a folder was made."""

    rules: Rules
    categories: dict[str, Fixed]


def fix(
    source: MapSource,
    category: str,
    validation: Sequence[Item],
    items: Sequence[Item],
    rules: Rules,
    progress: Progress,
) -> Fixed:
    """Returns threshold and encoding of a category, from one pass over the maps of its validation images.

    Args:
        source: Source of the maps.
        category: The category.
        validation: Validation images of the category.
        items: Images of the submission. Their maps scale the encoding if validation images have none.
        rules: How the submission is made.
        progress: Wraps a loop over maps, given its items, their number and its name.

    Raises:
        UserError: Masks are to be written, and there is neither a threshold nor a map of a validation image.
    """
    normal = source.known(validation)
    if not normal and rules.masks and rules.threshold is None:
        raise UserError(
            f"{category}: a threshold of mean and standard deviation needs maps of normal images, and there is none of "
            f"{category}/validation/good. Add them (<name> as in the dataset), give --threshold X, or leave masks out "
            "(--no_masks)."
        )
    basis = normal or list(items)
    moments, lowest, highest = Moments(), np.inf, -np.inf
    for item, anomaly_map in progress(source.stream(basis), len(basis), f"{category}, {basis[0].part}"):
        try:
            moments += Moments.of(anomaly_map)
        except UserError as error:
            raise UserError(f"{item.image}: {error}") from error
        lowest, highest = min(lowest, float(anomaly_map.min())), max(highest, float(anomaly_map.max()))
    threshold = mean_plus_sd(moments, rules.factor) if rules.threshold is None else rules.threshold
    factor = Encoding.around(threshold, lowest, highest).factor
    facts = source.facts(category, validation)
    return Fixed(threshold, factor, moments.mean, moments.sd, len(basis), bool(normal), facts)


def write(
    source: MapSource,
    plan: Mapping[str, tuple[Sequence[Item], Sequence[Item]]],
    folder: Path,
    rules: Rules,
    progress: Progress,
) -> dict[str, Fixed]:
    """Writes the missing files and those of maps that were replaced since, and returns the fixed values by category.

    Args:
        source: Source of the maps.
        plan: Validation images and images of the submission, by category.
        folder: Folder of the submission.
        rules: How the submission is made.
        progress: See `fix`.

    Raises:
        UserError: The folder holds a submission that was made with other settings, a map cannot be read, a file cannot
            be written, or a threshold has no normal images.
    """
    record = folder / RECORD
    known = _record_of(folder, rules) if record.exists() else {}
    source.check([item for _, items in plan.values() for item in items])
    for category, (validation, items) in plan.items():
        files, there = source.files(items), [item for item in items if _is_there(item, folder, rules)]
        if (before := known.get(category)) is not None:
            if changed := _changed(before.facts, source.facts(category, validation)):
                raise UserError(
                    f"{folder}: {category} was begun with another {', '.join(changed)} ({record}), and one submission "
                    "must not mix them. Choose another --out, or remove the folder."
                )
            fixed = before
        else:
            if there:
                raise UserError(f"{folder} holds maps of {category} that are not in {record}. Choose another --out.")
            fixed = known[category] = fix(source, category, validation, items, rules, progress)
            _keep(record, rules, known)
        same = {item.key for item in there if fixed.files.get(item.key) == files.get(item.key)}
        todo = [item for item in items if item.key not in same]
        try:
            for part in dict.fromkeys(item.part for item in todo):
                inner = [item for item in todo if item.part == part]
                for item, anomaly_map in progress(source.stream(inner), len(inner), f"{category}, {part}"):
                    beyond = fixed.beyond + _save(item, anomaly_map, folder, fixed.encoding, rules)
                    of_item = {item.key: files[item.key]} if item.key in files else {}
                    fixed = replace(fixed, beyond=beyond, files=fixed.files | of_item)
        finally:  # files that a killed process did not record are written again
            if fixed is not known[category]:
                known[category] = fixed
                _keep(record, rules, known)
    return {category: known[category] for category in plan}


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the names of the facts that differ between stored JSON and the values to write."""
    old, new = ({key: json.dumps(value, sort_keys=True) for key, value in facts.items()} for facts in (before, now))
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def _save(item: Item, anomaly_map: np.ndarray, folder: Path, encoding: Encoding, rules: Rules) -> int:
    """Writes mask and map of an image, the map last. Returns how many pixels were clipped to float16's limits."""
    height, width = read_shape(item.image)[0]
    if rules.masks:
        above = is_anomalous(resized(anomaly_map, height, width), encoding.threshold)
        write_png(folder / item.mask_name, above)
    stored = anomaly_map
    longest = max(anomaly_map.shape) if rules.longest is None else rules.longest
    if max(anomaly_map.shape) > longest:
        share = longest / max(anomaly_map.shape)
        stored = resized(anomaly_map, *(max(round(side * share), 1) for side in anomaly_map.shape))
    values, beyond = encoding.encode(stored)
    with atomic_path(folder / item.map_name) as temporary:
        tifffile.imwrite(temporary, values, photometric="minisblack")
    return beyond


def _is_there(item: Item, folder: Path, rules: Rules) -> bool:
    return (folder / item.map_name).exists() and (not rules.masks or (folder / item.mask_name).exists())


def _record_of(folder: Path, rules: Rules) -> dict[str, Fixed]:
    """Returns the record of how a folder was made.

    Raises:
        UserError: The folder was made with other rules.
    """
    kept = read_json(folder / RECORD, _Record, remedy="Choose another --out.")
    if kept.rules != rules:
        changed = [f"{name}: {value}" for name, value in asdict(kept.rules).items() if value != asdict(rules)[name]]
        raise UserError(
            f"{folder} was begun by other rules ({'; '.join(changed)}; {folder / RECORD}), and one submission must "
            "not mix them. Give the same options, choose another --out, or remove the folder."
        )
    return kept.categories


def _keep(record: Path, rules: Rules, known: dict[str, Fixed]) -> None:
    write_json(record, asdict(_Record(rules, known)))


def pack(folder: Path, items: Sequence[Item], masks: bool, progress: Progress) -> Path:
    """Packs maps and masks into the server's format, and returns the archive. Equal files give an equal archive.

    Raises:
        UserError: A file is missing, or the archive cannot be written.
    """
    names = [item.map_name for item in items] + [item.mask_name for item in items if masks]
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{folder}: {shown(absent[0])} is missing. Write the submission again.")
    out = folder / ARCHIVE
    with (
        atomic_path(out) as temporary,
        temporary.open("wb") as file,
        # without name and time, equal contents give equal archives
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name in progress(sorted(names), len(names), "packing"):
            member = tarfile.TarInfo(name)
            member.size = (folder / name).stat().st_size
            with (folder / name).open("rb") as content:
                archive.addfile(member, content)
    return out
