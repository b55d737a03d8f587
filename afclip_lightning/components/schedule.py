"""Learning rate schedules."""

import math
from collections.abc import Callable, Iterable

from lightning import Trainer
from torch.optim import Optimizer


def cosine(first: float, last: float, done: float) -> float:
    """Returns the value on a half cosine from the first to the last value, at the share `done` in [0, 1]."""
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


def warmed_cosine(first: float, warmup: float, epoch: int, epochs: int) -> float:
    """Returns the learning rate of an epoch: `warmup` in the first epoch, then a half cosine towards 0.

    Args:
        first: Learning rate after the warm-up.
        warmup: Learning rate of the first epoch.
        epoch: Counted from 0.
        epochs: Number of epochs of the training. Below 1 the number is unknown, and the rate is constant.

    Reference: CoOp, Sec. 4.1, and the official code, whose cosine begins after the warm-up.
    """
    if epoch == 0 and epochs != 1:
        return warmup
    return cosine(first, 0.0, max(epoch - 1, 0) / epochs) if epochs > 0 else first


def set_rates(optimizers: Iterable[Optimizer], rate: Callable[[float], float]) -> None:
    """Sets the learning rates to `rate(initial)`, where `initial` is the rate that an optimiser was built with."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = rate(group.setdefault("initial_lr", group["lr"]))


def follow_warmed_cosine(trainer: Trainer, warmup: float) -> None:
    """Sets the learning rates at the start of an epoch. See `warmed_cosine`."""
    epoch, epochs = trainer.current_epoch, trainer.max_epochs or 0
    set_rates(trainer.optimizers, lambda first: warmed_cosine(first, warmup, epoch, epochs))
