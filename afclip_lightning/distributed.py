"""Communication between the processes of a run, and sums and means over a batch that they share.

Every strategy averages gradients over the processes. A loss therefore returns this process's *share*. The mean of the
shares is the loss of the whole batch in one process, and the mean of their gradients is its gradient, also for unequal
parts. All processes must call these functions equally often, so no call may depend on this process's part.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


def processes() -> int:
    """Returns the number of processes of the run; 1 if it is not distributed."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Returns the number of this process, from 0."""
    return distributed.get_rank() if processes() > 1 else 0


def agreed(value: T) -> T:
    """Returns the value of the first process."""
    values = [value]
    if processes() > 1:
        distributed.broadcast_object_list(values)
    return values[0]


def gathered(value: T) -> list[T]:
    """Returns the values of all processes by rank.

    Args:
        value: Anything that can be pickled.
    """
    values = [value] * processes()
    if processes() > 1:
        distributed.all_gather_object(values, value)
    return values


def total(values: Tensor) -> Tensor:
    """Returns the sum of a tensor over the processes, equal on all of them, without a gradient."""
    values = values.detach().clone()
    if processes() > 1:
        distributed.all_reduce(values)
    return values


def batch_sum(values: Tensor) -> Tensor:
    """Returns the sum of all elements over the whole batch, as this process's share, a scalar."""
    return processes() * values.sum()


def batch_mean(values: Tensor) -> Tensor:
    """Returns the mean of all elements over the whole batch, as this process's share, a scalar.

    It is 0 if no process has an element.
    """
    count = total(torch.full((), values.numel(), device=values.device))
    return batch_sum(values) / count.clamp(min=1)


class _SharedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return total(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return total(gradient)


def shared_sum(values: Tensor) -> Tensor:
    """Returns the sum of a tensor over the processes, equal on all of them, with a gradient.

    The share of each process depends on the tensors of all processes. In the backward pass, a process therefore gets
    the sum of the gradients of all shares. The strategy's mean over the processes is then the gradient of the whole
    batch.
    """
    if processes() == 1:
        return values
    shared: Tensor = _SharedSum.apply(values)  # type: ignore[no-untyped-call]
    return shared
