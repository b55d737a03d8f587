"""Few-shot images of a category: selected at random, by a seed, or chosen by hand."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afclip_lightning.data.left_out import sentences, unread
from afclip_lightning.data.names import find
from afclip_lightning.types import Sample
from afclip_runtime.errors import DatasetError
from afclip_runtime.images.find import list_images, survey


def select_few_shot(normal: Sequence[Sample], k_shot: int, seed: int, category: str, place: str) -> list[Sample]:
    """Returns k of a category's normal training images, in their order. They are the same on every machine.

    Args:
        normal: The images to select from, sorted by path.
        k_shot: Number of images.
        seed: Seed of the selection. Each category has its own random stream.
        category: The category.
        place: Name of the category in messages.

    Raises:
        DatasetError: There are fewer than `k_shot` images.
    """
    if len(normal) < k_shot:
        remedy = "Lower k_shot or add images." if normal else "It can only be tested zero-shot: leave it out."
        raise DatasetError(f"k_shot is {k_shot}, but {place} has {len(normal)} normal training images. {remedy}")
    generator = np.random.default_rng([seed, *category.encode(errors="surrogateescape")])
    picks = sorted(generator.choice(len(normal), size=k_shot, replace=False).tolist())
    return [normal[i] for i in picks]


def given_few_shot(folder: Path, dataset: str, category: str, k_shot: int, alone: bool) -> list[Path]:
    """Returns the few-shot images of a category that were chosen by hand.

    Args:
        folder: Folder of the images, in `<dataset>/<category>`, in `<category>` or, for a single category, directly.
        dataset: Name of the dataset.
        category: The category.
        k_shot: Required number of images.
        alone: Whether the category is the dataset's only one in use.

    Raises:
        DatasetError: The number of images is not `k_shot`.
    """
    places = [find(folder, Path(dataset) / category), find(folder, category)]
    place = next((p for p in places if p.is_dir()), folder if alone else places[-1])
    images = list_images(place)
    if len(images) != k_shot:
        others = "".join(f"; {said}" for said in sentences(unread(survey(place), images), place))
        raise DatasetError(
            f"k_shot is {k_shot}, but {place}, the few-shot images of {dataset}/{category}, holds {len(images)} "
            f"images{others}. Set k_shot to their number, or change the folder."
        )
    return images


def record_of(samples: Sequence[Sample], root: Path, seed: int | None) -> dict[str, Any]:
    """Returns the record of a category's few-shot images for the run folder.

    Args:
        samples: The images, of one category.
        root: Folder to which their paths are relative.
        seed: Seed of the selection; `None` if they were chosen by hand.
    """
    return {
        "dataset": samples[0].dataset,
        "category": samples[0].category,
        "seed": seed,
        "root": str(root),
        "images": [Path(os.path.relpath(sample.image_path, root)).as_posix() for sample in samples],
    }
