"""The appearance of a dataset's images: the value of white, and the regions that are inspected."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from afclip_lightning.data.loading_options import Loading
from afclip_lightning.data.regions import regions_of
from afclip_lightning.types import Sample, Split
from afclip_runtime.errors import DatasetError
from afclip_runtime.images.white import White, white_value
from afclip_runtime.views.roi import Roi


class Appearance(ABC):
    """White level and regions of interest of a dataset; see `Loading`."""

    name: str
    saturates: bool
    loading: Loading
    _white: tuple[White, int | None] | None = None  # the option and its value
    _regions: tuple[str, dict[str, Roi]] | None = None  # their file or folder, and the regions

    @abstractmethod
    def selected_categories(self) -> list[str]:
        """Returns the categories in use."""

    @abstractmethod
    def find_samples(self, category: str, split: Split) -> list[Sample]:
        """Returns the samples of one category and split, sorted by path."""

    def white(self) -> int | None:
        """Returns the value that becomes 255 in images of more than 8 bits. It is one per dataset; see `Loading`."""
        level = self.loading.white_of(self.name)
        if self._white is None or self._white[0] != level:
            images: list[Path] = []
            for category in self.selected_categories() if level == "auto" else ():
                images += [s.image_path for s in self.find_samples(category, "train")]
                images += [s.image_path for s in self.find_samples(category, "test")]
            self._white = (level, white_value(level, images))
        return self._white[1]

    @property
    def white_used(self) -> int | None:
        """Returns the value of `white` so far, for the run folder; `None` if it follows from the files' bit depth."""
        return self._white[1] if self._white else None

    def regions(self) -> Mapping[str, Roi]:
        """Returns the regions of interest by category; see `Loading`.

        Raises:
            DatasetError: A file is not a region of interest, or the dataset has sPRO, which needs whole defects.
        """
        place = self.loading.roi_of(self.name)
        if place is None:
            return {}
        if self.saturates:
            raise DatasetError(f"{place}: {self.name} has sPRO, which scores whole defects. Leave out --loading.roi.")
        if self._regions is None or self._regions[0] != place:
            self._regions = place, regions_of(Path(place).expanduser(), self.selected_categories())
        return self._regions[1]

    def as_read(self, samples: Sequence[Sample]) -> list[Sample]:
        """Returns samples with the white level of the dataset and the regions of interest of their categories."""
        white, regions = self.white(), self.regions()
        if not white and not regions:
            return list(samples)
        return [replace(sample, white=white, roi=regions.get(sample.category)) for sample in samples]
