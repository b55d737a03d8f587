"""Few-shot memory: the features of a few normal images, and the distance to the nearest of them."""

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.data.loading import AnomalyDataset
from afclip_lightning.data.tiles import Tiling
from afclip_lightning.errors import DatasetError
from afclip_lightning.types import Sample

Key = tuple[str, str]  # dataset, category
VIEWS_AT_ONCE = 8


class FewShotMemory:
    """Normal patch features by category, one bank a feature set (a layer at a scale, a size of windows).

    Attributes:
        banks: What is remembered of a category: `[S * N, C]`, L2-normalised, one a set.
        references: The normal images that were drawn for a category.
        tiling: How these are seen in tiles, as the tested images then are; `None` where they are not.

    Reference: AF-CLIP, Eq. (16) and (17); WinCLIP, Eq. (4).
    """

    def __init__(self) -> None:
        self.banks: dict[Key, list[Tensor]] = {}
        self.references: dict[Key, list[Sample]] = {}
        self.tiling: Tiling | None = None

    def draw(self, trainer: Trainer, k_shot: int, seed: int) -> None:
        """Draws the normal images of every tested category; of loaders without a data module nothing is drawn.

        For a method's `setup`: before any training, so that too few of them stop the run at once.

        Args:
            trainer: Knows the data module.
            k_shot: Images a category; with 0 nothing is drawn.
            seed: Seed of the draw.

        Raises:
            DatasetError: A category has fewer normal training images than `k_shot`.
        """
        datamodule = getattr(trainer, "datamodule", None)
        if k_shot and datamodule is not None:
            self.references = datamodule.few_shot(k_shot, seed)

    def recall(self, keys: Sequence[Key], preprocess: Preprocess, remember: Callable[[Key, Tensor], None]) -> None:
        """Fills the banks of these categories from the drawn images, and drops those drawn for others.

        Args:
            keys: Categories that are needed now.
            preprocess: Of the backbone.
            remember: Fills the bank of a category from its images, `[S, 3, H, W]`, on the CPU.

        Raises:
            DatasetError: A category that no normal images were drawn or remembered for.
        """
        missing = set(keys) - self.banks.keys()
        if missing:  # a bank takes megabytes, and test images come category by category
            self.forget(self.references.keys() - set(keys))
        for key in missing:
            if key not in self.references:
                raise DatasetError(f"k_shot is set, but there are no normal images for {'/'.join(key)}.")
            dataset = AnomalyDataset(self.references[key], preprocess, tiling=self.tiling)
            if self.tiling is None:
                remember(key, torch.stack([dataset[i][0] for i in range(len(dataset))]))
            else:
                self._recall_views(key, dataset, remember)

    def _recall_views(self, key: Key, dataset: AnomalyDataset, remember: Callable[[Key, Tensor], None]) -> None:
        """Fills a bank from images in tiles, a few views at a time."""
        parts = []
        for index in range(len(dataset)):
            views = dataset.read(index, pixels=True).views
            assert views is not None
            for some in views.split(VIEWS_AT_ONCE):
                remember(key, dataset.preprocess.to_tensors(list(some.numpy())))
                parts.append(self.banks[key])
        self.banks[key] = [torch.cat(sets) for sets in zip(*parts, strict=True)]

    def forget_drawn(self) -> None:
        """Drops the banks of what was drawn: the backbone may move to another device between two passes."""
        self.forget(self.references.keys())

    def remember(self, key: Key, feature_sets: Iterable[Tensor]) -> None:
        """Stores the tokens `[S, 1 + N, C]` of S normal images, one tensor a set; class tokens are left out."""
        self.banks[key] = [_patches(tokens).flatten(0, 1) for tokens in feature_sets]  # [S * N, C] each

    def forget(self, keys: Collection[Key]) -> None:
        """Drops the banks of these categories."""
        self.banks = {key: bank for key, bank in self.banks.items() if key not in keys}

    def distance(self, keys: Sequence[Key], set_index: int, tokens: Tensor) -> Tensor:
        """Returns half the cosine distance of each patch to the nearest normal one, `[B, N]`, in [0, 1].

        Args:
            keys: Category of each of the B images.
            set_index: Which set the tokens belong to.
            tokens: `[B, 1 + N, C]`.

        Raises:
            KeyError: A category that nothing was remembered of.
        """
        queries = _patches(tokens)
        with torch.autocast(tokens.device.type, enabled=False):
            # image by image: the similarities of a whole batch to the bank would be the largest tensor of all
            nearest = [(q @ self.banks[key][set_index].T).amax(dim=1) for key, q in zip(keys, queries, strict=True)]
        return (1 - torch.stack(nearest)) / 2


def _patches(tokens: Tensor) -> Tensor:
    return F.normalize(tokens[:, 1:].float(), dim=-1)
