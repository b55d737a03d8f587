"""The subspace of the patches of normal images, and the distance of other patches to it."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from afclip_lightning.components.memory import Key, MemoryBank
from afclip_runtime.errors import UserError


@dataclass(frozen=True)
class Moments:
    """Moments of vectors `[R, C]`: their number, mean `[C]` and scatter matrix about the mean `[C, C]`, float64."""

    count: int
    mean: Tensor
    scatter: Tensor

    @staticmethod
    def of(vectors: Tensor) -> "Moments":
        """Returns the moments of vectors `[R, C]`."""
        vectors = vectors.double()
        mean = vectors.mean(dim=0)
        centred = vectors - mean
        return Moments(len(vectors), mean, centred.T @ centred)

    def __add__(self, other: "Moments") -> "Moments":
        count, apart = self.count + other.count, other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        between = torch.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    def about(self, mean: Tensor) -> "Moments":
        """Returns the moments about another mean, such as that of another sample of the vectors."""
        apart = self.mean - mean
        return Moments(self.count, mean, self.scatter + self.count * torch.outer(apart, apart))

    def subspace(self, explained_variance: float) -> tuple[Tensor, Tensor]:
        """Returns the mean `[1, C]` and the fewest principal axes `[k, C]` with this share of the variance, float32.

        Reference: SubspaceAD (arXiv 2602.23013).
        """
        values, vectors = torch.linalg.eigh(self.scatter / max(1, self.count - 1))
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        share = values.cumsum(0) / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
        count = min(int((share < explained_variance).sum()) + 1, len(values))
        return self.mean[None].float(), vectors[:, :count].T.float().contiguous()


def residual(patches: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """Returns the squared distance of patches `[..., C]` to the subspace, `[...]`, float32.

    Args:
        patches: `[..., C]`.
        mean: `[1, C]`.
        axes: Orthonormal, `[k, C]`.
    """
    with torch.autocast(patches.device.type, enabled=False):
        centred = patches.float() - mean
        return (centred - (centred @ axes.T) @ axes).square().sum(dim=-1)


class SubspaceBank(MemoryBank):
    """A memory bank that keeps the mean and the principal axes of the patches per category, not the patches.

    Args:
        explained_variance: Share of the variance that the axes explain.

    Attributes:
        moments: Moments of the patches per category.
    """

    def __init__(self, explained_variance: float) -> None:
        super().__init__()
        self.explained_variance = explained_variance
        self.moments: dict[Key, Moments] = {}

    def fit_moments(self, key: Key, moments: Moments) -> None:
        """Fits the subspace of a category to the moments of its patches."""
        self.moments = {key: moments}  # used if the category arrives in parts
        self._set(key, list(moments.subspace(self.explained_variance)), [], [])

    def fit_parts(
        self, key: Key, images: Iterable[Iterable[Tensor]], fit_memory: Callable[[Key, Tensor], None]
    ) -> None:
        """Fits the subspace on parts, as the base class does. The moments of the parts add up."""
        total: Moments | None = None
        for parts in images:
            for part in parts:
                fit_memory(key, part)
                total = self.moments[key] if total is None else total + self.moments[key]
        assert total is not None  # each few-shot image has a part
        self.fit_moments(key, total)

    def residuals(self, keys: Iterable[Key], patches: Tensor) -> Tensor:
        """Returns the squared distance of patches `[B, N, C]` to the subspaces of their categories, `[B, N]`.

        Raises:
            KeyError: The subspace of a category is not fitted.
        """
        return torch.stack(
            [
                residual(one, *(self._bank(key, index, one.device) for index in (0, 1)))
                for key, one in zip(keys, patches, strict=True)
            ]
        )

    def to_tensors(self, key: Key) -> dict[str, Tensor]:
        """Raises, as a subspace cannot be stored in a head file.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "a subspace cannot leave out one of its few-shot images, which `adapt` needs for its threshold: use "
            "--few_shot_dir of inspect, serve, calibrate and export, or adapt another method (HeadWithMemory)."
        )

    def without(self, key: Key, images: Collection[int]) -> MemoryBank:
        """Raises. See `to_tensors`.

        Raises:
            UserError: Always.
        """
        self.to_tensors(key)
        raise AssertionError
