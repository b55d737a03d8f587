"""The contract of every method: what trains, what is saved, what a score depends on; at the end, untrained methods."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.engine.factory import methods
from afclip_lightning.methods.aaclip import AACLIP
from afclip_lightning.methods.adaclip import AdaCLIP
from afclip_lightning.methods.adaptclip import AdaptCLIP
from afclip_lightning.methods.aprilgan import APRILGAN
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.methods.cocoop import CoCoOp
from afclip_lightning.methods.coop import CoOp
from afclip_lightning.methods.faprompt import FAPrompt
from afclip_lightning.methods.kanoclip import KAnoCLIP
from afclip_lightning.methods.mrad import MRAD
from afclip_lightning.methods.patch_logit import PatchLogit
from afclip_lightning.methods.uniadet import UniADet
from tests.support.cases import CASES, TRAINED, variants
from tests.support.clips import small_config
from tests.support.methods import (
    TextCalls,
    batch_of,
    data_of,
    fit_noise,
    saved,
    score,
    take,
    train_step,
    trainer_of,
    with_masks,
    with_prompts,
)

TEXT_PASSES = {  # of the text tower for two categories: in a test, in each batch of it, in a fit, in each step of it
    FAPrompt: (1, 1, 0, 2),  # the prior needs the image
    AdaCLIP: (0, 1, 0, 1),  # so do its prompts
    AACLIP: (2, 0, 0, 1),  # fixed after its text stage, which is all of this fit
    AdaptCLIP: (2, 0, 1, 1),  # the learnt prompts, and fixed sentences
    CoOp: (2, 0, 0, 1),  # category by category
    CoCoOp: (0, 1, 0, 1),  # the shift needs the image
    APRILGAN: (4, 0, 4, 0),  # fixed sentences, more than a pass takes
    UniADet: (0, 0, 0, 0),  # no text
    MRAD: (0, 0, 0, 0),  # no text
    PatchLogit: (0, 0, 0, 0),  # no text
    KAnoCLIP: (2, 0, 2, 2),  # what is known of each category, and in each step what is said of images seen first
}


VARIANTS = variants(trains=True)
UNTRAINED = variants(trains=False)


def test_every_method_has_its_case() -> None:
    """A new method needs a line in `tests/support/cases.py`; then all tests below run for it."""
    assert set(CASES) == set(methods())


@pytest.mark.parametrize("name", CASES)
def test_a_case_says_whether_the_method_trains(tmp_path: Path, name: str) -> None:
    backbone = ClipBackbone(small_config(tmp_path), "random", image_size=None)
    assert bool(methods()[name](backbone, **CASES[name].small).trainable_names()) == CASES[name].trains
    assert not CASES[name].trains or (CASES[name].tiny and CASES[name].run is not None)


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest, tiny: ClipBackbone) -> AnomalyMethod:
    torch.manual_seed(0)
    method, arguments = VARIANTS[request.param]
    return with_prompts(method(tiny, **arguments))


@pytest.fixture(params=TRAINED)
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], AnomalyMethod]:
    """Makes equal methods on one small backbone."""
    backbone = ClipBackbone(small_config(tmp_path), "random", image_size=None)
    method, arguments = methods()[request.param], CASES[request.param].small

    def make() -> AnomalyMethod:
        torch.manual_seed(0)
        return method(backbone, **arguments)

    return make


@pytest.mark.slow
def test_every_trainable_parameter_moves_and_nothing_else(model: AnomalyMethod) -> None:
    batch = batch_of()
    score(model, batch)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = model.configure_optimizers()
    assert optimizer is not None
    first = train_step(model, optimizer, batch)
    train_step(model, optimizer, batch)
    for name, parameter in model.named_parameters():
        moved = not torch.equal(before[name], parameter)
        assert moved == (not name.startswith("backbone.")), name
        assert (parameter.grad is not None) == moved, name
    assert all(loss.dtype == torch.float32 for loss in first.values())


@pytest.mark.slow
def test_the_loss_falls(model: AnomalyMethod) -> None:
    optimizer, batch = model.configure_optimizers(), batch_of()
    losses = [train_step(model, optimizer, batch)["total"].item() for _ in range(6)]
    assert losses[-1] < losses[0]


def test_scores_do_not_depend_on_the_batch(model: AnomalyMethod) -> None:
    batch = batch_of()
    scores, maps = score(model, batch)
    again = score(model, batch)
    assert torch.equal(scores, again[0])
    assert torch.equal(maps, again[1])
    # float32 knows a cosine to about 1e-7, a logit is up to 100 cosines: other sums move a probability by 1e-5 at most
    for rows in ([2, 0, 3, 1], [0], [1], [2], [3]):
        part = score(model, take(batch, rows))
        torch.testing.assert_close(part[0], scores[rows], rtol=0, atol=2e-5)
        torch.testing.assert_close(part[1], maps[rows], rtol=0, atol=2e-5)


@pytest.mark.slow
def test_scores_and_losses_are_float32_in_mixed_precision(model: AnomalyMethod) -> None:
    batch = batch_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, maps = score(model, batch)
        losses = model.loss(model.extract(batch), batch)
    assert scores.dtype == maps.dtype == torch.float32
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.slow
@pytest.mark.parametrize("rows", [[0], [1], [0, 2], [1, 3]])
def test_batches_of_one_image_or_one_kind_train(model: AnomalyMethod, rows: list[int]) -> None:
    optimizer = model.configure_optimizers()
    losses = train_step(model, optimizer, take(batch_of(), rows))
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.slow
def test_images_without_masks_have_image_terms_only(model: AnomalyMethod) -> None:
    batch = batch_of()
    features = model.eval().extract(batch)  # the statistics of a batch are of all its images
    every = model.loss(features, batch)
    none = model.loss(features, with_masks(batch, [False] * 4))
    pixel_terms = {name for name, value in none.items() if value == 0 and every[name] != 0} - {"total"}
    assert any("focal" in name for name in pixel_terms) == CASES[type(model).__name__].map_terms
    assert not any("image" in name for name in pixel_terms)
    assert none["total"].isfinite()
    some = model.loss(features, with_masks(batch, [True, True, False, False]))
    half = take(batch, [0, 1])
    expected = model.loss(model.extract(half), half)
    for name in pixel_terms:
        torch.testing.assert_close(some[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_images_without_masks_are_reported_once(tmp_path: Path, small: Callable[[], AnomalyMethod]) -> None:
    model = small()
    data = data_of(tmp_path, model)
    loader = data.train_dataloader()
    loader.dataset.samples = [replace(s, mask_known=False, mask_path=None) for s in loader.dataset.samples]
    with pytest.warns(UserWarning, match="without a mask take part in the image terms") as caught:
        trainer_of(tmp_path, enable_checkpointing=False).fit(model, loader)
    assert len({(str(w.message), w.lineno) for w in caught if "without a mask" in str(w.message)}) == 1


@pytest.mark.slow
def test_text_is_encoded_no_more_often_than_it_changes(tmp_path: Path, small: Callable[[], AnomalyMethod]) -> None:
    model = small()
    in_test, in_batch, in_fit, in_step = TEXT_PASSES.get(type(model), (1, 0, 0, 1))
    data, trainer = data_of(tmp_path, model), trainer_of(tmp_path, enable_checkpointing=False)
    calls = TextCalls(model.backbone)
    trainer.test(model, data, verbose=False)
    assert calls.count == in_test + in_batch * len(data.test_dataloader())
    calls.count = 0
    trainer.fit(model, data.train_dataloader())
    assert calls.count == in_fit + in_step * trainer.global_step
    calls.handle.remove()


@pytest.mark.slow
def test_checkpoint_holds_the_trainable_tensors_and_plain_values(
    tmp_path: Path, small: Callable[[], AnomalyMethod]
) -> None:
    model, again = small(), small()
    checkpoint = saved(model, tmp_path)
    assert set(checkpoint["state_dict"]) == model.learnt_names()
    size = sum(t.numel() * t.element_size() for t in checkpoint["state_dict"].values())
    buffer = io.BytesIO()
    torch.save({k: v for k, v in checkpoint.items() if k != "optimizer_states"}, buffer)
    assert len(buffer.getvalue()) < size + 10_000 + 500 * len(checkpoint["state_dict"])
    again.on_load_checkpoint(checkpoint)
    again.load_state_dict(checkpoint["state_dict"], strict=False)
    batch = batch_of(size=28)
    for a, b in zip(score(model, batch), score(again, batch), strict=True):
        assert torch.equal(a, b)


def skeleton(backbone: ClipBackbone, **arguments: Any) -> AnomalyMethod:
    """Returns the method that CONTRIBUTING.md shows how to write."""
    guide = Path(__file__).parents[2] / "CONTRIBUTING.md"
    code = guide.read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {"__name__": "off_centre"}
    exec(compile(code, guide, "exec"), names)  # the guide's code is ours
    model: AnomalyMethod = names["OffCentre"](backbone, **arguments)
    return model


@pytest.fixture(params=[*UNTRAINED, "the guide's"])
def untrained(request: pytest.FixtureRequest, tiny: ClipBackbone) -> AnomalyMethod:
    method, arguments = {**UNTRAINED, "the guide's": (skeleton, {"layer": 8})}[request.param]
    model = method(tiny, **arguments)
    if arguments.get("k_shot"):
        fit_noise(model, arguments["k_shot"])
    return model


@pytest.mark.slow
def test_an_untrained_method_keeps_the_contract(untrained: AnomalyMethod) -> None:
    """Nothing trains. Scores and maps are probabilities or distances, the same in any batch and repetition."""
    model, batch = untrained, batch_of()
    assert model.trainable_names() == set()
    assert model.state_dict() == {}
    assert model.configure_optimizers() is None
    with pytest.raises(TypeError, match="trains nothing: use the test command"):
        model.loss(model.extract(batch), batch)
    scores, maps = score(model, batch)
    assert scores.shape == (4,)
    assert maps.shape == (4, 112, 112)
    for values in (scores, maps):
        assert values.dtype == torch.float32
        case = CASES.get(type(model).__name__)  # the guide's has none
        assert (case and not case.bounded) or (values.min() >= 0 and values.max() <= 1)
        assert values.unique().numel() > 1
    again = score(model, batch)
    assert torch.equal(again[0], scores)
    assert torch.equal(again[1], maps)
    for rows in ([2, 0, 3, 1], [1], [3, 2]):
        part = score(model, take(batch, rows))
        torch.testing.assert_close(part[0], scores[rows], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(part[1], maps[rows], rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = score(model, batch)
    assert {values.dtype for values in mixed} == {torch.float32}
    assert all(values.isfinite().all() for values in mixed)
