"""Defect types of anomalous images, for datasets that name them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from afclip_lightning.data.names import normal_form
from afclip_lightning.types import Sample


def with_defect_types(samples: Sequence[Sample], types: Mapping[Path, str]) -> list[Sample]:
    """Returns the samples of a category with their defect types.

    Args:
        samples: The samples.
        types: Defect type by path of an anomalous image; empty if the dataset does not name it. A single type (`bad`)
            carries no information and is left out.
    """
    if len({name for name in types.values() if name}) < 2:
        return list(samples)
    return [replace(sample, defect_type=normal_form(types.get(sample.image_path, ""))) for sample in samples]
