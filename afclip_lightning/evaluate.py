"""`python -m afclip_lightning evaluate`: scores saved anomaly maps of any method against masks."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from afclip_lightning import results
from afclip_lightning.data.images import list_folders, list_images, pair_masks, read_mask
from afclip_lightning.data.maps import MAP_SUFFIXES, read_map
from afclip_lightning.errors import DatasetError, UserError
from afclip_lightning.files import write_json, write_text
from afclip_lightning.metrics import TOLERANCE, PixelMetrics
from afclip_lightning.metrics.pro import DEFINITIONS

NORMAL_FOLDER = "good"

DESCRIPTION = """\
Scores saved anomaly maps (.npy, .tiff, .png; higher = more anomalous) against masks (any value above 0 is anomalous) of
the same size, and prints a table. The score of an image is the maximum of its map.

A map and its mask have the same name, or the mask's ends in _mask, in equal folders below DIR. Each folder directly
below --maps is a category, unless maps lie beside it; the folders test and ground_truth of MVTec's layout are stepped
into. A map without a mask is of a normal image if it lies in a folder named good.
"""


def find_categories(maps: Path) -> dict[str, Path]:
    """Returns the folder of each category: those directly in `maps`, or `maps` itself as `all`.

    Raises:
        DatasetError: There is no such folder.
    """
    if not maps.is_dir():
        raise DatasetError(f"{maps} is not a folder.")
    if (maps / "test").is_dir() or any(p.suffix.lower() in MAP_SUFFIXES for p in maps.iterdir() if p.is_file()):
        return {"all": maps}
    return {folder.name: folder for folder in list_folders(maps)}


def pair_maps(maps: Path, masks: Path, unmasked_are_normal: bool) -> dict[Path, Path | None]:
    """Returns the mask of every map of one category, sorted by path; `None` where the image is normal.

    Args:
        maps: Folder of the category's maps.
        masks: Folder of its masks.
        unmasked_are_normal: Take every map without a mask for that of a normal image, wherever it lies.

    Raises:
        DatasetError: A map that is not known to be of a normal image has no mask, a mask no map, or two share a name.
    """
    maps, masks = _inner(maps, "test"), _inner(masks, "ground_truth")
    map_files = [path for folder in _folders(maps) for path in sorted(folder.iterdir()) if _is_map(path)]
    mask_files = [path for folder in _folders(masks) for path in list_images(folder)]
    named = {(p.parent.relative_to(masks), stem) for p in mask_files for stem in (p.stem, p.stem.removesuffix("_mask"))}
    with_mask = [path for path in map_files if (path.parent.relative_to(maps), path.stem) in named]
    for path in map_files:
        if path not in with_mask and not unmasked_are_normal and path.parent.name != NORMAL_FOLDER:
            raise DatasetError(
                f"{path}: no mask of this name in {masks / path.parent.relative_to(maps)}. Restore it, or, if maps "
                "without a mask are of normal images, add --unmasked_are_normal."
            )
    paired = pair_masks(with_mask, mask_files, roots=(maps, masks))
    return {path: paired.get(path) for path in map_files}


def evaluate(pairs: dict[Path, Path | None], metrics: PixelMetrics) -> None:
    """Feeds maps and masks to the metrics, one at a time.

    Raises:
        DatasetError: A file cannot be read, a map and its mask differ in size, a map is not finite, or an image in a
            folder of normal ones has anomalous pixels; the message names the file.
    """
    for path, mask_path in pairs.items():
        anomaly_map = read_map(path)
        mask = np.zeros(anomaly_map.shape, np.uint8) if mask_path is None else read_mask(mask_path)
        if mask.shape != anomaly_map.shape:
            raise DatasetError(
                f"{path}: the map is {anomaly_map.shape[1]}×{anomaly_map.shape[0]} pixels and its mask {mask_path} is "
                f"{mask.shape[1]}×{mask.shape[0]}. Save both at one size."
            )
        label = path.parent.name != NORMAL_FOLDER and mask.any()
        scores = anomaly_map.astype(np.float32)
        try:
            metrics.update(scores[None], mask[None], scores.max(keepdims=True)[0], np.array([label]), names=[str(path)])
        except ValueError as error:
            raise DatasetError(str(error)) from error


def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 2 a mistake that the message explains."""
    options = _parser().parse_args(args)
    try:
        rows = []
        for category, folder in find_categories(options.maps).items():
            masks = options.masks if category == "all" else options.masks / category
            metrics = PixelMetrics(
                exact=options.exact,
                fpr_limit=options.fpr_limit,
                pro_definition=options.pro_definition,
                tolerance=options.tolerance,
            )
            evaluate(pair_maps(folder, masks, options.unmasked_are_normal), metrics)
            rows.append(results.Row.of(options.maps.name, category, metrics.result()))
        if not sum(row.normal + row.anomalous for row in rows):
            raise DatasetError(f"{options.maps} has no map: no {', '.join(sorted(MAP_SUFFIXES))} file.")
        rows = results.with_means(rows)
        print(results.render(rows, options.tolerance))
        if options.csv:
            write_text(options.csv, results.to_csv(rows))
        if options.json:
            write_json(options.json, results.to_json(rows, f"Maps of {options.maps} against {options.masks}"))
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m afclip_lightning evaluate",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--maps", type=Path, required=True, metavar="DIR", help="folder of the maps")
    parser.add_argument("--masks", type=Path, required=True, metavar="DIR", help="folder of the masks")
    parser.add_argument("--unmasked_are_normal", action="store_true", help="a map without a mask is of a normal image")
    parser.add_argument("--exact", action="store_true", help="sort all pixels instead of counting them in bins")
    parser.add_argument("--fpr_limit", type=float, default=0.3, help="limit of integration of PRO (%(default)s)")
    parser.add_argument(
        "--pro_definition", choices=DEFINITIONS, default="exact", help="which PRO (%(default)s); others need --exact"
    )
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="error of binning that is not worth a word (%(default)s)"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table there too, as CSV")
    parser.add_argument("--json", type=Path, metavar="FILE", help="and as JSON, with thresholds and error bounds")
    return parser


def _inner(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_dir() else folder


def _folders(root: Path) -> Iterator[Path]:
    """Yields a folder and all below it but hidden ones; nothing if it does not exist."""
    if root.is_dir():
        yield root
        for folder in list_folders(root):
            yield from _folders(folder)


def _is_map(path: Path) -> bool:
    return path.suffix.lower() in MAP_SUFFIXES and path.is_file() and not path.name.startswith(".")
