"""Sources of a submission's maps: a model, or files of any program."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from afclip_lightning.inspection.predictor import Predictor
from afclip_lightning.inspection.submission.encoding import resized
from afclip_lightning.inspection.submission.layout import MAPS, Item
from afclip_runtime.errors import DatasetError, UserError
from afclip_runtime.files import read_csv
from afclip_runtime.images.maps import MAP_SUFFIXES, read_map
from afclip_runtime.images.reader import read_shape

PREDICTIONS = "predictions*.csv"


@dataclass(frozen=True)
class _Prediction:
    """The columns that are read from `predict`'s table."""

    image: str
    map: str


class MapSource(ABC):
    """A source of anomaly maps."""

    @abstractmethod
    def facts(self, category: str, validation: Sequence[Item]) -> dict[str, Any]:
        """Returns the facts that determine the maps and the threshold of a category, as plain values.

        Args:
            category: The category.
            validation: Validation images of the category.
        """

    def files(self, items: Sequence[Item]) -> dict[str, str]:
        """Returns the identities of the maps' files by key. Maps that are not in files are absent."""
        return {}

    @abstractmethod
    def known(self, items: Sequence[Item]) -> list[Item]:
        """Returns the images for which it has a map."""

    @abstractmethod
    def check(self, items: Sequence[Item]) -> None:
        """Raises if an image has no map, before anything is written.

        Raises:
            UserError: An image has no map.
        """

    @abstractmethod
    def stream(self, items: Sequence[Item]) -> Iterator[tuple[Item, np.ndarray]]:
        """Yields images of one category with their maps `[H, W]`, finite, at most as large as the image.

        Raises:
            UserError: An image has no map, or its map cannot be used.
        """


class ModelMaps(MapSource):
    """Maps of a model, at the size of each image.

    Args:
        load: Returns the model for a category.
        num_workers: Number of processes that decode images.
    """

    def __init__(self, load: Callable[[str], Predictor], num_workers: int) -> None:
        self.load, self.num_workers = load, num_workers
        self._loaded: tuple[str, Predictor] | None = None

    def _model(self, category: str) -> Predictor:
        if self._loaded is None or self._loaded[0] != category:
            self._loaded = category, self.load(category)
        return self._loaded[1]

    def facts(self, category: str, validation: Sequence[Item]) -> dict[str, Any]:
        """Returns the settings that determine the model's scores."""
        model = self._model(category)
        return {"checkpoint": model.checkpoint, **model.settings}

    def known(self, items: Sequence[Item]) -> list[Item]:
        """Returns all images."""
        return list(items)

    def check(self, items: Sequence[Item]) -> None:
        """Does nothing: a model gives a map for any image."""

    def stream(self, items: Sequence[Item]) -> Iterator[tuple[Item, np.ndarray]]:
        """See `MapSource`."""
        if not items:
            return
        model = self._model(items[0].category)
        for index, outcome in model.stream([i.image for i in items], self.num_workers, keep_images=False):
            if isinstance(outcome, UserError):
                raise outcome
            yield items[index], outcome.anomaly_map


class FileMaps(MapSource):
    """Maps in folders, as `<category>/<part>/<name>` with the suffix of a map, or in run folders of `predict`.

    Args:
        folders: The folders.

    Raises:
        UserError: A folder does not exist, or holds no map.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(folders)
        self._predicted: dict[Path, Path] = {}
        for folder in self.folders:
            if not folder.is_dir():
                raise UserError(f"{folder} is not a folder. Name a folder of maps, or the run folder of predict.")
            for table in sorted(folder.glob(PREDICTIONS)):
                self._predicted.update(_predicted(table))

    def facts(self, category: str, validation: Sequence[Item]) -> dict[str, Any]:
        """Returns the folders, and a digest of the identities of the validation images' files."""
        known_by = sha256(repr(sorted(self.files(validation).items())).encode()).hexdigest()[:16]
        return {"maps": [str(folder.resolve()) for folder in self.folders], "validation maps": known_by}

    def files(self, items: Sequence[Item]) -> dict[str, str]:
        """Returns size and time of each file by key, which tell it from a later file of the same name."""
        found = ((item.key, self._file(item)) for item in items)
        stats = ((key, path.stat()) for key, path in found if path is not None)
        return {key: f"{facts.st_size} {facts.st_mtime_ns}" for key, facts in stats}

    def known(self, items: Sequence[Item]) -> list[Item]:
        """Returns the images that have a map."""
        return [item for item in items if self._file(item)]

    def stream(self, items: Sequence[Item]) -> Iterator[tuple[Item, np.ndarray]]:
        """See `MapSource`."""
        for item in items:
            if (predicted := self._predicted.get(item.image.resolve())) is not None:
                yield item, _at_most(read_map(predicted), item)
            elif (path := self._path(item)) is not None:
                yield item, _checked(path, read_map(path), item)

    def check(self, items: Sequence[Item]) -> None:
        """See `MapSource`."""
        if lost := [item for item in items if not self.known([item])]:
            raise DatasetError(
                f"{len(lost)} of {len(items)} images have no map in {', '.join(map(str, self.folders))}. The first: "
                f"{lost[0].key} with {', '.join(sorted(MAP_SUFFIXES))}. Name the folder of the categories."
            )

    def _file(self, item: Item) -> Path | None:
        """Returns the file of a map, of `predict` or of another program."""
        return self._predicted.get(item.image.resolve()) or self._path(item)

    def _path(self, item: Item) -> Path | None:
        for folder in self.folders:
            for base in (folder, folder / MAPS):
                for suffix in sorted(MAP_SUFFIXES):
                    if (path := base / f"{item.key}{suffix}").is_file():
                        return path
        return None


def _predicted(table: Path) -> Iterator[tuple[Path, Path]]:
    """Yields image and map of each line of a table that `predict` wrote."""
    for row in read_csv(table, _Prediction, remedy="Name the run folder of predict.", error=DatasetError):
        yield Path(row.image).resolve(), table.parent / row.map


def _at_most(anomaly_map: np.ndarray, item: Item) -> np.ndarray:
    """Returns a map of `predict` at most as large as its image. `predict` writes maps at the backbone's input size."""
    (height, width), _ = read_shape(item.image)
    return resized(anomaly_map, min(height, anomaly_map.shape[0]), min(width, anomaly_map.shape[1]))


def _checked(path: Path, anomaly_map: np.ndarray, item: Item) -> np.ndarray:
    """Returns a map after a check of its values and size.

    Raises:
        DatasetError: The map holds NaN or infinity, or is larger than its image.
    """
    if not np.isfinite(anomaly_map).all():
        raise DatasetError(f"{path}: the map holds NaN or infinity. Fix the program that wrote it.")
    image, shape = read_shape(item.image)[0], anomaly_map.shape
    if shape[0] > image[0] or shape[1] > image[1]:
        raise DatasetError(
            f"{path}: the map is {shape[1]}×{shape[0]} pixels and its image {item.image} is {image[1]}×{image[0]}. "
            "A map may be smaller (it is upsampled), but not larger. Save it at the size of the image."
        )
    return anomaly_map
