"""Dual-Image CLIP: its equations against loops, and what a result may depend on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from afclip_lightning.backbones.attention import dual_block
from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.scoring import pool_and_upsample
from afclip_lightning.components.synthesis import DraemSynthesis, ReferenceTextures
from afclip_lightning.engine.app import main
from afclip_lightning.methods.dual_image import DualImageCLIP
from afclip_lightning.types import AnomalyPrediction, Batch
from afclip_runtime.errors import DatasetError
from tests.reference import dual_image_naive as naive
from tests.support.clips import SMALL, small_config
from tests.support.layouts import write_image
from tests.support.layouts.mvtec import write_mvtec
from tests.support.methods import batch_of, data_of, trainer_of

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "without adaptation": {"steps": 0},
    "three references": {"n_references": 3},
    "from zero, unit length": {"start": "zero", "normalise_residual": True},
    "other losses": {"mask_loss": "all", "similarity_loss": "mse", "similarity_weight": 3.0},
    "textures of the reference": {"synthesis": DraemSynthesis(ReferenceTextures()), "steps": 4},
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> ClipBackbone:
    """A backbone of 3 blocks with 16 channels in the joint space and 16 patches."""
    vision = {**SMALL["vision_cfg"], "image_size": 56}
    return ClipBackbone(small_config(tmp_path_factory.mktemp("d"), vision_cfg=vision), "random", image_size=None)


@pytest.fixture(scope="module")
def make(backbone: ClipBackbone) -> Callable[..., DualImageCLIP]:
    """Makes methods that share their text, which takes the most time."""
    text = DualImageCLIP(backbone).text

    def make(**arguments: Any) -> DualImageCLIP:
        model = DualImageCLIP(backbone, **arguments)
        model.text = text
        return model

    return make


def paired(count: int = 4, n_references: int = 1, size: int = 56, seed: int = 0) -> Batch:
    """Returns images of two categories with class names; neighbours of a category are each other's first reference."""
    batch = batch_of(count, size, seed)
    samples = [replace(sample, class_name=sample.category) for sample in batch.samples]
    rows = [[(i + 2 * (1 + r)) % count for r in range(n_references)] for i in range(count)]
    return replace(batch, samples=samples, reference=batch.image[:0], reference_rows=torch.tensor(rows))


def all_images(batch: Batch) -> Tensor:
    """Returns the images of the rows, then of those references that are not rows."""
    assert batch.reference is not None
    return torch.cat([batch.image, batch.reference])


def compared_with(batch: Batch, references: Tensor) -> Batch:
    """Returns the batch with other references, `[B, R, 3, H, W]`. None of them is a row."""
    count, beside = references.shape[:2]
    rows = len(batch.image) + torch.arange(count * beside).view(count, beside)
    return replace(batch, reference=references.flatten(0, 1), reference_rows=rows)


def references_of(batch: Batch) -> Tensor:
    """Returns each row's references, `[B, R, 3, H, W]`."""
    assert batch.reference_rows is not None
    return all_images(batch)[batch.reference_rows]


def take(batch: Batch, rows: list[int]) -> Batch:
    """Returns these rows with references outside the batch, even if they are rows."""
    assert batch.reference_rows is not None
    return Batch(
        batch.image[rows],
        batch.mask[rows],
        batch.label[rows],
        batch.mask_known[rows],
        [batch.samples[i] for i in rows],
        reference=all_images(batch),
        reference_rows=len(rows) + batch.reference_rows[rows],
    )


def score(model: DualImageCLIP, batch: Batch) -> AnomalyPrediction:
    with torch.inference_mode():
        return model.eval().score(model.extract(batch), batch)


def check_equal(actual: AnomalyPrediction, expected: AnomalyPrediction, rows: Any = ..., atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual.pred_score, expected.pred_score[rows], rtol=0, atol=atol)
    torch.testing.assert_close(actual.anomaly_map, expected.anomaly_map[rows], rtol=0, atol=atol)


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest, make: Callable[..., DualImageCLIP]) -> DualImageCLIP:
    return make(**VARIANTS[request.param])


def of(model: DualImageCLIP) -> Batch:
    return paired(6, model.pairing.n_references)


# --- the equations ----------------------------------------------------------------------------------------------------


def test_scores_of_text_references_and_both(make: Callable[..., DualImageCLIP]) -> None:
    model = make(alpha=0.3, n_references=2)
    generator = torch.Generator().manual_seed(0)
    patches, text = torch.randn(1, 5, 8, generator=generator), torch.randn(1, 2, 8, generator=generator)
    text = torch.nn.functional.normalize(text, dim=-1)
    references = [torch.randn(1, 5, 8, generator=generator) for _ in range(2)]
    scores = naive.text_scores(patches[0].tolist(), *text[0].tolist(), 0.07)
    visual = naive.reference_scores(patches[0].tolist(), [one[0].tolist() for one in references])
    ours = model.text_score(patches, text), model.reference_score(patches, references)
    for actual, expected in zip(ours, (scores, visual), strict=True):
        torch.testing.assert_close(actual[0], torch.tensor(expected), rtol=1e-5, atol=1e-5)
    joint = torch.tensor(naive.joint_scores(scores, visual, 0.3))
    torch.testing.assert_close(model.joint_score(*ours)[0], joint, rtol=1e-5, atol=1e-5)


def test_local_patches_come_from_attention_of_values_to_values(backbone: ClipBackbone) -> None:
    block, tokens = backbone.vision.blocks[0], torch.randn(1, 5, 64)
    attention = block.attn
    normal = block.ln_1(tokens)
    values = torch.nn.functional.linear(normal, attention.in_proj_weight[128:], attention.in_proj_bias[128:])
    expected = torch.tensor(naive.vv_attention(values[0].tolist()))  # a single head
    _, value = dual_block(block, tokens, tokens)
    torch.testing.assert_close(value[0] - tokens[0], attention.out_proj(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
    {"steps": 0},
    {},
    {"mask_loss": "all", "similarity_loss": "mse", "similarity_weight": 2.0, "residual": 0.2},
    {"normalise_residual": True, "start": "zero", "n_references": 2, "alpha": 0.8, "beta": 0.2},
])  # fmt: skip
def test_scores_and_maps_equal_loops(tmp_path: Path, changes: dict[str, Any]) -> None:
    """All equations together, on 4 patches of 16 channels."""
    backbone = ClipBackbone(small_config(tmp_path), "random", image_size=None)
    model = DualImageCLIP(backbone, seed=3, learning_rate=0.02, temperature=0.1, **changes)
    batch = paired(2, model.pairing.n_references, size=28)
    prediction, text = score(model, batch), model.text(batch.samples)
    features = model.extract(batch)
    altered, anomalous = model.synthesise(batch)
    unit = torch.nn.functional.normalize if model.normalise_residual else lambda tokens, dim: tokens
    start = torch.cat([model.adapter.weight.flatten(), model.adapter.bias]).tolist()
    for i in range(2):
        image, *patches = (
            part[i].double().tolist()
            for part in (
                features.image_embedding,
                unit(model.patches(features), dim=-1),
                unit(model.patches(altered), dim=-1),
                *(model.patches(reference) for reference in references_of(batch).unbind(1)),
            )
        )
        clean, noisy, *references = patches
        words = text[i].tolist()
        visual = naive.reference_scores(clean, references)
        joint = naive.joint_scores(naive.text_scores(clean, *words, 0.1), visual, model.alpha)
        if model.adapter.steps:

            def loss(parameters: Any) -> float:
                adapted, changed = (
                    naive.text_scores([naive.adapt(t, parameters, model.adapter.residual) for t in tokens], *words, 0.1)  # noqa: B023
                    for tokens in (clean, noisy)  # noqa: B023
                )
                terms = naive.mask_loss(changed, anomalous[i].tolist(), model.mask_loss)  # noqa: B023
                return terms + model.similarity_weight * naive.similarity_loss(adapted, joint, model.similarity_loss)  # noqa: B023

            trained = naive.adamw(loss, start, model.adapter.steps, 0.02, 0.01)
            adapted = [naive.adapt(token, trained, model.adapter.residual) for token in clean]
            moved = naive.joint_scores(naive.text_scores(adapted, *words, 0.1), visual, model.alpha)
            assert max(abs(a - b) for a, b in zip(moved, joint, strict=True)) > 1e-3
            joint = moved
        expected = naive.image_score(naive.text_score(image, *words, 0.1), joint, model.beta)
        torch.testing.assert_close(prediction.pred_score[i], torch.tensor(expected), rtol=0, atol=1e-4)
        upsampled = pool_and_upsample(torch.tensor(joint).reshape(1, 2, 2), 28)[0]
        torch.testing.assert_close(prediction.anomaly_map[i], upsampled, rtol=0, atol=1e-4)


# --- what a result may depend on --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_image_scores_the_same_in_any_batch(model: DualImageCLIP) -> None:
    batch = of(model)
    expected = score(model, batch)
    again = score(model, batch)
    assert torch.equal(again.anomaly_map, expected.anomaly_map)  # nothing is kept from one batch to the next
    order = [2, 0, 5, 3, 1, 4]
    check_equal(score(model, take(batch, order)), expected, order)
    for i in range(6):
        check_equal(score(model, take(batch, [i])), expected, [i])


def test_either_may_be_first_of_a_pair(make: Callable[..., DualImageCLIP]) -> None:
    batch = take(paired(4), [0, 2])
    assert torch.equal(references_of(batch)[0, 0], batch.image[1])
    model = make()
    first = score(model, batch)
    check_equal(score(model, take(batch, [1, 0])), first, [1, 0])


def test_the_reference_matters_and_not_its_label(make: Callable[..., DualImageCLIP]) -> None:
    batch = paired()
    first = score(make(), batch)
    relabelled = [replace(sample, label=1 - sample.label) for sample in batch.samples]
    assert torch.equal(score(make(), replace(batch, samples=relabelled)).pred_score, first.pred_score)
    other = score(make(), compared_with(batch, references_of(batch).flip(-1)))
    assert (other.anomaly_map - first.anomaly_map).abs().max() > 1e-3


def test_an_image_as_its_own_reference_has_no_distance(make: Callable[..., DualImageCLIP]) -> None:
    batch = paired()
    alone = score(make(alpha=1.0, beta=1.0, steps=0), compared_with(batch, batch.image[:, None]))
    torch.testing.assert_close(alone.anomaly_map, torch.zeros_like(alone.anomaly_map), rtol=0, atol=1e-5)


def test_more_references_are_one_memory(make: Callable[..., DualImageCLIP]) -> None:
    batch = paired(6, 2)
    assert batch.reference_rows is not None
    only = {"alpha": 1.0, "beta": 1.0, "steps": 0}
    model = make(n_references=2, **only)
    singles = [score(model, replace(batch, reference_rows=one[:, None])) for one in batch.reference_rows.unbind(1)]
    both = score(model, batch)
    assert (both.pred_score <= torch.stack([s.pred_score for s in singles]).amin(0) + 1e-6).all()
    swapped = score(model, replace(batch, reference_rows=batch.reference_rows.flip(1)))
    check_equal(swapped, both)


def test_without_reference_weight_and_adaptation_it_is_the_text_score(make: Callable[..., DualImageCLIP]) -> None:
    model, batch = make(alpha=0.0, steps=0), paired()
    features, text = model.extract(batch), model.text(batch.samples)
    patches = model.text_score(model.patches(features), text)
    image = model.text_score(features.image_embedding[:, None], text)[:, 0]
    expected = AnomalyPrediction(
        0.5 * image + 0.5 * patches.amax(1), pool_and_upsample(patches.unflatten(1, features.grid), 56)
    )
    check_equal(score(model, batch), expected)


def test_adaptation_that_does_nothing_equals_none(make: Callable[..., DualImageCLIP]) -> None:
    batch = paired()
    none = score(make(steps=0), batch)
    check_equal(score(make(start="zero", learning_rate=0.0), batch), none)  # by the whole path of the adaptation
    moved = score(make(start="zero", learning_rate=0.1), batch)
    assert (moved.anomaly_map - none.anomaly_map).abs().max() > 1e-3
    torch.testing.assert_close(score(make(steps=0, seed=9), batch).anomaly_map, none.anomaly_map, rtol=0, atol=0)


def test_the_anomaly_is_each_images_own_and_seeded(make: Callable[..., DualImageCLIP]) -> None:
    batch, model = paired(), make()
    images, anomalous = model.synthesise(batch)
    again, same = model.synthesise(take(batch, [3, 1]))
    assert torch.equal(again, images[[3, 1]])
    assert torch.equal(same, anomalous[[3, 1]])
    assert (anomalous.sum(1) >= model.synthesis.min_patches).all()
    assert len({str(row.tolist()) for row in anomalous}) > 1
    assert not torch.equal(make(seed=1).synthesise(batch)[0], images)
    outside = anomalous.unflatten(1, (4, 4)).repeat_interleave(14, 1).repeat_interleave(14, 2)
    unchanged = (images == batch.image).all(1)
    assert (~unchanged & outside).any()
    whole = (~unchanged).reshape(-1, 4, 14, 4, 14).double().mean((2, 4)).flatten(1)
    assert (whole[anomalous] >= 0.25 * 0.9).all()  # a texture may leave a pixel as it was


def test_an_image_is_encoded_once_and_again_for_the_adaptation(make: Callable[..., DualImageCLIP]) -> None:
    whole = paired(6, 2)
    assert whole.reference_rows is not None
    half = take(whole, [0, 1])
    half.reference, half.reference_rows = whole.image[2:], whole.reference_rows[:2]  # rows 0 and 1 are as before
    counts = {}
    for batch, of in ((whole, "whole"), (half, "half")):
        for steps in (0, 1, 5):
            model, passes = make(steps=steps, n_references=2), []
            handle = model.backbone.vision.visual.conv1.register_forward_hook(lambda m, i, o: passes.append(len(o)))  # noqa: B023
            score(model, batch)
            handle.remove()
            counts[of, steps] = passes
    assert {steps: counts["whole", steps] for steps in (0, 1, 5)} == {0: [6], 1: [6, 6], 5: [6, 6]}
    assert {steps: counts["half", steps] for steps in (0, 1, 5)} == {0: [2, 4], 1: [2, 4, 2], 5: [2, 4, 2]}


def test_results_are_float32_in_mixed_precision(model: DualImageCLIP) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = score(model, of(model))
    assert prediction.pred_score.dtype == prediction.anomaly_map.dtype == torch.float32
    assert prediction.anomaly_map.isfinite().all()


# --- under a trainer --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("inference_mode", [True, False])
def test_test_and_predict_give_what_score_gives(
    tmp_path: Path, make: Callable[..., DualImageCLIP], inference_mode: bool
) -> None:
    model = make()
    data = data_of(tmp_path, model)
    trainer = trainer_of(tmp_path, enable_checkpointing=False, inference_mode=inference_mode)
    predicted = trainer.predict(model, data)
    assert predicted is not None
    assert data.pairing == model.pairing
    for batch, prediction in zip(data.test_dataloader(), predicted, strict=True):
        assert batch.reference_rows is not None
        check_equal(prediction, score(model, batch))
    trainer.test(model, data, verbose=False)
    assert model.text.kept == {}
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.slow
def test_batch_size_and_company_do_not_change_a_run(tmp_path: Path, make: Callable[..., DualImageCLIP]) -> None:
    maps = []
    for size in (1, 3, 8):
        model = make()
        data = data_of(tmp_path, model)
        data.batch_size = size
        predicted = trainer_of(tmp_path, enable_checkpointing=False).predict(model, data)
        maps.append(torch.cat([prediction.anomaly_map for prediction in predicted]))
    for other in maps[1:]:
        torch.testing.assert_close(other, maps[0], rtol=0, atol=1e-6)


def test_too_few_images_stop_the_run_before_it_reads_any(tmp_path: Path, make: Callable[..., DualImageCLIP]) -> None:
    model = make(n_references=4)
    with pytest.raises(DatasetError, match="n_references is 4, but set/cap has 4 test images"):
        trainer_of(tmp_path, enable_checkpointing=False).test(model, data_of(tmp_path, model), verbose=False)


def test_a_batch_without_references_is_refused(make: Callable[..., DualImageCLIP]) -> None:
    with pytest.raises(ValueError, match=r"no reference images.*give the trainer the data module"):
        score(make(), replace(paired(), reference=None))


def run(folder: Path, *extra: str) -> int:
    options = {
        "config": str(Path(__file__).parents[2] / "configs/dual_image_mvtec.yaml"),
        "out": str(folder / "run"),
        "model.backbone.model": small_config(folder),
        "model.backbone.weights": "random",
        "model.backbone.image_size": "28",
        "data.root": str(folder / "set"),
        "data.num_workers": "0",
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
    }
    return main(["test", *(f"--{key}={value}" for key, value in options.items()), *extra])


@pytest.mark.slow
def test_a_run_records_its_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mvtec(tmp_path / "set", ["carpet", "metal_nut"])
    assert run(tmp_path, "--data.categories=[carpet,metal_nut]", "--model.seed=5") == 0
    (carpet, nut) = json.loads((tmp_path / "run/pairs.json").read_text())
    assert (carpet["category"], nut["category"], nut["seed"]) == ("carpet", "metal_nut", 5)
    assert len(nut["references"]) == 4
    assert "mean of 2" in capsys.readouterr().out


@pytest.mark.slow
def test_a_category_of_one_image_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "set/carpet/test/good/000.png")
    (tmp_path / "set/carpet/ground_truth").mkdir()
    assert run(tmp_path, "--data.categories=[carpet]") == 2
    assert "mvtec/carpet has 1 test image: each needs 1 others" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_of_textures_that_is_not_there_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mvtec(tmp_path / "set", ["carpet"])
    textures = ["--model.synthesis=DraemSynthesis", "--model.synthesis.textures=FolderTextures"]
    textures += [f"--model.synthesis.textures.folder={tmp_path / 'dtd'}"]
    assert run(tmp_path, "--data.categories=[carpet]", *textures) == 2
    assert "dtd is not a folder. Set `folder`" in capsys.readouterr().err
    write_image(tmp_path / "dtd/banded/000.png")
    assert run(tmp_path, "--data.categories=[carpet]", *textures) == 0


@pytest.mark.parametrize(("changes", "message"), [
    ({"n_references": 0}, "n_references must be at least 1, got 0"),
    ({"alpha": 1.5}, "alpha and beta must be 0 to 1, got 1.5"),
    ({"beta": -0.1}, "alpha and beta must be 0 to 1"),
    ({"temperature": 0.0}, "temperature must be positive"),
    ({"mask_loss": "bce"}, "mask_loss must be one of anomalous, all, got 'bce'"),
    ({"similarity_loss": "l1"}, "similarity_loss must be one of cosine, mse, got 'l1'"),
    ({"vv_from": 4}, "vv_layers must rise within 4 to 3"),
])  # fmt: skip
def test_arguments_out_of_range(backbone: ClipBackbone, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DualImageCLIP(backbone, **changes)
