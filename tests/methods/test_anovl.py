"""AnoVL: its views, and what a result may depend on. The numbers are in `test_anovl_golden.py`."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.scoring import anomaly_probability, pool_and_upsample
from afclip_lightning.methods.anovl import AnoVL, augmented_views
from afclip_lightning.prompts.templates import domain_aware
from afclip_lightning.types import AnomalyPrediction, Batch
from tests.support.clips import SMALL, small_config
from tests.support.methods import TextCalls, batch_of, data_of, take, trainer_of

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "without adaptation": {"steps": 0},
    "square adapter, one view": {"adapter": "linear", "augment": False},
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> ClipBackbone:
    vision = {**SMALL["vision_cfg"], "image_size": 56}
    return ClipBackbone(small_config(tmp_path_factory.mktemp("a"), vision_cfg=vision), "random", image_size=None)


@pytest.fixture(scope="module")
def make(backbone: ClipBackbone) -> Callable[..., AnoVL]:
    """Makes methods that share their sentences, which take the most time."""
    sentences = AnoVL(backbone).sentences

    def make(**arguments: Any) -> AnoVL:
        model = AnoVL(backbone, **arguments)
        model.sentences = sentences
        return model

    return make


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest, make: Callable[..., AnoVL]) -> AnoVL:
    return make(**VARIANTS[request.param])


def named(count: int = 4) -> Batch:
    batch = batch_of(count, 56)
    return replace(batch, samples=[replace(sample, class_name=sample.category) for sample in batch.samples])


def score(model: AnoVL, batch: Batch) -> AnomalyPrediction:
    with torch.inference_mode():
        return model.eval().score(model.extract(batch), batch)


def check_equal(actual: AnomalyPrediction, expected: AnomalyPrediction, rows: Any = ...) -> None:
    torch.testing.assert_close(actual.pred_score, expected.pred_score[rows], rtol=0, atol=1e-6)
    torch.testing.assert_close(actual.anomaly_map, expected.anomaly_map[rows], rtol=0, atol=1e-6)


def test_the_views_are_22_and_move_the_picture_as_they_say() -> None:
    image = torch.zeros(1, 3, 41, 41)
    image[..., 10, 24] = 1  # above the middle, to the right
    views = list(augmented_views(image))
    assert len(views) == 22
    assert all(view.shape == image.shape for view in views)
    assert torch.equal(views[0], image)

    def place(view: torch.Tensor) -> tuple[float, float]:
        weight = view[0, 0] / view[0, 0].sum()
        y, x = ((weight * torch.arange(41.0)[:, None]).sum().item(), (weight * torch.arange(41.0)).sum().item())
        return x - 20, y - 20

    x, y = place(image)
    assert (x, y) == (4, -10)
    for view, sixteenth in zip(views[1:9], (-4, -3, -2, -1, 1, 2, 3, 4), strict=True):
        turn = torch.polar(torch.tensor(1.0), torch.tensor(-sixteenth * torch.pi / 16)) * complex(x, y)
        assert place(view) == pytest.approx((turn.real.item(), turn.imag.item()), abs=0.7)
    shifts = [(a * i, a * j) for a in (4, 2) for i, j in ((1, 1), (-1, 1), (-1, -1), (1, -1))]
    for view, (across, down) in zip(views[9:17], shifts, strict=True):
        assert place(view) == pytest.approx((x - across, y - down), abs=1e-3)
    assert place(views[17]) == (-4, -10)
    assert torch.equal(views[18][0, 0], views[18][0, 2])
    assert [place(view) for view in views[19:]] == [(-10, -4), (-4, 10), (10, 4)]


def test_the_image_score_is_the_mean_over_the_views(make: Callable[..., AnoVL]) -> None:
    batch, one = named(2), make(augment=False, steps=0)
    singles = [score(one, replace(batch, image=view)).pred_score for view in augmented_views(batch.image)]
    torch.testing.assert_close(score(make(steps=0), batch).pred_score, torch.stack(singles).mean(0), rtol=0, atol=1e-6)
    assert (torch.stack(singles).std(0) > 1e-6).all()


def test_objects_and_textures_have_other_sentences() -> None:
    normal, abnormal = domain_aware("nut", texture=False)
    assert len(normal) == len(abnormal) == 462
    assert normal[0] == "a cropped industrial photo of the normal nut"
    assert len(set(normal) | set(abnormal)) == 924
    texture = domain_aware("nut", texture=True)[0]
    assert "a cropped surface picture of the normal nut" in texture
    assert len(texture) == 462


@pytest.mark.slow
def test_textures_are_an_argument(backbone: ClipBackbone) -> None:
    samples = named(2).samples
    texts = [AnoVL(backbone, textures=names).text(samples)[0] for names in ((), ("a",), ("a", "b"))]
    for row, other in ((0, 1), (1, 2)):
        assert not torch.equal(texts[row][row], texts[other][row])
    assert torch.equal(texts[0][1], texts[1][1])


@pytest.mark.slow
def test_an_image_scores_the_same_in_any_batch(model: AnoVL) -> None:
    batch = named()
    expected = score(model, batch)
    assert torch.equal(score(model, batch).anomaly_map, expected.anomaly_map)
    order = [2, 0, 3, 1]
    check_equal(score(model, take(batch, order)), expected, order)
    for i in range(4):
        check_equal(score(model, take(batch, [i])), expected, [i])


@pytest.mark.parametrize("adapter", ["text", "linear"])
def test_the_losses_are_those_of_the_paper(make: Callable[..., AnoVL], adapter: str) -> None:
    batch, model = named(2), make(adapter=adapter, steps=1, noise_std=2.0, hard_weight=0.3, temperature=0.5)
    patches = model.patches(model.extract(batch))
    text, sentences = model.text(batch.samples)
    (losses,) = model.adapt(batch.samples, patches, text, sentences).losses
    noise = next(model.noise(batch.samples, patches.shape[1:]))
    for i in range(2):
        total = 0.0
        for token, step in zip(patches[i], noise[i], strict=True):
            probabilities = []
            for x in (token, token + step):
                change = model.adapter.weight @ (x / x.norm()) + model.adapter.bias
                if adapter == "text":
                    change = sentences[i].T @ change.tanh()
                y = 0.5 * x + 0.5 * change
                cosines = [torch.dot(y / y.norm(), t).item() / 0.5 for t in text[i]]
                probabilities.append(torch.tensor(cosines, dtype=torch.float64).softmax(0))
            clean, noisy = probabilities
            entropy = -sum(p * p.log() for p in clean)
            total += entropy + 0.3 * (-noisy[1].log() - clean[0].log())
        torch.testing.assert_close(losses[i].double(), total / len(patches[i]), rtol=1e-4, atol=1e-5)


def test_noise_is_each_images_own_and_seeded(make: Callable[..., AnoVL]) -> None:
    samples, model = named().samples, make(noise_std=0.5)
    first = torch.stack(list(islice(model.noise(samples, (200, 16)), 2)))
    again = torch.stack(list(islice(model.noise(samples[::-1], (200, 16)), 2)))
    assert torch.equal(first, again.flip(1))
    assert not torch.equal(first[0], first[1])  # another one each step
    assert not torch.equal(first[0, 0], first[0, 2])
    assert not torch.equal(next(make(noise_std=0.5, seed=1).noise(samples, (200, 16))), first[0])
    torch.testing.assert_close(first.std(), torch.tensor(0.5), rtol=0.02, atol=0)


def test_adaptation_changes_the_map_and_not_the_image_score(make: Callable[..., AnoVL]) -> None:
    batch = named()
    none, some = score(make(steps=0), batch), score(make(), batch)
    assert torch.equal(none.pred_score, some.pred_score)
    assert (none.anomaly_map - some.anomaly_map).abs().max() > 1e-4
    for change in ({"augment": False}, {"seed": 7}):
        torch.testing.assert_close(score(make(steps=0, **change), batch).anomaly_map, none.anomaly_map)


def test_the_map_without_adaptation_is_the_patches_probability(make: Callable[..., AnoVL]) -> None:
    model, batch = make(steps=0, temperature=0.1), named()
    tokens = F.normalize(model.patches(model.extract(batch)), dim=-1)
    text, _ = model.text(batch.samples)
    expected = anomaly_probability(tokens @ text.mT / 0.1).unflatten(1, (4, 4))
    torch.testing.assert_close(score(model, batch).anomaly_map, pool_and_upsample(expected, 56), rtol=0, atol=1e-6)


def test_results_are_float32_in_mixed_precision(model: AnoVL) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = score(model, named())
    assert prediction.pred_score.dtype == prediction.anomaly_map.dtype == torch.float32
    assert prediction.anomaly_map.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("inference_mode", [True, False])
def test_a_trainer_gives_what_score_gives(tmp_path: Path, make: Callable[..., AnoVL], inference_mode: bool) -> None:
    model = make()
    model.sentences.reset()
    data = data_of(tmp_path, model)
    trainer = trainer_of(tmp_path, enable_checkpointing=False, inference_mode=inference_mode)
    calls = TextCalls(model.backbone)
    predicted = trainer.predict(model, data)
    assert calls.count == 2 * 4  # two categories, 924 sentences by 256
    calls.handle.remove()
    assert predicted is not None
    assert model.sentences.kept == {}
    for batch, prediction in zip(data.test_dataloader(), predicted, strict=True):
        check_equal(prediction, score(model, batch))
    assert model.configure_optimizers() is None


@pytest.mark.parametrize(("changes", "message"), [
    ({"temperature": 0.0}, "temperature must be positive"),
    ({"adapter": "square"}, "adapter must be one of text, linear, got 'square'"),
    ({"noise_std": -1.0}, "noise_std must not be negative"),
    ({"steps": -1}, "must not be negative, got -1"),
])  # fmt: skip
def test_arguments_out_of_range(backbone: ClipBackbone, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnoVL(backbone, **changes)
