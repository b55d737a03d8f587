"""Batch normalisation over the batch of all processes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afclip_lightning.distributed import shared_sum


class SharedBatchNorm(nn.Module):
    """Batch normalisation over the images of all processes, in float32.

    The processes may hold different numbers of images.

    A fit over several processes therefore equals a fit in one, on any device. torch's `SyncBatchNorm` runs on GPUs
    only. A batch with a single value per channel raises an error in torch's layers. Here it is normalised by the
    running statistics, which stay as they are. The state has the tensors of torch's layers, without the count of steps,
    which a fixed momentum does not need.

    Args:
        channels: C.
        momentum: Weight of a new batch in the running statistics.
        eps: Added to the variances.

    Attributes:
        running_mean: Running mean, `[C]`. It belongs to the trained state.
        running_var: Running variance, `[C]`. It belongs to the trained state.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, values: Tensor) -> Tensor:
        """Returns values `[M, C, ...]`, normalised, float32."""
        with torch.autocast(values.device.type, enabled=False):
            values = values.float()
            if not self.training:
                return F.batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
            mean, variance = self._moments(values)
            scale = self.weight * (variance + self.eps).rsqrt()
            return (values - _wide(mean, values)) * _wide(scale, values) + _wide(self.bias, values)

    def _moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and variance of the batch, `[C]` each, and moves the running ones."""
        axes = [axis for axis in range(values.dim()) if axis != 1]
        here = torch.full((1,), values.numel() // values.shape[1], dtype=values.dtype, device=values.device)
        sums = shared_sum(torch.cat([values.sum(axes), here]))
        count = sums[-1].detach()
        mean = sums[:-1] / count.clamp(min=1)
        variance = shared_sum((values - _wide(mean, values)).square().sum(axes)) / count.clamp(min=1)
        several = count > 1  # a tensor, so that nothing synchronises with the device
        with torch.no_grad():
            moved = torch.where(several, self.momentum, 0.0)
            unbiased = variance * count / (count - 1).clamp(min=1)
            before = self.running_mean.clone(), self.running_var.clone()
            self.running_mean += moved * (mean - self.running_mean)
            self.running_var += moved * (unbiased - self.running_var)
        return torch.where(several, mean, before[0]), torch.where(several, variance, before[1])


def _wide(channels: Tensor, values: Tensor) -> Tensor:
    """Returns `[C]` as `[C, 1, ...]`, to go with values `[M, C, ...]`."""
    return channels.view(-1, *[1] * (values.dim() - 2))
