"""Memory bank: the features of a few normal images, and the distance to the nearest of them."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.data.base import AnomalyData
from afclip_lightning.data.dataset import AnomalyDataset
from afclip_lightning.types import Sample
from afclip_runtime.errors import CheckpointError, DatasetError
from afclip_runtime.types import Tiling

Key = tuple[str, str]  # dataset, category
KEPT: Key = ("", "")  # key of the bank that came with a head: every category is compared with it
VIEWS_AT_ONCE = 8
ROWS_AT_ONCE = 1024  # rows of a bank that are compared at once with the whole bank
ROWS_ENOUGH = 4096  # evenly spaced rows of a bank, enough to estimate the distances between its rows


class MemoryBank:
    """Normal patch features per category, one bank per feature set (a layer at a scale, a window size).

    A bank is fitted on few-shot images when its category is first tested, and reset when it is no longer needed. A bank
    that is stored in a head stays. It serves every category without a bank of its own.

    Args:
        most: Maximum number of rows per bank. With more, this number is sampled with a fixed seed. `None` keeps all.

    Attributes:
        banks: The features of a category: `[S * N, C]`, L2-normalised, one per set.
        owners: Index of the few-shot image of each row of a bank, `[S * N]`, one tensor per set.
        values: Further values per patch of the few-shot images of a category, `[S * N]` each.
        value_spreads: Mean and standard deviation of each of the values, `[V, 2]`.
        spreads: Results of `spread` per category.
        few_shot: The few-shot images of a category.
        tiling: Tiling of the few-shot images, which is also that of the tested images. `None` without tiles.

    Reference: AF-CLIP, Eq. (16) and (17); WinCLIP, Eq. (4).
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.banks: dict[Key, list[Tensor]] = {}
        self.owners: dict[Key, list[Tensor]] = {}
        self.values: dict[Key, list[Tensor]] = {}
        self.value_spreads: dict[Key, Tensor] = {}
        self.spreads: dict[Key, Tensor] = {}
        self.few_shot: dict[Key, list[Sample]] = {}
        self.tiling: Tiling | None = None

    def select(self, data: AnomalyData, k_shot: int, seed: int) -> None:
        """Selects the few-shot images of every tested category.

        Args:
            data: Datasets that are tested.
            k_shot: Images per category. With 0, or with a bank that is stored in the head, none is selected.
            seed: Seed of the random selection.

        Raises:
            DatasetError: A category has fewer normal training images than `k_shot`.
        """
        if k_shot and not self.is_kept:
            self.few_shot = data.few_shot(k_shot, seed)

    def fit_missing(
        self, keys: Sequence[Key], preprocess: Preprocess, fit_memory: Callable[[Key, Tensor], None]
    ) -> None:
        """Fits the missing banks of these categories on their few-shot images, and resets those of other categories.

        Args:
            keys: Categories that are needed now.
            preprocess: Preprocessing of the backbone.
            fit_memory: Function that fits the bank of a category on its images, `[S, 3, H, W]`, on the CPU.

        Raises:
            DatasetError: A category has neither a bank nor few-shot images.
        """
        missing = set() if self.is_kept else set(keys) - self.banks.keys()
        if missing:  # drops the other banks: each takes megabytes, and test images come by category
            self.reset(self.few_shot.keys() - set(keys))
        for key in missing:
            if key not in self.few_shot:
                raise DatasetError(f"k_shot is set, but there are no normal images for {'/'.join(key)}.")
            dataset = AnomalyDataset(self.few_shot[key], preprocess, tiling=self.tiling)
            if self.tiling is None:
                fit_memory(key, torch.stack([dataset[i][0] for i in range(len(dataset))]))
            else:
                self.fit_parts(key, map(_views(dataset), range(len(dataset))), fit_memory)

    def fit_parts(
        self, key: Key, images: Iterable[Iterable[Tensor]], fit_memory: Callable[[Key, Tensor], None]
    ) -> None:
        """Fits the bank of a category on an iterator over images.

        Each image is an iterator over its views, `[V, 3, H, W]`.
        """
        banks, owners, values = [], [], []
        for number, parts in enumerate(images):
            for part in parts:
                fit_memory(key, part)
                banks.append(self.banks[key])
                owners.append([torch.full_like(rows, number) for rows in self.owners[key]])
                values.append(self.values[key])
        self._set(key, _joined(banks), _joined(owners), _joined(values))

    def fit(
        self, key: Key, feature_sets: Iterable[Tensor], values: Iterable[Tensor] = (), kept: Tensor | None = None
    ) -> None:
        """Fits the bank of a category on tokens `[S, 1 + N, C]` of S normal images, one tensor per set.

        Class tokens are left out.

        Args:
            key: The category.
            feature_sets: The tokens.
            values: Further values per patch, `[S, N]` each, for `spread`.
            kept: Patches that go into the bank, `[S, N]`, bool. `None` takes all.
        """
        patches = [_patches(tokens) for tokens in feature_sets]  # [S, N, C] each
        owners = [torch.arange(len(one), device=one.device).repeat_interleave(one.shape[1]) for one in patches]
        rows = slice(None) if kept is None else kept.flatten()
        banks = [one.flatten(0, 1)[rows] for one in patches]
        self._set(key, banks, [owner[rows] for owner in owners], [one.flatten() for one in values])

    def _set(self, key: Key, banks: list[Tensor], owners: list[Tensor], values: list[Tensor]) -> None:
        for index, bank in enumerate(banks):
            if self.most is not None and len(bank) > self.most:
                generator = torch.Generator().manual_seed(0)  # sets of equal size lose the same rows
                rows = torch.randperm(len(bank), generator=generator)[: self.most].sort().values.to(bank.device)
                banks[index], owners[index] = bank[rows], owners[index][rows]
        self.banks[key], self.owners[key], self.values[key] = banks, owners, values
        self.value_spreads[key] = torch.stack([_usual(one) for one in values]) if values else torch.empty(0, 2)
        self.spreads.pop(key, None)

    def without(self, key: Key, images: Collection[int]) -> "MemoryBank":
        """Returns a memory with the bank of one category, without some of its few-shot images.

        Args:
            key: The category.
            images: Indices of the images to leave out, in the order in which they were fitted.

        Raises:
            ValueError: No image would be left.
        """
        found = self._found(key)
        rest = MemoryBank(self.most)
        banks, owners = [], []
        for bank, owner in zip(self.banks[found], self.owners[found], strict=True):
            stays = ~torch.isin(owner, torch.tensor(sorted(images), device=owner.device))
            banks.append(bank[stays])
            owners.append(owner[stays])
        if not all(map(len, banks)):
            raise ValueError("no few-shot image is left in the memory")
        rest._set(KEPT, banks, owners, [])
        rest.value_spreads[KEPT] = self.value_spreads[found]
        return rest

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Replaces all banks by the bank that is stored in a head.

        Args:
            tensors: Result of `to_tensors`.

        Raises:
            CheckpointError: The tensors are not those of a memory bank of this method.
        """
        given = {name: tensor.float() for name, tensor in tensors.items()}
        sets = sum(name.startswith("bank.") for name in given)
        none = torch.empty(0)
        banks, owners = ([given.pop(f"{what}.{i}", none) for i in range(sets)] for what in ("bank", "owner"))
        spread = given.pop("spread", none)
        fits = spread.ndim == 2 and len(spread) >= sets > 0 and spread.shape[1] == 2
        if given or not fits or not all(map(_is_bank, banks, owners)):
            raise CheckpointError("the memory bank of the head is damaged, or of a later version: adapt again.")
        self.clear()
        self.banks, self.owners = {KEPT: banks}, {KEPT: [owner.long() for owner in owners]}
        self.values, self.value_spreads, self.spreads = {KEPT: []}, {KEPT: spread[sets:]}, {KEPT: spread}

    def to_tensors(self, key: Key) -> dict[str, Tensor]:
        """Returns the bank of a category for a head file, features in half precision."""
        found = self._found(key)
        tensors = {f"bank.{i}": bank.half().cpu() for i, bank in enumerate(self.banks[found])}
        tensors |= {f"owner.{i}": owner.int().cpu() for i, owner in enumerate(self.owners[found])}
        return tensors | {"spread": self.spread(found).cpu()}

    @property
    def is_kept(self) -> bool:
        """Returns whether the bank is one that is stored in a head."""
        return KEPT in self.banks

    def clear(self) -> None:
        """Drops all banks, including one that is stored in a head, and the few-shot images."""
        self.banks, self.owners, self.values, self.value_spreads = {}, {}, {}, {}
        self.spreads, self.few_shot = {}, {}

    def reset(self, keys: Collection[Key] | None = None) -> None:
        """Drops the banks of these categories.

        By default it drops all banks that can be fitted again on few-shot images.

        Features lie on the backbone's device, which may change before the next pass.
        """
        dropped = self.few_shot.keys() if keys is None else keys
        self.banks = {key: bank for key, bank in self.banks.items() if key not in dropped}
        for others in (self.owners, self.values, self.value_spreads, self.spreads):
            for key in others.keys() - self.banks.keys():
                del others[key]

    def distance(self, keys: Sequence[Key], set_index: int, tokens: Tensor, neighbours: int = 1) -> Tensor:
        """Returns half the cosine distance of each patch to the nearest normal one, `[B, N]`, in [0, 1].

        Args:
            keys: Category of each of the B images.
            set_index: Index of the feature set of the tokens.
            tokens: `[B, 1 + N, C]`.
            neighbours: Number of nearest normal patches that the distance is averaged over.

        Raises:
            KeyError: The bank of a category is not fitted.
        """
        queries = _patches(tokens)
        with torch.autocast(tokens.device.type, enabled=False):
            # per image, since the similarities of a whole batch to the bank would be the largest tensor
            nearest = [
                most_alike(q @ self._bank(key, set_index, q.device).T, neighbours)
                for key, q in zip(keys, queries, strict=True)
            ]
        return (1 - torch.stack(nearest)) / 2

    def nearest(self, keys: Sequence[Key], set_index: int, tokens: Tensor) -> Tensor:
        """Returns the nearest normal patch of each patch, `[B, N, C]`, L2-normalised.

        Args:
            keys: Category of each of the B images.
            set_index: Index of the feature set of the tokens.
            tokens: `[B, 1 + N, C]`.

        Raises:
            KeyError: The bank of a category is not fitted.
        """
        queries, found = _patches(tokens), []
        with torch.autocast(tokens.device.type, enabled=False):
            for key, query in zip(keys, queries, strict=True):  # per image, as above
                bank = self._bank(key, set_index, query.device)
                found.append(bank[(query @ bank.T).argmax(dim=1)])
        return torch.stack(found)

    def mean_distance(self, keys: Sequence[Key], feature_sets: Iterable[Tensor]) -> Tensor:
        """Returns the mean of `distance` over the feature sets, `[B, N]`, in [0, 1].

        Args:
            keys: Category of each of the B images.
            feature_sets: Tokens `[B, 1 + N, C]`, one tensor per set, in the order in which the banks were fitted.

        Raises:
            KeyError: The bank of a category is not fitted.
        """
        distances = [self.distance(keys, index, tokens) for index, tokens in enumerate(feature_sets)]
        return torch.stack(distances).mean(dim=0)

    def left_out(self, key: Key, set_index: int) -> Tensor:
        """Returns half the cosine distance of rows of a bank to the nearest row of another image, `[R]`.

        It estimates the distance of normal patches to a memory that does not hold their image. With a single image,
        rows are compared with the other rows of the same image. Of a large bank only every n-th row is compared.

        Raises:
            KeyError: The bank of a category is not fitted.
        """
        bank, owner = self.banks[self._found(key)][set_index], self.owners[self._found(key)][set_index]
        if (owner == owner[0]).all():
            owner = torch.arange(len(owner), device=owner.device)
        nearest, step = [], -(-len(bank) // ROWS_ENOUGH)
        with torch.autocast(bank.device.type, enabled=False):
            for rows, own in zip(bank[::step].split(ROWS_AT_ONCE), owner[::step].split(ROWS_AT_ONCE), strict=True):
                similarity = (rows @ bank.T).masked_fill_(own[:, None] == owner, -1)
                nearest.append(similarity.amax(dim=1))
        return (1 - torch.cat(nearest)) / 2

    def spread(self, key: Key) -> Tensor:
        """Returns mean and standard deviation of `left_out` per set, then of each of the values, `[sets, 2]`, float32.

        They are computed once per bank.

        Raises:
            KeyError: The bank of a category is not fitted.
        """
        found = self._found(key)
        if found not in self.spreads:
            distances = [self.left_out(found, index) for index in range(len(self.banks[found]))]
            usual = torch.stack([_usual(one) for one in distances])
            self.spreads[found] = torch.cat([usual, self.value_spreads[found].to(usual.device)])
        return self.spreads[found]

    def _found(self, key: Key) -> Key:
        return KEPT if key not in self.banks and self.is_kept else key

    def _bank(self, key: Key, set_index: int, device: torch.device) -> Tensor:
        """Returns the bank of a category on a device and keeps it there."""
        banks = self.banks[self._found(key)]
        banks[set_index] = banks[set_index].to(device)
        return banks[set_index]


def most_alike(similarity: Tensor, count: int) -> Tensor:
    """Returns the mean of the largest similarities per patch, `[..., R]` to `[...]`.

    Of fewer than asked for, it takes all.
    """
    if count == 1:
        return similarity.amax(dim=-1)
    return similarity.topk(min(count, similarity.shape[-1]), dim=-1).values.mean(dim=-1)


def _views(dataset: AnomalyDataset) -> Callable[[int], Iterator[Tensor]]:
    """Returns an iterator over the tiles of an image, a few tiles at a time."""

    def views_of(index: int) -> Iterator[Tensor]:
        views = dataset.read(index, pixels=True).views
        assert views is not None
        for some in views.split(VIEWS_AT_ONCE):
            yield dataset.preprocess.to_tensors(list(some.numpy()))

    return views_of


def _usual(values: Tensor) -> Tensor:
    return torch.stack([values.mean(), values.std()]).float()


def _joined(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.cat(list(sets)) for sets in zip(*parts, strict=True)]


def _is_bank(bank: Tensor, owner: Tensor) -> bool:
    return bank.ndim == 2 and owner.shape == bank.shape[:1] and len(bank) > 1


def _patches(tokens: Tensor) -> Tensor:
    return F.normalize(tokens[:, 1:].float(), dim=-1)
