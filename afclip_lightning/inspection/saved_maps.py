"""Scores saved anomaly maps of any method: finds the mask of each map, and computes the metrics."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from afclip_lightning import results
from afclip_lightning.data.defects import SATURATION_FILE, mask_folders, read_saturations
from afclip_lightning.data.images import pair_masks
from afclip_lightning.data.masks import say_mostly
from afclip_lightning.data.names import normal_form
from afclip_lightning.data.regions import regions_of
from afclip_lightning.inspection.normal_maps import thresholds_from
from afclip_lightning.inspection.saved_masks import read_saved_mask, spro_weight
from afclip_lightning.metrics import AnomalyMetrics, region_areas
from afclip_lightning.metrics.fixed_thresholds import Rule
from afclip_lightning.metrics.image_counts import ImageRecord
from afclip_lightning.metrics.kept_counts import CountsFile
from afclip_lightning.metrics.operating_points import operating_points
from afclip_lightning.metrics.spro import spro_result
from afclip_lightning.types import MOSTLY_MARKED, Saturations
from afclip_runtime.errors import DatasetError, counted
from afclip_runtime.images.find import IMAGE_SUFFIXES, list_folders, list_images, other_files, walk_folders
from afclip_runtime.images.maps import MAP_SUFFIXES, read_map
from afclip_runtime.images.picture import say
from afclip_runtime.views.roi import Roi

NORMAL_FOLDER = "good"
ALONE = "all"
"""Name in the table for the only category of a folder."""

# Suffixes of maps that cannot be read. Their images are left out, and a note says so.
OTHER_SUFFIXES = (IMAGE_SUFFIXES - MAP_SUFFIXES) | {
    ".npz",
    ".mat",
    ".pt",
    ".pth",
    ".pkl",
    ".h5",
    ".exr",
    ".hdr",
    ".raw",
}

NO_MASKS = (OTHER_SUFFIXES - IMAGE_SUFFIXES) | {".npy"}  # suffixes of masks that cannot be read

Layout = Literal["auto", "category", "categories"]
EmptyMasks = Literal["refuse", "normal"]


@dataclass(frozen=True)
class Category:
    """The maps and masks that are scored together.

    Attributes:
        name: Name in the table.
        maps: Folder of its maps.
        masks: Folder of its masks.
        saturations: Saturation file beside the masks, if any. Each image then has a folder of masks, as in MVTec LOCO
            AD.
    """

    name: str
    maps: Path
    masks: Path

    @cached_property
    def saturations(self) -> Saturations | None:
        """Returns the saturation thresholds of the kinds of defects, read on first use."""
        file = self.masks / SATURATION_FILE
        return read_saturations(file) if file.is_file() else None


@dataclass(frozen=True)
class Rules:
    """How a folder of maps is interpreted.

    Attributes:
        layout: See `find_categories`.
        unmasked_are_normal: See `pair_maps`.
        empty_masks: See `evaluate`.
        mask_threshold: See `evaluate`.
        roi: File of the region of interest, or folder of those of the categories; see `regions_of`.
    """

    layout: Layout = "auto"
    unmasked_are_normal: bool = False
    empty_masks: EmptyMasks = "refuse"
    mask_threshold: int | None = None
    roi: Path | None = None


@dataclass
class Notes:
    """Notes for the user, printed beside the table.

    Attributes:
        lines: One sentence each.
        left_out: Number of files that look like maps or masks and were not read.
    """

    lines: list[str] = field(default_factory=list)
    left_out: int = 0


def find_categories(maps: Path, masks: Path, layout: Layout = "auto") -> list[Category]:
    """Returns the categories of a folder of maps: the folders directly in it, or all of it as the only one.

    Args:
        maps: Folder of the maps.
        masks: Folder of the masks.
        layout: `category`: the folder is one category, and its folders are kinds of defects. `categories`: each folder
            is a category. `auto`: one category if maps, or a folder named `test` or `good`, lie directly in `maps`.

    Raises:
        DatasetError: The folder does not exist, or its layout is ambiguous.
    """
    if not maps.is_dir():
        raise DatasetError(f"{maps} is not a folder.")
    folders = list_folders(maps)
    alone = [Category(ALONE, maps, masks)]
    if layout == "category":
        return alone
    if layout == "auto":
        signs = [path.name for path in folders if path.name in ("test", NORMAL_FOLDER)]
        signs += [path.name for path in sorted(maps.iterdir()) if _is_map(path)]
        if signs:
            others = [path.name for path in folders if path.name not in signs and _is_category(path)]
            if others:
                raise DatasetError(
                    f"{maps}: {signs[0]} lies beside {others[0]}, which looks like a category of its own. Say which it "
                    "is: --layout categories (each folder is a category) or --layout category (all is one)."
                )
            return alone
    found = [Category(folder.name, folder, masks / folder.name) for folder in folders]
    for category in found:
        results.check_category(category.name, f"{category.maps}: ")
    return found


def _is_category(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in ("test", NORMAL_FOLDER))


def pair_maps(maps: Path, masks: Path, unmasked_are_normal: bool) -> dict[Path, Path | None]:
    """Returns the mask of every map of one category, sorted by path; `None` where the image is normal.

    Args:
        maps: Folder of the category's maps.
        masks: Folder of its masks; beside a saturation file each image has a folder of masks.
        unmasked_are_normal: Whether every map without a mask counts as a normal image, in any folder.

    Raises:
        DatasetError: A map outside the folder of normal images has no mask, a mask has no map, or two maps share a
            name.
    """
    per_defect = (masks / SATURATION_FILE).is_file()
    maps, masks = _inner(maps, "test"), _inner(masks, "ground_truth")
    map_files = [path for folder in walk_folders(maps) for path in sorted(folder.iterdir()) if _is_map(path)]
    if not map_files:
        return {}
    files = [path for folder in walk_folders(masks) for path in list_images(folder)]
    files = mask_folders(masks, NORMAL_FOLDER) if per_defect else files
    twins: dict[Path, Path] = {}
    for path in map_files:
        twin = twins.setdefault(path.with_suffix(""), path)
        if twin is not path:
            raise DatasetError(f"{path}: {twin.name} beside it has the same name. Keep one map of each image.")
    named = {(p.parent.relative_to(masks), stem) for p in files for stem in (p.stem, p.stem.removesuffix("_mask"))}
    with_mask = [path for path in map_files if (path.parent.relative_to(maps), path.stem) in named]
    known = set(with_mask)
    for path in map_files:
        if path not in known and not unmasked_are_normal and not _is_normal(path, maps):
            raise DatasetError(
                f"{path}: no mask of this name in {masks / path.parent.relative_to(maps)}. Restore it, or, if maps "
                "without a mask are of normal images, add --unmasked_are_normal."
            )
    paired = pair_masks(with_mask, files, roots=(maps, masks))
    return {path: paired.get(path) for path in map_files}


def _is_normal(path: Path, maps: Path) -> bool:
    """Returns whether a map lies in a folder of normal images, or in one below it."""
    return NORMAL_FOLDER in (path.parent.name, *path.relative_to(maps).parts[:-1])


def defect_types(pairs: dict[Path, Path | None], maps: Path) -> dict[str, str]:
    """Returns the defect type of each anomalous image, by the path of its map: the name of its folder.

    A single folder (`bad`) tells no types, so there are none then.

    Args:
        pairs: See `pair_maps`.
        maps: Folder of the category's maps.
    """
    inner = _inner(maps, "test")
    anomalous = [path for path, mask in pairs.items() if mask is not None and not _is_normal(path, maps)]
    types = {str(path): normal_form(path.relative_to(inner).parts[0]) for path in anomalous if path.parent != inner}
    return types if len(set(types.values())) > 1 else {}


def evaluate(
    pairs: dict[Path, Path | None],
    maps: Path,
    metrics: AnomalyMetrics,
    empty_masks: EmptyMasks = "refuse",
    mask_threshold: int | None = None,
    records: list[ImageRecord] | None = None,
    saturations: Saturations | None = None,
    saturated: AnomalyMetrics | None = None,
    roi: Roi | None = None,
) -> tuple[list[Path], Counter[str]]:
    """Adds maps and masks to the metrics, one at a time.

    Returns the masks that mark most of their picture, and other notes on masks with the number of masks each.

    Args:
        pairs: See `pair_maps`.
        maps: Folder of the category's maps.
        metrics: Metrics of the category.
        empty_masks: Meaning of an empty mask outside the normal folder: a mistake, as in `test`, or a normal image.
        mask_threshold: Highest value of a mask that is still normal; by default the reader's rule.
        records: Collects the records of the images, if given.
        saturations: Saturation thresholds of the kinds of defects, if masks are folders.
        saturated: Collects the values of sPRO, if masks are folders.
        roi: Pixels that count; all by default. An image is normal if its mask marks only pixels outside.

    Raises:
        DatasetError: A file cannot be read, a map and its mask differ in size, a map is not finite, an image in a
            folder of normal images has anomalous pixels, or an image outside has none. The message names the file.
    """
    mostly: list[Path] = []
    remarks: Counter[str] = Counter()
    counts = CountsFile()
    for path, mask_path in pairs.items():
        anomaly_map = read_map(path)
        mask: np.ndarray = np.zeros(anomaly_map.shape, np.uint8)
        if mask_path is not None:
            mask, noted = read_saved_mask(mask_path, mask_threshold)
            remarks.update(noted)
        if mask.shape != anomaly_map.shape:
            raise DatasetError(
                f"{path}: the map is {anomaly_map.shape[1]}×{anomaly_map.shape[0]} pixels and its mask {mask_path} is "
                f"{mask.shape[1]}×{mask.shape[0]}. Save both at one size."
            )
        label = mask_path is not None and not _is_normal(path, maps)
        marked = mask.any()
        inside = None if roi is None else roi.inside(mask.shape[0], mask.shape[1], path)
        if inside is not None and marked:
            mask = mask * inside
            label = label and bool(mask.any())
        if label and not mask.any():
            if empty_masks == "refuse":
                raise DatasetError(
                    f"{mask_path}: the mask marks nothing, but its image {path} is anomalous. Replace the mask, or "
                    f"move the map to the normal ones ({NORMAL_FOLDER}); if black masks mean normal images, add "
                    "--empty_masks normal."
                )
            label = False
        if mask_path is not None and mask.mean() > MOSTLY_MARKED:
            mostly.append(mask_path)
        try:
            values = anomaly_map.reshape(-1) if inside is None else anomaly_map[inside]
            score = values.max(keepdims=True)
            areas = torch.from_numpy(region_areas(mask))
            given, names = (anomaly_map[None], mask[None]), [str(path)]
            every = None if inside is None else inside[None]
            metrics.update(*given, score, np.array([label]), region_area=areas[None], names=names, inside=every)
            weight = spro_weight(anomaly_map, mask_path, saturations) if saturations else None
            if saturated is not None and weight is not None:
                saturated.update(
                    *given, None, np.array([label]), region_area=areas[None], names=names, region_weight=weight[None]
                )
        except ValueError as error:
            named = "" if str(path) in str(error) else f"{path}: "
            raise DatasetError(f"{named}{error}") from error
        if records is not None:
            kept = areas.reshape(-1) if inside is None else areas[torch.from_numpy(inside.copy())]
            records.append(counts.keep(ImageRecord.of(str(path), int(label), float(score[0]), values, kept, weight)))
    return mostly, remarks


def score(
    maps: Path,
    masks: Path,
    rules: Rules,
    new_metrics: Callable[[], AnomalyMetrics],
    records: dict[results.Key, list[ImageRecord]] | None = None,
    rule: Rule | None = None,
    normal_maps: Path | None = None,
    types: dict[str, str] | None = None,
) -> tuple[list[results.Row], Notes]:
    """Returns one row per category that has maps, and the notes.

    Args:
        maps: Folder of the maps.
        masks: Folder of the masks.
        rules: How the folders are interpreted.
        new_metrics: Makes the metrics of a category.
        records: Collects the records of the images by dataset and category, if given.
        rule: Rule that sets thresholds from `normal_maps`. See `thresholds_from`.
        normal_maps: Folder of maps of other, normal images.
        types: Collects the defect types, if given. See `defect_types`.

    Raises:
        UserError: There are too few normal maps for the rule.
        DatasetError: A file cannot be read, maps and masks do not match, or there is no map.
    """
    notes, rows, pairs = Notes(), [], {}
    categories = find_categories(maps, masks, rules.layout)
    any_map = any(_is_map(path) for folder in walk_folders(maps) for path in folder.iterdir())
    if any_map and not masks.is_dir():
        raise DatasetError(f"{masks} is not a folder.")
    for category in categories:
        said = len(notes.lines)
        _note_left_out(category, notes)
        try:
            pairs[category] = pair_maps(category.maps, category.masks, rules.unmasked_are_normal)
        except DatasetError as error:
            raise DatasetError(" ".join([str(error), *notes.lines[said:]])) from error
    with_maps = [category for category in categories if pairs[category]]
    if not with_maps:
        raise DatasetError(f"{maps} has no map: no {', '.join(sorted(MAP_SUFFIXES))} file.{_and(notes)}")
    if rules.layout == "auto" and len(categories) > 1:
        _check_pure([(category.name, pairs[category]) for category in with_maps])
        if not any(mask is None for category in with_maps for mask in pairs[category].values()):
            notes.lines.append(
                "No category has a map of a normal image. If the folders are kinds of defects of one category, add "
                "--layout category."
            )
    empty = [category.name for category in categories if not pairs[category]]
    if empty:
        notes.lines.append(f"{counted(len(empty), 'folder')} below --maps without a map: {_some(empty)}.")
    if categories[0].name != ALONE or categories[0].maps != maps:
        known = {category.name for category in categories}
        unscored = [f.name for f in list_folders(masks) if f.name not in known and _masks_of(f)]
        if unscored:
            notes.lines.append(
                f"{counted(len(unscored), 'category', 'categories')} with masks and without maps: {_some(unscored)}. "
                "The mean excludes them."
            )
    names = [category.name for category in with_maps]
    regions = regions_of(rules.roi, names) if rules.roi else {}
    for category in with_maps:
        roi = regions.get(category.name)
        if roi and category.saturations:
            raise DatasetError(f"{category.masks}: sPRO needs whole defects. Leave out --roi.")
        metrics, dataset = new_metrics(), maps.resolve().name or "maps"
        of_category = None if records is None else records.setdefault((dataset, category.name), [])
        saturated = new_metrics() if category.saturations else None
        mostly, remarks = evaluate(
            *(pairs[category], category.maps, metrics, rules.empty_masks, rules.mask_threshold, of_category),
            *(category.saturations, saturated, roi),
        )
        if types is not None and not (found := defect_types(pairs[category], category.maps)):
            notes.lines.append(f"{category.name}: no rows by defect type, its anomalous maps do not lie in folders.")
        elif types is not None:
            types |= found
        notes.lines += [f"{category.name}: {sentence}" for sentence in say(remarks, "mask")]
        if mostly:
            notes.lines.append(say_mostly(category.name, len(mostly), mostly[0]))
        result = metrics.result()
        fixed = thresholds_from(normal_maps, category.name, rule, roi) if rule and normal_maps else {}
        points = operating_points(metrics, result, fixed, rule.text if rule else "")
        result = spro_result(result, saturated) if saturated else result
        rows.append(replace(result.row(dataset, category.name), operating_points=points))
    return rows, notes


def _check_pure(found: Sequence[tuple[str, dict[Path, Path | None]]]) -> None:
    """Raises if every folder holds either normal images only or anomalous images only.

    Raises:
        DatasetError: The folders look like the kinds of defects of one category.
    """
    normal = [name for name, pairs in found if not any(pairs.values())]
    anomalous = [name for name, pairs in found if all(pairs.values())]
    if normal and anomalous and len(normal) + len(anomalous) == len(found):
        raise DatasetError(
            f"{normal[0]} holds maps of normal images only and {anomalous[0]} of anomalous ones only, so they look "
            "like one category and not like two. Say which it is: --layout category (all is one) or --layout "
            "categories (each folder is one)."
        )


def _note_left_out(category: Category, notes: Notes) -> None:
    """Notes the files of a category that look like maps or masks and are not read."""
    maps, masks = category.maps, category.masks
    inner = _inner(maps, "test")
    left_out: list[tuple[str, Path]] = []
    for folder in walk_folders(maps):
        inside = folder == inner or inner in folder.parents
        stems = {path.stem for path in folder.iterdir() if _is_map(path)} if inside else set()
        for path in _files(folder):
            suffix = path.suffix.lower()
            lost = suffix in OTHER_SUFFIXES and path.stem not in stems  # otherwise it is a picture of the map beside it
            if lost or (_is_map(path) and not inside):
                left_out.append((suffix if inside else f"outside {inner.name}", path))
    _note(maps, left_out, f"Save maps as {', '.join(sorted(MAP_SUFFIXES))}.", notes)
    left_out = []
    for folder in walk_folders(_inner(masks, "ground_truth")):
        if folder == maps or maps in folder.parents:
            continue  # masks may lie above their maps
        readable = {path.stem for path in list_images(folder)}
        unread = {*other_files(folder), *(path for path in _files(folder) if path.suffix.lower() in NO_MASKS)}
        left_out += [(path.suffix.lower(), path) for path in sorted(unread) if path.stem not in readable]
    _note(masks, left_out, "Save masks as .png or .tiff.", notes)


def _note(where: Path, left_out: Sequence[tuple[str, Path]], advice: str, notes: Notes) -> None:
    if left_out:
        kinds = sorted(Counter(kind for kind, _ in left_out).items())
        notes.left_out += len(left_out)
        notes.lines.append(
            f"{counted(len(left_out), 'file')} left out of {where}: "
            f"{', '.join(f'{count} {kind}' for kind, count in kinds)}; the first is {left_out[0][1]}. {advice}"
        )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _masks_of(folder: Path) -> bool:
    return any(list_images(inner) for inner in walk_folders(_inner(folder, "ground_truth")))


def _and(notes: Notes) -> str:
    return "".join(f" {line}" for line in notes.lines)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def _inner(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_dir() else folder


def _is_map(path: Path) -> bool:
    """Returns whether a path has the name of a map. Raises if it is not a file, for example a broken link."""
    return path.suffix.lower() in MAP_SUFFIXES and not path.is_dir() and not path.name.startswith(".")
