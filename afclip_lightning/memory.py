"""Few-shot memory: the features of a few normal images, and the distance to the nearest of them."""

from collections.abc import Collection, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Key = tuple[str, str]  # dataset, category


class FewShotMemory:
    """Normal patch features by category, one bank a feature set (a layer at a scale).

    Reference: AF-CLIP, Eq. (16) and (17).
    """

    def __init__(self) -> None:
        self.banks: dict[Key, list[Tensor]] = {}

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
