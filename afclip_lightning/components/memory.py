"""Memory bank: the features of a few normal images, and the distance to the nearest of them."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.data.base import AnomalyData
from afclip_lightning.data.dataset import AnomalyDataset
from afclip_lightning.errors import DatasetError
from afclip_lightning.types import Sample, Tiling

Key = tuple[str, str]  # dataset, category
VIEWS_AT_ONCE = 8


class MemoryBank:
    """Normal patch features by category, one bank per feature set (a layer at a scale, a size of windows).

    A bank is fitted on few-shot images when its category comes, and reset when it is needed no more.

    Attributes:
        banks: The features of a category: `[S * N, C]`, L2-normalised, one per set.
        few_shot: The few-shot images of a category.
        tiling: How these are seen in tiles, as the tested images then are; `None` where they are not.

    Reference: AF-CLIP, Eq. (16) and (17); WinCLIP, Eq. (4).
    """

    def __init__(self) -> None:
        self.banks: dict[Key, list[Tensor]] = {}
        self.few_shot: dict[Key, list[Sample]] = {}
        self.tiling: Tiling | None = None

    def select(self, data: AnomalyData, k_shot: int, seed: int) -> None:
        """Selects the few-shot images of every tested category.

        Args:
            data: Has them.
            k_shot: Images per category; with 0 none is selected.
            seed: Of the random selection.

        Raises:
            DatasetError: A category has fewer normal training images than `k_shot`.
        """
        if k_shot:
            self.few_shot = data.few_shot(k_shot, seed)

    def fit_missing(
        self, keys: Sequence[Key], preprocess: Preprocess, fit_memory: Callable[[Key, Tensor], None]
    ) -> None:
        """Fits the missing banks of these categories on their few-shot images, and resets those of other categories.

        Args:
            keys: Categories that are needed now.
            preprocess: Of the backbone.
            fit_memory: Fits the bank of a category on its images, `[S, 3, H, W]`, on the CPU.

        Raises:
            DatasetError: A category has neither a bank nor few-shot images.
        """
        missing = set(keys) - self.banks.keys()
        if missing:  # a bank takes megabytes, and test images come category by category
            self.reset(self.few_shot.keys() - set(keys))
        for key in missing:
            if key not in self.few_shot:
                raise DatasetError(f"k_shot is set, but there are no normal images for {'/'.join(key)}.")
            dataset = AnomalyDataset(self.few_shot[key], preprocess, tiling=self.tiling)
            if self.tiling is None:
                fit_memory(key, torch.stack([dataset[i][0] for i in range(len(dataset))]))
            else:
                self.fit_parts(key, _views(dataset), fit_memory)

    def fit_parts(self, key: Key, parts: Iterable[Tensor], fit_memory: Callable[[Key, Tensor], None]) -> None:
        """Fits the bank of a category on images that come a few at a time, `[S, 3, H, W]` each; see `fit_missing`."""
        banks = []
        for image in parts:
            fit_memory(key, image)
            banks.append(self.banks[key])
        self.banks[key] = [torch.cat(sets) for sets in zip(*banks, strict=True)]

    def fit(self, key: Key, feature_sets: Iterable[Tensor]) -> None:
        """Fits the bank of a category on tokens `[S, 1 + N, C]` of S normal images, one tensor per set.

        Class tokens are left out.
        """
        self.banks[key] = [_patches(tokens).flatten(0, 1) for tokens in feature_sets]  # [S * N, C] each

    def reset(self, keys: Collection[Key] | None = None) -> None:
        """Drops the banks of these categories; by default of all that have few-shot images to fit them on again.

        Features lie on the backbone's device, which may be another one in the next pass.
        """
        dropped = self.few_shot.keys() if keys is None else keys
        self.banks = {key: bank for key, bank in self.banks.items() if key not in dropped}

    def distance(self, keys: Sequence[Key], set_index: int, tokens: Tensor) -> Tensor:
        """Returns half the cosine distance of each patch to the nearest normal one, `[B, N]`, in [0, 1].

        Args:
            keys: Category of each of the B images.
            set_index: Which set the tokens belong to.
            tokens: `[B, 1 + N, C]`.

        Raises:
            KeyError: A category whose bank was not fitted.
        """
        queries = _patches(tokens)
        with torch.autocast(tokens.device.type, enabled=False):
            # image by image: the similarities of a whole batch to the bank would be the largest tensor of all
            nearest = [(q @ self.banks[key][set_index].T).amax(dim=1) for key, q in zip(keys, queries, strict=True)]
        return (1 - torch.stack(nearest)) / 2


def _views(dataset: AnomalyDataset) -> Iterator[Tensor]:
    """Yields the tiles of images, a few at a time."""
    for index in range(len(dataset)):
        views = dataset.read(index, pixels=True).views
        assert views is not None
        for some in views.split(VIEWS_AT_ONCE):
            yield dataset.preprocess.to_tensors(list(some.numpy()))


def _patches(tokens: Tensor) -> Tensor:
    return F.normalize(tokens[:, 1:].float(), dim=-1)
