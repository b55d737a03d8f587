"""What the tests against recorded numbers share: the inputs, the arrays, the comparison, the training steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.types import Batch, ClipFeatures, Sample
from tests.recipe import GOLDEN, images, value

KEY = ("golden", "golden")


class GoldenCase:
    """A method on a network made by the recipe, and the numbers recorded for it.

    Args:
        model: The method; its trainable tensors get the recipe's values.
        file: Recorded numbers, in `golden/`.
        prefix: Of the keys of this network: empty for width 64, `wide_` for 128.
        variant: Prefix of keys that differ in a variant of the code; keys without it are the same in both.
        official: From the name of one of our tensors, and one of its shape, to the official tensors, by name, that it
            holds: itself, or one a row.
    """

    def __init__(
        self,
        model: AnomalyMethod,
        file: str,
        prefix: str,
        variant: str,
        official: Callable[[str, Tensor], list[tuple[str, Tensor]]],
    ) -> None:
        self.stored = np.load(GOLDEN / file)
        self.prefix = prefix
        self.variant = variant
        self.model = model
        self.parts = official
        self.initial = {}
        for name, parameter in model.state_dict().items():
            values = [value(theirs, tuple(part.shape)) for theirs, part in official(name, parameter)]
            self.initial[name] = torch.stack(values).reshape(parameter.shape)
        model.load_state_dict(self.initial, strict=False)
        self.batch = Batch(
            image=images(),
            mask=torch.from_numpy(self.stored["masks"][:, 0]),
            label=torch.from_numpy(self.stored["labels"]),
            mask_known=torch.ones(3, dtype=torch.bool),
            samples=[Sample(*KEY, "test", Path("golden.png"), 0)] * 3,
        )

    def features(self) -> ClipFeatures:
        return self.model.extract(self.batch)

    def golden(self, key: str) -> Tensor:
        name = f"{self.variant or self.prefix}{key}"
        name = name if name in self.stored else f"{self.prefix}{key}"
        return torch.from_numpy(np.asarray(self.stored[name]))

    def check(self, actual: Tensor, key: str, limit: float = 1e-4, rows: Any = ...) -> None:
        """Compares with the recorded array, or these rows of it: largest difference over largest value."""
        expected = self.golden(key)[rows]
        assert actual.shape == expected.shape, key
        torch.testing.assert_close(
            actual.detach(),
            expected,
            rtol=0,
            atol=limit * expected.abs().max().item(),
            msg=lambda text: f"{self.prefix}{self.variant}{key}: {text}",
        )

    def check_two_steps(self, terms: dict[str, str], lr: float, limits: tuple[tuple[float, float], ...]) -> None:
        """Compares losses, gradients and what the first step of Adam moves.

        Args:
            terms: From the name of one of our loss terms to the recorded one.
            lr: Learning rate of the recorded steps.
            limits: Of each step: of losses and gradient norms, of single gradient values.
        """
        optimizer = self.model.configure_optimizers()
        assert optimizer is not None
        features = self.features()
        for number, (limit, single) in enumerate(limits, 1):
            step = f"step{number}"
            losses = self.model.loss(features, self.batch)
            optimizer.zero_grad()
            losses["total"].backward()
            for ours, theirs in terms.items():
                self.check(losses[ours], f"{step}.loss.{theirs}", limit)
            trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
            gradients = {}
            for name, parameter in trained.items():
                assert parameter.grad is not None, name
                gradients[name] = parameter.grad.clone()
                for official, gradient in self.parts(name, parameter.grad):
                    self.check(gradient.norm(), f"{step}.grad_norm.{official}", limit)
                    self.check(gradient.flatten()[:16], f"{step}.grad16.{official}", single)
            optimizer.step()
            if number == 1:
                for name, parameter in trained.items():
                    moved = parameter.detach() - self.initial[name]
                    for (official, ours), (_, start), (_, gradient) in zip(
                        self.parts(name, moved),
                        self.parts(name, self.initial[name]),
                        self.parts(name, gradients[name]),
                        strict=True,
                    ):
                        expected = self.golden(f"{step}.param16.{official}") - start.flatten()[:16]
                        gradient = gradient.flatten()[:16].abs()
                        clear = gradient > 1e-4 * gradient.max()
                        torch.testing.assert_close(ours.flatten()[:16][clear], expected[clear], rtol=0, atol=2e-2 * lr)
