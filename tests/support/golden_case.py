"""Common parts of the tests against recorded numbers: the inputs, the arrays, the comparison, the training steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.types import Batch, ClipFeatures, Sample
from tests.support.recipe import GOLDEN, images, value
from tests.support.rounding import Check, compare

KEY = ("golden", "golden")
RELEASED: dict[str, Any] = {  # where the released code differs from the paper: configs/official/faprompt.yaml
    "abnormal_words": "damaged object.",
    "prior_patches": "first_k",
    "image_ce_weight": 1.0,
    "score_as_logit": True,
    "free_maximum_weight": 2 / 3,
    "half_deep_tokens": True,
}
Method = TypeVar("Method", bound=AnomalyMethod)


class GoldenCase(Generic[Method]):
    """A method on a network made by the recipe, and the numbers recorded for it.

    Args:
        make: Builds the method; its trainable tensors get the recipe's values.
        backbone: Backbone in float32.
        file: Recorded numbers, in `golden/`.
        prefix: Prefix of the keys of this network: empty for width 64, `wide_` for 128.
        variant: Prefix of keys that differ in a variant of the code; keys without it are the same in both.
        official: From the name of one of our tensors, and one of its shape, to the official tensors, by name, that it
            holds: itself, or one a row.

    Attributes:
        model: The method, in float32; within `compare` that of the run.
        check: Within `compare`, takes a result and its key.
    """

    check: Check

    def __init__(
        self,
        make: Callable[[ClipBackbone], Method],
        backbone: ClipBackbone,
        file: str,
        prefix: str,
        variant: str,
        official: Callable[[str, Tensor], list[tuple[str, Tensor]]],
    ) -> None:
        self.file = file
        self.stored = np.load(GOLDEN / file)
        self.prefix = prefix
        self.variant = variant
        self.make = make
        self.backbone = backbone
        self.parts = official
        self.batch = Batch(
            image=images(),
            mask=torch.from_numpy(self.stored["masks"][:, 0]),
            label=torch.from_numpy(self.stored["labels"]),
            mask_known=torch.ones(3, dtype=torch.bool),
            samples=[Sample(*KEY, "test", Path("golden.png"), 0)] * 3,
        )
        self.build(backbone)

    def build(self, backbone: ClipBackbone) -> None:
        """Makes the method again, with the recipe's values."""
        self.model = self.make(backbone)
        self.initial = {}
        for name, parameter in self.model.state_dict().items():
            values = [value(theirs, tuple(part.shape)) for theirs, part in self.parts(name, parameter)]
            self.initial[name] = torch.stack(values).reshape(parameter.shape)
        self.model.load_state_dict(self.initial, strict=False)

    def features(self) -> ClipFeatures:
        return self.model.extract(self.batch)

    def golden(self, key: str) -> Tensor:
        name = f"{self.variant or self.prefix}{key}"
        name = name if name in self.stored else f"{self.prefix}{key}"
        return torch.from_numpy(np.asarray(self.stored[name]))

    def compare(self, body: Callable[["GoldenCase[Method]"], None]) -> None:
        """Compares all values that the body checks with the recorded arrays; see `rounding.compare`."""

        def run(backbone: ClipBackbone, check: Check) -> None:
            self.check = check
            self.build(backbone)
            body(self)

        compare(run, self.backbone, self.file, [self.variant or self.prefix, self.prefix])

    def compare_two_steps(self, terms: dict[str, str], lr: float) -> None:
        """Compares losses, gradients and the changes by the first step of Adam.

        Args:
            terms: Map from the name of one of our loss terms to the recorded one.
            lr: Learning rate of the recorded steps.
        """
        self.compare(lambda case: case._two_steps(terms, lr))

    def _two_steps(self, terms: dict[str, str], lr: float) -> None:
        optimizer = self.model.configure_optimizers()
        assert optimizer is not None
        features = self.features()
        for step in ("step1", "step2"):
            losses = self.model.loss(features, self.batch)
            optimizer.zero_grad()
            losses["total"].backward()
            for ours, theirs in terms.items():
                self.check(losses[ours], f"{step}.loss.{theirs}")
            trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
            gradients = {}
            for name, parameter in trained.items():
                assert parameter.grad is not None, name
                gradients[name] = parameter.grad.clone()
                for official, gradient in self.parts(name, parameter.grad):
                    self.check(gradient.norm(), f"{step}.grad_norm.{official}")
                    self.check(gradient.flatten()[:16], f"{step}.grad16.{official}")
            optimizer.step()
            if step == "step1":
                for name, parameter in trained.items():
                    self._check_moves(name, parameter.detach(), gradients[name], lr)

    def _check_moves(self, name: str, moved_to: Tensor, gradients: Tensor, lr: float) -> None:
        """Compares the changes by Adam's first step: nearly `lr`, in the direction of the gradient's sign."""
        for (official, ours), (_, start), (_, gradient) in zip(
            *(self.parts(name, tensor) for tensor in (moved_to, self.initial[name], gradients)), strict=True
        ):
            first = start.flatten()[:16]
            expected = self.golden(f"step1.param16.{official}") - first
            gradient = gradient.flatten()[:16].abs()
            clear = gradient > 1e-4 * gradient.max()  # a gradient near 0 may turn either way
            moved = ours.flatten()[:16] - first
            torch.testing.assert_close(moved[clear], expected[clear], rtol=0, atol=2e-2 * lr, check_dtype=False)
