"""What every process of a run has, brought together."""

from typing import TypeVar

import torch
from lightning import Trainer

T = TypeVar("T")


def from_all_processes(trainer: Trainer, value: T) -> list[T]:
    """Returns the values of all processes by rank; every process must call this.

    Args:
        trainer: Whose processes.
        value: Anything that can be pickled.
    """
    if trainer.world_size == 1:
        return [value]
    values: list[T | None] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # filled by now
