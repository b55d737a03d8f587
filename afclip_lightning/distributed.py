"""A batch that several processes share: means and sums over all of it, as each process's share.

Every strategy averages gradients over the processes. A loss therefore returns this process's *share*: the mean of the
shares is the loss that one process would have of the whole batch, and the mean of their gradients is its gradient,
however unequal the parts are. All processes must call these functions equally often: none may be called in a branch
that depends on the part.
"""

import torch
from torch import Tensor, distributed


def processes() -> int:
    """Returns how many processes share the run; 1 where it was not started for several."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def total(values: Tensor) -> Tensor:
    """Returns the sum of a tensor over the processes, the same on each, without a gradient."""
    values = values.detach().clone()
    if processes() > 1:
        distributed.all_reduce(values)
    return values


def batch_sum(values: Tensor) -> Tensor:
    """Returns the sum of all elements over the whole batch, as this process's share, a scalar."""
    return processes() * values.sum()


def batch_mean(values: Tensor) -> Tensor:
    """Returns the mean of all elements over the whole batch, as this process's share, a scalar.

    It is 0 where no process has an element.
    """
    count = total(torch.full((), values.numel(), device=values.device))
    return batch_sum(values) / count.clamp(min=1)
