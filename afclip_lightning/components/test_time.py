"""Test-time adaptation: each image trains a linear adapter of its own.

The adapters of a batch train in one computation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from afclip_lightning.components.arguments import require_not_negative, require_one_of

Start = Literal["linear", "zero"]


@dataclass
class BatchAdapters:
    """The adapters of the B images of a batch. The tokens of an image pass only its own adapter.

    Attributes:
        weight: `[B, O, D]`.
        bias: `[B, O]`.
        residual: Weight of the original token in the output of an adapter.
        prompts: `[B, O, D]`, vectors that the O outputs weight. `None` if O equals D and the output changes the token.
        losses: `[B]` per step, before the step.
    """

    weight: Tensor
    bias: Tensor
    residual: float
    prompts: Tensor | None = None
    losses: list[Tensor] = field(default_factory=list)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Returns `r x + (1 - r) (W x / |x| + b)`, or with prompts E `r x + (1 - r) Eᵀ tanh(W x / |x| + b)`.

        Args:
            tokens: `[B, N, D]`, float32, not necessarily normalised.

        Reference: AnoVL's official code, both of its adapters; Dual-Image Enhanced CLIP, Eq. (7) and (8), which say
            only that the adapter is linear.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            change = torch.baddbmm(self.bias[:, None], F.normalize(tokens, dim=-1), self.weight.mT)
            if self.prompts is not None:
                change = change.tanh() @ self.prompts
            return self.residual * tokens + (1 - self.residual) * change


class TestTimeAdapter(nn.Module):
    """Initial values and training of the adapters.

    The loss of a batch is the sum of the losses of its images, and AdamW works element by element. One optimiser of the
    stacked weights therefore takes the same steps as one optimiser per image. A new optimiser is built for each batch,
    so that the result of an image does not depend on other images.

    Args:
        inputs: D, channels of a token.
        outputs: O, outputs of the linear layer.
        start: Initial values. `linear` initialises as torch's linear layer does, once and equally for every image.
            `zero` keeps the direction of a token at first.
        residual: Weight of the original token.
        steps: Number of optimiser steps.
        learning_rate: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        seed: Seed of the initial values.

    Raises:
        ValueError: An argument is out of its range.
    """

    __test__ = False  # pytest would collect the class by its name
    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        start: Start = "linear",
        residual: float = 0.5,
        steps: int = 2,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_one_of(Start, start=start)
        if not 0 <= residual < 1:
            raise ValueError(f"residual must be at least 0 and below 1, got {residual}")
        require_not_negative(steps=steps, learning_rate=learning_rate, weight_decay=weight_decay)
        self.residual = residual
        self.steps = steps
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        generator = torch.Generator().manual_seed(seed)
        bound = inputs**-0.5 if start == "linear" else 0.0
        for name, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
            values = (2 * torch.rand(shape, generator=generator) - 1) * bound
            self.register_buffer(name, values, persistent=False)

    def train_each(
        self, loss: Callable[..., Tensor], tensors: Sequence[Tensor], prompts: Tensor | None = None
    ) -> BatchAdapters:
        """Returns the trained adapters of a batch.

        It works inside inference mode, `no_grad` and autocast. Training runs in float32.

        Args:
            loss: Function `loss(adapters, *tensors)`, called at each step with gradients enabled. It returns the loss
                per image, `[B]`, which must not depend on other images.
            tensors: `[B, ...]` each, at least one. The loss gets float32 copies that allow gradients.
            prompts: See `BatchAdapters`.
        """
        device = self.weight.device.type
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            # tensors from inference mode cannot take part in autograd, but copies can
            own = [tensor.detach().float().clone() for tensor in tensors]
            start = (value.expand(len(own[0]), *value.shape).clone() for value in (self.weight, self.bias))
            weight, bias = (value.requires_grad_() for value in start)
            fixed = None if prompts is None else prompts.detach().float().clone()
            adapters = BatchAdapters(weight, bias, self.residual, fixed)
            optimizer = AdamW([weight, bias], lr=self.learning_rate, weight_decay=self.weight_decay)
            for _ in range(self.steps):
                optimizer.zero_grad()
                losses = loss(adapters, *own)
                losses.sum().backward()
                optimizer.step()
                adapters.losses.append(losses.detach())
        return adapters
