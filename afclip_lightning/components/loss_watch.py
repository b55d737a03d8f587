"""A watch over training losses that the host need not wait for."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from afclip_lightning.types import Sample
from afclip_runtime.errors import TrainingError


class _Step(NamedTuple):
    losses: Tensor  # one per name, on the CPU, valid once it was copied
    names: list[str]
    copied: torch.cuda.Event | None
    epoch: int
    number: int
    samples: Sequence[Sample]


class LossWatch:
    """Finds a loss that is not finite, a step late: by then its value has long come from the device.

    Asked for at once, a value makes the host wait until the device has done all that it was given, at every step.
    """

    def __init__(self) -> None:
        self.noted: _Step | None = None

    def note(self, losses: Mapping[str, Tensor], epoch: int, number: int, samples: Sequence[Sample]) -> None:
        """Notes a step's losses, `total` among them, for the next `check`."""
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        copied = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)  # into page-locked memory
            copied = torch.cuda.Event()
            copied.record()
        self.noted = _Step(values, list(losses), copied, epoch, number, samples)

    def check(self) -> Tensor | None:
        """Returns the total loss of the step that was noted, a scalar on the CPU; `None` if there is none, or no more.

        Raises:
            TrainingError: It is not finite.
        """
        step, self.noted = self.noted, None
        if step is None:
            return None
        if step.copied is not None:
            step.copied.synchronize()  # of the copy alone, and not of what the device was given since
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
