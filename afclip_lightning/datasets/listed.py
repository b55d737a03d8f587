"""Datasets whose images are listed in a file."""

import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, NamedTuple

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.defect_types import with_defect_types
from afclip_lightning.data.images import file_inside
from afclip_lightning.data.left_out import NAMED, LeftOut, directly_in, short, unread
from afclip_lightning.data.names import ClassNames, Names, find, normal_form
from afclip_lightning.types import Sample, Split
from afclip_runtime.errors import DatasetError, shown
from afclip_runtime.files import read_text

LISTED_SPLITS: tuple[Split, ...] = ("train", "test")
OTHER_SPLIT = "of a split that is neither train nor test"


class Entry(NamedTuple):
    """One image of a listing.

    Attributes:
        where: Position in the file, for messages.
        category: Category, in Unicode's composed form.
        split: Split.
        image: Path of the image, as the file gives it.
        label: 1 = anomalous, 0 = normal.
        mask: Path of the mask; empty if there is none.
        defect_type: Defect type of an anomalous image; empty if the file does not name it.
        group: Name of its group, such as an object with several views; empty if the file does not name it.
    """

    where: str
    category: str
    split: str
    image: str
    label: int
    mask: str
    defect_type: str = ""
    group: str = ""


class ListedData(AnomalyDataModule):
    """The user's own dataset, whose images are listed in a file.

    Args:
        root: Folder to which the paths in the file are relative.
        file: The file, as a path relative to `root`, or an absolute path.
        name: Name of the dataset in metric keys and tables; the name of `root` by default.
        categories: Categories to use; by default all categories in the file.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Number of loader processes; 0 loads in the main process.
        class_names: Names of categories in prompts.

    Attributes:
        kinds: The two suffixes that the file may have.
        entry: Word for the position of an image in the file, for messages.

    Raises:
        ValueError: The file has another suffix, or an argument is out of its range.
    """

    kinds: ClassVar[tuple[str, str]]
    entry: ClassVar[str] = "line"

    def __init__(
        self,
        root: str | Path | None,
        file: str | Path,
        name: str | None,
        categories: Names,
        train_split: Split,
        batch_size: int,
        num_workers: int,
        class_names: ClassNames,
    ) -> None:
        super().__init__(root, categories, train_split, batch_size, num_workers, class_names)
        self.file = find(self.root, Path(file).expanduser())
        if self.file.suffix not in self.kinds:
            raise ValueError(f"{type(self).__name__} reads a {' or a '.join(self.kinds)}, got {file}")
        self.name = name or self.root.resolve().name
        self._read: tuple[tuple[int, int, int], list[Entry]] | None = None
        self._by_part: dict[tuple[str, str], list[Entry]] = {}

    @abstractmethod
    def read_entries(self) -> Iterable[Entry]:
        """Returns every image of the file, in its order.

        Raises:
            DatasetError: The file cannot be read or is malformed.
        """

    def entries(self) -> list[Entry]:
        """Returns every image of the file, in its order. The file is read again if it has changed.

        Raises:
            DatasetError: The file cannot be read, an image is listed twice or with two labels, or a normal image has a
                mask.
        """
        try:
            status = os.stat(self.file)
        except OSError as error:
            reason = error.strerror or error
            raise DatasetError(f"{self.file}: cannot be read ({reason}). Restore the file.") from error
        state = (status.st_mtime_ns, status.st_size, status.st_ino)
        if self._read is None or self._read[0] != state:
            found = list(self.read_entries())
            self._check_entries(found)
            self._read, self._by_part = (state, found), {}
            for entry in found:
                self._by_part.setdefault((entry.category, entry.split), []).append(entry)
        return self._read[1]

    def _check_entries(self, entries: list[Entry]) -> None:
        seen: dict[str, dict[tuple[str, str], Entry]] = {}
        for entry in entries:
            # Two spellings of the same path: ./a.png and a.png, or one name in two Unicode forms.
            path = normal_form(os.path.normpath(self.root / entry.image))
            earlier = seen.setdefault(path, {})
            for other in earlier.values():
                self._refuse_labels(entry, other, Path(path))
            twin = earlier.setdefault((entry.category, entry.split), entry)
            if twin is not entry:
                raise DatasetError(f"{entry.where}: {path} is already in an earlier {self.entry}. Remove one.")
            if entry.mask and not entry.label:
                raise DatasetError(
                    f"{entry.where}: the image is normal, and a mask is named for it: {entry.mask[:80]!r}. A normal "
                    "image has none: leave it out, or give the image the label of an anomalous one."
                )
            if entry.defect_type and not entry.label:
                raise DatasetError(
                    f"{entry.where}: the image is normal, and has a defect type: {entry.defect_type[:80]!r}. Leave the "
                    "type out, or give the image the label of an anomalous one."
                )

        for entry in entries:
            if entry.mask and normal_form(os.path.normpath(self.root / entry.mask)) in seen:
                mask = shown(entry.mask[:80])
                raise DatasetError(f"{entry.where}: {mask!r} is named as a mask, and is listed as an image. Fix one.")

    def _refuse_labels(self, entry: Entry, other: Entry, path: Path) -> None:
        if entry.label != other.label:
            raise DatasetError(
                f"{entry.where}: {path} is already in an earlier {self.entry}, with another label: here {entry.label}, "
                f"there {other.label} ({other.where}). Remove one."
            )

    def with_types(self, samples: Sequence[Sample], images: Mapping[Path, Entry]) -> list[Sample]:
        """Returns the samples of a category with the defect types and groups of their images in the file."""
        grouped = [replace(sample, group=normal_form(images[sample.image_path].group)) for sample in samples]
        return with_defect_types(grouped, {image: entry.defect_type for image, entry in images.items()})

    def images(self, category: str, split: Split) -> dict[Path, Entry]:
        """Returns the images of one category and split, and their positions in the file.

        Raises:
            DatasetError: The file is malformed, an entry names a missing file or a file outside `root`, or a file has
                two labels under two names.
        """
        found: dict[Path, Entry] = {}
        files: dict[tuple[int, int], Entry] = {}
        self.entries()  # reads the file again if it has changed
        for entry in self._by_part.get((category, split), ()):
            image = file_inside(self.root, entry.image, entry.where)
            found[image] = entry
            status = image.stat()
            self._refuse_labels(entry, files.setdefault((status.st_dev, status.st_ino), entry), image)
        return found

    def missing(self) -> list[Path]:
        """Returns the file if it is missing. The files that it names are checked when samples are listed."""
        return [] if self.file.is_file() else [self.file]

    def left_out(self, split: Split) -> list[LeftOut]:
        """Returns the images that have another split than train and test in the file."""
        if split == "train":
            return []
        others = (entry for entry in self.entries() if entry.split not in LISTED_SPLITS)
        return [LeftOut(self.root / entry.image, f"{OTHER_SPLIT} ({entry.split})") for entry in others]

    def notes(self) -> list[str]:
        """Returns a sentence on unlisted images in the folders of listed ones. They may be unlisted on purpose."""
        listed = {self.root / path for entry in self.entries() for path in (entry.image, entry.mask) if path}
        known = {normal_form(os.path.normpath(path)) for path in listed}
        folders = sorted({Path(path).parent for path in known})
        beside = (item.path for folder in folders for item in unread(directly_in(folder), ()))
        others = [path for path in beside if normal_form(os.path.normpath(path)) not in known]
        if not others:
            return []
        names = ", ".join(short(path, self.root) for path in others[:NAMED]) + (" …" if len(others) > NAMED else "")
        return [f"{self.file.name} does not list {len(others)} files that lie beside those it lists: {names}"]


def read_lines(path: Path) -> list[tuple[str, str]]:
    """Returns the lines of a text file that are not blank, each with its position `file, line n` for messages.

    Raises:
        DatasetError: The file cannot be read as text.
    """
    lines = read_text(path, error=DatasetError).split("\n")
    return [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
