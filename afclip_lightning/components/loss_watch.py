"""A check of training losses that does not synchronise host and device."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from afclip_lightning.types import Sample
from afclip_runtime.errors import TrainingError


class _Step(NamedTuple):
    losses: Tensor  # one per name, on the CPU, valid when the copy is complete
    names: list[str]
    copied: torch.cuda.Event | None
    epoch: int
    number: int
    samples: Sequence[Sample]


class LossWatch:
    """Finds a loss that is not finite, one step after it occurred.

    Reading a loss at once would make the host wait for the device in every step. One step later, its value has already
    been copied.
    """

    def __init__(self) -> None:
        self.noted: _Step | None = None

    def note(self, losses: Mapping[str, Tensor], epoch: int, number: int, samples: Sequence[Sample]) -> None:
        """Records the losses of a step, including `total`, for the next `check`."""
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        copied = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)  # into page-locked memory
            copied = torch.cuda.Event()
            copied.record()
        self.noted = _Step(values, list(losses), copied, epoch, number, samples)

    def check(self) -> Tensor | None:
        """Returns the total loss of the recorded step, a scalar on the CPU. `None` if no step is recorded.

        Raises:
            TrainingError: A loss is not finite.
        """
        step, self.noted = self.noted, None
        if step is None:
            return None
        if step.copied is not None:
            step.copied.synchronize()  # waits for the copy only, not for later work of the device
        total = step.losses[step.names.index("total")]
        if not torch.isfinite(total):
            pairs = zip(step.names, step.losses.tolist(), strict=True)
            terms = ", ".join(f"{name} {value:.4g}" for name, value in pairs)
            images = "\n  ".join(str(sample.image_path) for sample in step.samples)
            raise TrainingError(
                f"The loss is not finite at epoch {step.epoch}, step {step.number} ({terms}).\n"
                "Lower the learning rate or use precision 32; the last checkpoint is kept. Images of the step:\n  "
                f"{images}"
            )
        return total
