"""Datasets in the listing formats of AnomalyCLIP (meta.json) and AA-CLIP (JSON lines)."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from afclip_lightning.data.images import file_inside
from afclip_lightning.data.names import ClassNames, Names, find, normal_form
from afclip_lightning.datasets.listed import Entry, ListedData
from afclip_lightning.types import Sample, Split
from afclip_runtime.errors import DatasetError
from afclip_runtime.files import read_json, read_json_lines

MASK_SUFFIXES = ("_mask", "_label", "_Segmentation")  # of the datasets for which these files are written


class Listing(ListedData):
    """A dataset whose images are listed in a file, with paths inside `root`.

    A `.json` file has the format of AnomalyCLIP's scripts: `{"train": {category: [...]}, "test": {...}}` with
    `img_path`, `mask_path` and `anomaly` of each image. `Train` and `Test`, which one of the scripts writes, are
    accepted too. A `.jsonl` file has the format of AA-CLIP: one line per image with `image_path`, `label`, `class_name`
    and optionally `mask_path`. A line without `split` belongs to the test split. The defect type of an anomalous image
    is its `specie_name` (AnomalyCLIP's scripts) or its `defect_type`. Images of one `group` are views of one object.

    An anomalous image whose mask path is empty, or a folder, has no mask, and pixel metrics are absent. The scripts
    pair masks with images by their position in sorted folders, so all pairs after a missing file are wrong. Therefore
    an image with the mask of another image is refused if its own mask exists. Absolute paths must be inside `root`.

    Args:
        root: Folder to which the paths are relative.
        file: The listing, as a path relative to `root`, or an absolute path.
        name: Name of the dataset in metric keys and tables; the name of `root` by default.
        categories: Categories to use; by default all categories in the file.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Number of loader processes; 0 loads in the main process.
        class_names: Names of categories in prompts.

    Raises:
        ValueError: The file is neither `.json` nor `.jsonl`, or an argument is out of its range.
    """

    kinds = (".json", ".jsonl")
    entry = "entry"
    source = "Your own file, or one that AnomalyCLIP's or AA-CLIP's scripts wrote beside the set that it lists."
    licence = "that of the set"

    def __init__(
        self,
        root: str | Path | None = None,
        file: str | Path = "meta.json",
        name: str | None = None,
        categories: Names = None,
        train_split: Split = "test",
        batch_size: int = 8,
        num_workers: int = 2,
        class_names: ClassNames = None,
    ) -> None:
        super().__init__(root, file, name, categories, train_split, batch_size, num_workers, class_names)
        self.layout = f"{self.file.name}, and the images and masks that it names"

    def find_categories(self) -> list[str]:
        """Returns the categories in the order of the file; none if the file is missing.

        Raises:
            DatasetError: The file is malformed.
        """
        return list(dict.fromkeys(entry.category for entry in self.entries())) if self.file.is_file() else []

    def check(self, stage: str = "fit") -> None:
        """Checks that the file exists and contains the categories in use, for any stage. Images are not checked.

        Raises:
            DatasetError: The file or a category is missing. The message says how to get it.
        """
        if self.root.is_dir() and not self.file.is_file():
            raise DatasetError(f"Dataset {self.name!r} was not found: there is no file {self.file}.\n{self.source}")
        super().check(stage)

    def find_samples(self, category: str, split: Split) -> list[Sample]:
        """Returns the samples of one category and split, sorted by path.

        Raises:
            DatasetError: The file is malformed, or an entry names a missing file, a file outside `root`, a file of
                another entry, or the mask of another image.
        """
        images = self.images(category, split)
        stems = {image.stem for image in images}
        samples = []
        for image, entry in images.items():
            mask = self._mask(entry, image, images, stems) if entry.label else None
            known = not entry.label or mask is not None
            samples.append(Sample(self.name, category, split, image, entry.label, mask, known))
        return self.with_types(sorted(samples, key=lambda sample: sample.image_path.as_posix()), images)

    def _mask(self, entry: Entry, image: Path, images: Collection[Path], stems: Collection[str]) -> Path | None:
        if not entry.mask or os.path.isdir(find(self.root, entry.mask)):
            return None
        mask = file_inside(self.root, entry.mask, entry.where)
        own = mask.with_name(f"{image.stem}{_mask_suffix(mask, stems)}{mask.suffix}")
        # if masks are in the folder of their images, the file with the image's name is the image
        if own != mask and own not in images and os.path.isfile(own):
            raise DatasetError(
                f"{entry.where}: {image} is given the mask {mask.name}, but {own} is there: images and masks were "
                "paired by position, and a file is missing or too many. Correct the folders and write the file again."
            )
        return mask

    def read_entries(self) -> Iterator[Entry]:
        """Yields every image of the file.

        Raises:
            DatasetError: The file cannot be read, or an entry is malformed.
        """
        return self._from_lines() if self.file.suffix == ".jsonl" else self._from_meta()

    def _from_lines(self) -> Iterator[Entry]:
        for number, item in read_json_lines(self.file, Any, remedy="Correct the line.", error=DatasetError):  # type: ignore[arg-type]
            where = f"{self.file}, line {number}"
            category, image, label, mask = _values(item, where, "class_name", "image_path", "label", "mask_path")
            split: str = _text(item, "split", where) or "test"  # of an object, as `_values` says
            yield Entry(where, normal_form(category), split.lower(), image, label, mask, *_facts(item, label, where))

    def _from_meta(self) -> Iterator[Entry]:
        splits = read_json(self.file, Any, remedy="Write it again.", error=DatasetError)  # type: ignore[arg-type]
        for split, categories in _items(splits, str(self.file)):
            for category, items in _items(categories, f"{self.file}, {split}"):
                for number, item in enumerate(items if isinstance(items, list) else [items], 1):
                    where = f"{self.file}, {split}, {category}, entry {number}"
                    _, image, label, mask = _values(item, where, None, "img_path", "anomaly", "mask_path")
                    facts = _facts(item, label, where)
                    yield Entry(where, normal_form(category), split.lower(), image, label, mask, *facts)


def _mask_suffix(mask: Path, stems: Collection[str]) -> str:
    """Returns the part of a mask's stem after the stem of an image, for the longest image stem that fits."""
    fitting = (end for end in range(len(mask.stem), 0, -1) if mask.stem[:end] in stems)
    known = next((suffix for suffix in MASK_SUFFIXES if mask.stem.endswith(suffix)), "")
    return next((mask.stem[end:] for end in fitting), known)


def _items(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise DatasetError(f"{where}: must be an object with names, got {str(value)[:60]!r}. Write the file again.")
    yield from value.items()


def _values(
    item: Any, where: str, category: str | None, image: str, label: str, mask: str
) -> tuple[str, str, int, str]:
    """Returns category, image, label and mask of an entry under the given keys. A missing mask is empty."""
    wanted = [key for key in (category, image, label) if key]
    absent = [key for key in wanted if not isinstance(item, dict) or key not in item]
    if absent:
        raise DatasetError(f"{where}: has no {', '.join(absent)}. Correct the entry.")
    if isinstance(item[label], bool) or item[label] not in (0, 1):
        raise DatasetError(f"{where}: {label} must be 0 or 1, got {repr(item[label])[:60]}. Correct the entry.")
    texts = [_text(item, key, where) if key else "" for key in (category, image, mask)]
    if empty := [key for key, text in zip((category, image), texts, strict=False) if key and not text]:
        raise DatasetError(f"{where}: {empty[0]} is empty. Correct the entry.")
    return texts[0], texts[1], int(item[label]), texts[2]


def _facts(item: Any, label: int, where: str) -> tuple[str, str]:
    """Returns defect type and group of an entry. The scripts write the type `good` for a normal image."""
    kind = (_text(item, "defect_type", where) or _text(item, "specie_name", where)) if label else ""
    return kind, _text(item, "group", where)


def _text(item: Any, key: str, where: str) -> str:
    """Returns the text under a key; empty if there is none. The name of a class may be a number."""
    value = item.get(key)
    if key == "class_name" and type(value) is int:
        return str(value)
    if value is not None and not isinstance(value, str):
        raise DatasetError(f"{where}: {key} must be text, got {str(value)[:60]!r}. Correct the entry.")
    return value or ""
