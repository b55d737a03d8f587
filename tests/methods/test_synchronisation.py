"""No step synchronises host and device: tested on the device `meta`, whose tensors have no values."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.loss_watch import LossWatch
from afclip_lightning.engine.factory import methods
from afclip_lightning.methods.adaptclip import AdaptCLIP
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.methods.kanoclip import KAnoCLIP
from afclip_lightning.prompts.ensemble import CategoryText
from afclip_lightning.prompts.learner import SentenceIds
from afclip_lightning.types import Batch
from tests.support.cases import AT_ONCE, CASES, TRAINED
from tests.support.clips import small_config
from tests.support.methods import batch_of, with_masks

META = torch.device("meta")
Case = tuple[Callable[[Batch], list[str]], Batch]


class Transfers(TorchDispatchMode):
    """Records each copy from the host. Reading a value, or a number of values, raises on this device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_meta:
            self.found += [str(function) for value in args if isinstance(value, torch.Tensor) and _is_of_host(value)]
        return result


def _is_of_host(value: torch.Tensor) -> bool:
    return not value.is_meta and value.dim() > 0  # a number stands for a scalar of Python


def bring(model: AnomalyMethod) -> AnomalyMethod:
    """Returns the method on the device, with the state that it keeps between steps."""
    for text in (part for part in vars(model).values() if isinstance(part, CategoryText)):
        text.kept = {category: kept.to(META) for category, kept in text.kept.items()}
    if isinstance(model, AdaptCLIP) and model.fixed_texts is not None:
        model.fixed_texts = model.fixed_texts.to(META)
    parts = [value for module in model.modules() for value in vars(module).values()]
    for kept in (part.kept for part in parts if isinstance(part, SentenceIds)):
        kept |= {(name, META): (ids.to(META), end.to(META), last) for (name, _), (ids, end, last) in kept.items()}
    if isinstance(model, KAnoCLIP):
        model.knowledge.sums = {category: kept.to(META) for category, kept in model.knowledge.sums.items()}
    return model.to(META)


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """A method and a batch on the device, after one step of the kind with values, and one without."""
    monkeypatch.setattr(AnomalyMethod, "log", lambda *_, **__: None)
    name, kind = request.param
    method, arguments = methods()[name], CASES[name].small
    model = method(ClipBackbone(small_config(tmp_path), "random", image_size=None), **arguments)
    batch = batch_of(size=28)
    samples = [replace(sample, class_name=sample.category) for sample in batch.samples]
    rows = torch.tensor([[1], [0], [3], [2]])
    batch = replace(batch, samples=samples, reference=batch.image[:0], reference_rows=rows)
    if isinstance(model, KAnoCLIP):
        model.knowledge.own = dict.fromkeys(sample.image_path for sample in samples)  # those of an epoch before
    step = model.test_step if kind == "test" else model.training_step
    mode = torch.inference_mode if kind == "test" else nullcontext
    with mode():
        step(batch, 0)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know this device
    model.watch = LossWatch()
    # the copy that the watch takes is made without waiting, for which this device has nothing
    monkeypatch.setattr(LossWatch, "check", lambda self: None)
    model, batch = bring(model), batch.to(META)

    def run(batch: Batch) -> list[str]:
        with mode(), Transfers() as transfers:
            step(batch, 1)
        return transfers.found

    run(batch)
    return run, batch


@pytest.mark.slow
@pytest.mark.parametrize("case", [(name, "test") for name in AT_ONCE], indirect=True)
def test_a_test_step_waits_for_nothing(case: Case) -> None:
    run, batch = case
    assert run(batch) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", [(name, "training") for name in TRAINED], indirect=True)
def test_a_training_step_waits_for_nothing(case: Case) -> None:
    run, batch = case
    assert run(batch) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", [(name, "training") for name in TRAINED if CASES[name].map_terms], indirect=True)
def test_where_masks_lack_a_training_step_waits_for_their_number(case: Case) -> None:
    run, batch = case
    with pytest.raises(NotImplementedError, match="nonzero"):
        run(replace(with_masks(batch, [True, False, True, True]), mask_known=batch.mask_known))


def test_copies_from_the_host_are_found() -> None:
    with Transfers() as transfers:
        torch.ones(3, device=META) + torch.ones(3).to(META)
    assert transfers.found == ["aten._to_copy.default"]
