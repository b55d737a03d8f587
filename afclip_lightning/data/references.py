"""References among unlabelled test images: other images of its category with which each image is compared."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from afclip_lightning.types import Sample
from afclip_runtime.errors import DatasetError


class Pairing(NamedTuple):
    """Pairing of a test split.

    Attributes:
        n_references: Number of references per image.
        seed: Seed of the draw.
    """

    n_references: int
    seed: int


def draw_references(samples: Sequence[Sample], pairing: Pairing) -> list[list[int]]:
    """Returns the positions in `samples` of each sample's references: other images of its category. Labels are unused.

    A category is shuffled and divided into groups of `n_references + 1`. The references of an image are the others of
    its group, so that with one reference the images form pairs. Remaining images form a last group, which is filled up
    with the first images of the shuffle. These keep their own references. Each category has its own random stream: a
    draw depends only on the seed, the name of the category and its images in their order.

    Args:
        samples: Samples of one dataset and split.
        pairing: Number of references, and the seed.

    Raises:
        DatasetError: A category has too few images.
        ValueError: `n_references` is less than 1.

    Reference: Dual-Image Enhanced CLIP, Sec. 3.2, where pairs are random; the groups for more references are ours.
    """
    size = pairing.n_references + 1
    if size < 2:
        raise ValueError(f"n_references must be at least 1, got {pairing.n_references}")
    positions: dict[tuple[str, str], list[int]] = {}
    for position, sample in enumerate(samples):
        positions.setdefault((sample.dataset, sample.category), []).append(position)
    references: list[list[int]] = [[] for _ in samples]
    for (dataset, category), members in positions.items():
        if len(members) < size:
            raise DatasetError(
                f"n_references is {pairing.n_references}, but {dataset}/{category} has {len(members)} test image"
                f"{'s' if len(members) > 1 else ''}: each needs {pairing.n_references} others. "
                f"{'Lower n_references or add images.' if len(members) > 1 else 'Add images or leave it out.'}"
            )
        generator = np.random.default_rng([pairing.seed, *category.encode(errors="surrogateescape")])
        shuffled = generator.permutation(members).tolist()
        for start in range(0, len(shuffled), size):
            group = shuffled[start : start + size]
            filled = group + shuffled[: size - len(group)]
            for position in group:
                references[position] = [other for other in filled if other != position]
    return references
