"""APRIL-GAN: names in prompts, few-shot ranges, arguments, sizes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.methods.aprilgan import APRILGAN
from afclip_lightning.types import Batch
from afclip_runtime.errors import CheckpointError, DatasetError
from tests.support.clips import small_config
from tests.support.methods import batch_of, data_of, saved, score, take, train_step, trainer_of, with_masks

LAYERS = (2, 4, 6, 8)


@pytest.fixture
def small(tmp_path: Path) -> ClipBackbone:
    return ClipBackbone(small_config(tmp_path), "random", image_size=None)


def named(batch: Batch, category: str, class_name: str) -> Batch:
    return replace(batch, samples=[replace(s, category=category, class_name=class_name) for s in batch.samples])


@pytest.mark.slow
def test_trainable_parameters_at_vit_l_14(tmp_path: Path) -> None:
    """787,200 per layer: they depend on the widths only."""
    vision = {"image_size": 336, "layers": 4, "width": 1024, "patch_size": 14}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    config = small_config(tmp_path, "widths-of-l14", embed_dim=768, vision_cfg=vision, text_cfg=text)
    model = APRILGAN(ClipBackbone(config, "random", image_size=None), layers=(1, 2, 3, 4))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 4 * (1024 * 768 + 768)


@pytest.mark.slow
def test_prompts_name_the_category_or_the_class_name(tiny: ClipBackbone) -> None:
    raw, plain = (named(batch_of(2), "metal_nut", name).samples for name in ("metal nut", "metal_nut"))
    category, by_class = APRILGAN(tiny, layers=LAYERS), APRILGAN(tiny, layers=LAYERS, names="class_name")
    assert torch.equal(category.text(raw), by_class.text(plain))
    by_class.text.reset()
    assert not torch.allclose(category.text(raw), by_class.text(raw))


@pytest.mark.slow
def test_a_batch_without_any_mask_trains_nothing(tiny: ClipBackbone) -> None:
    model, batch = APRILGAN(tiny, layers=LAYERS), batch_of(2)
    optimizer = model.configure_optimizers()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = train_step(model, optimizer, with_masks(batch, [False, False]))
    assert losses["total"] == 0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.slow
def test_few_shot_scores_are_scaled_over_the_category(tiny: ClipBackbone) -> None:
    model, batch = APRILGAN(tiny, layers=LAYERS, k_shot=1), batch_of()
    zero_shot = APRILGAN(tiny, layers=LAYERS)
    zero_shot.load_state_dict(model.state_dict(), strict=False)
    plain_scores, plain_maps = score(zero_shot, batch)
    with pytest.raises(DatasetError, match=r"no normal images for d/[ab]"):
        score(model, batch)
    for key, row in ((("d", "a"), 0), (("d", "b"), 1)):
        model.fit_memory(key, batch.image[row : row + 1])
    with pytest.raises(DatasetError, match=r"image_0\.png.*no map of d/a was measured"):
        score(model, batch)
    with torch.no_grad():
        model.ranges = model.measure([take(batch, [0, 1]), take(batch, [2, 3])])
        at_once = model.measure([batch])
    for key, limits in model.ranges.items():
        assert limits == pytest.approx(at_once[key], rel=1e-5)
    scores, maps = score(model, batch)
    torch.testing.assert_close(maps[:2], plain_maps[:2], rtol=0, atol=1e-4)  # no distance to themselves
    assert (maps[2:] > plain_maps[2:] + 1e-3).all()
    for first, second in ((0, 2), (1, 3)):  # of two, one has the lowest maximum and one the highest
        lower, upper = sorted((first, second), key=lambda i: maps[i].max().item())
        torch.testing.assert_close(scores[lower], plain_scores[lower] / 2)
        torch.testing.assert_close(scores[upper], plain_scores[upper] / 2 + 0.5)


@pytest.mark.slow
def test_an_image_alone_in_its_category_scores_as_the_lowest(tiny: ClipBackbone) -> None:
    model, batch = APRILGAN(tiny, layers=LAYERS, k_shot=1), batch_of(1)
    model.fit_memory(("d", "a"), batch.image)
    with torch.no_grad():
        model.ranges = model.measure([batch])
    assert score(model, batch)[0] == score(APRILGAN(tiny, layers=LAYERS), batch)[0] / 2


def test_a_run_selects_measures_and_resets(tmp_path: Path, small: ClipBackbone) -> None:
    torch.manual_seed(0)
    model = APRILGAN(small, layers=(1, 3), k_shot=2)
    data = data_of(tmp_path, model)
    predictions = trainer_of(tmp_path, enable_checkpointing=False).predict(model, data)
    scores = torch.cat([p.pred_score for p in predictions])
    maxima = torch.cat([p.anomaly_map.amax((1, 2)) for p in predictions])
    categories = [sample.category for batch in data.test_dataloader() for sample in batch.samples]
    zero_shot = APRILGAN(small, layers=(1, 3))
    images = torch.cat(
        [p.pred_score for p in trainer_of(tmp_path, enable_checkpointing=False).predict(zero_shot, data)]
    )
    for category in ("cap", "nut"):
        rows = [i for i, c in enumerate(categories) if c == category]
        scaled = (maxima[rows] - maxima[rows].min()) / (maxima[rows].max() - maxima[rows].min())
        torch.testing.assert_close(scores[rows], (images[rows] + scaled) / 2)
    assert not model.ranges
    assert not model.memory.banks
    assert not model.text.kept
    with pytest.raises(TypeError, match="give the trainer a datamodule"):
        trainer_of(tmp_path, enable_checkpointing=False).test(model, data.test_dataloader(), verbose=False)


@pytest.mark.parametrize(
    "arguments", [{"k_shot": -1}, {"layers": (9,)}, {"temperature": 0.0}, {"names": "folder"}, {"layers": (4, 2)}]
)
def test_bad_arguments_are_refused(tiny: ClipBackbone, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        APRILGAN(tiny, **{"layers": LAYERS, **arguments})


def test_checkpoint_refuses_other_names_and_takes_another_memory(tmp_path: Path, small: ClipBackbone) -> None:
    checkpoint = saved(APRILGAN(small, layers=(1, 3)), tmp_path)
    with pytest.raises(CheckpointError, match="names: 'category' in the checkpoint, 'class_name' here"):
        APRILGAN(small, layers=(1, 3), names="class_name").on_load_checkpoint(checkpoint)
    APRILGAN(small, layers=(1, 3), k_shot=2).on_load_checkpoint(checkpoint)
