"""Nearest neighbours: equal to loops, 0 on the fitted images, high on different ones, arguments."""

from pathlib import Path
from typing import Any

import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.scoring import upsample
from afclip_lightning.methods.nearest_neighbours import NearestNeighbours
from afclip_runtime.errors import DatasetError
from tests.reference import neighbours_naive as naive
from tests.support.clips import small_config
from tests.support.methods import batch_of, data_of, fit_noise, score, take, trainer_of

LAYERS = (2, 5, 8)


def fitted(backbone: ClipBackbone, shots: int = 2, **arguments: Any) -> NearestNeighbours:
    """Returns the method with other random images in the memory of both categories."""
    model = NearestNeighbours(backbone, **{"layers": LAYERS, "k_shot": shots, **arguments})
    fit_noise(model, shots)
    return model


def test_scores_and_maps_equal_loops(tmp_path: Path) -> None:
    backbone = ClipBackbone(small_config(tmp_path), "random", image_size=None)
    model, batch = fitted(backbone, layers=(1, 3)), batch_of(4, backbone.image_size)
    features = model.extract(batch)
    scores, maps = score(model, batch)
    for i, sample in enumerate(batch.samples):
        few_shot = batch_of(2, backbone.image_size, 1 + "ab".index(sample.category)).image
        memory = [t[:, 1:].flatten(0, 1).double().numpy() for t in backbone.encode_image(few_shot, model.spec).tokens]
        expected = torch.tensor(
            naive.nearest([t[i, 1:].double().numpy() for t in features.tokens], memory), dtype=torch.float64
        )
        torch.testing.assert_close(scores[i].double(), expected.max(), rtol=0, atol=1e-6)
        patches = upsample(expected.unflatten(0, features.grid)[None], [backbone.image_size] * 2)[0]
        torch.testing.assert_close(maps[i], patches, rtol=0, atol=1e-6)


def test_what_the_bank_holds_is_at_no_distance_and_a_foreign_square_is(tiny: ClipBackbone) -> None:
    model, batch = NearestNeighbours(tiny, layers=LAYERS, k_shot=1), take(batch_of(), [0])
    model.fit_memory(("d", "a"), batch.image)
    scores, _ = score(model, batch)
    torch.testing.assert_close(scores, torch.zeros(1), rtol=0, atol=1e-6)
    batch.image[..., 32:64, 48:80] = 3.0
    foreign_scores, foreign_maps = score(model, batch)
    assert foreign_scores > 100 * scores.abs().clamp(min=1e-6)
    inside = foreign_maps[0, 32:64, 48:80]
    assert inside.mean() > 3 * (foreign_maps.sum() - inside.sum()) / (foreign_maps.numel() - inside.numel())


def test_a_larger_memory_brings_no_patch_farther(tiny: ClipBackbone) -> None:
    batch = batch_of()
    few, many = (score(fitted(tiny, shots), batch)[1] for shots in (1, 3))
    assert (many <= few + 1e-6).all()
    assert (many < few - 1e-4).any()


def test_a_run_draws_its_memory_and_gives_what_score_gives(tmp_path: Path) -> None:
    backbone = ClipBackbone(small_config(tmp_path), "random", image_size=None)
    model = NearestNeighbours(backbone, layers=(1, 3), k_shot=1)
    data = data_of(tmp_path, model)
    trainer = trainer_of(tmp_path, enable_checkpointing=False)
    predictions = trainer.predict(model, datamodule=data)
    assert not model.memory.banks
    assert {key: len(samples) for key, samples in model.memory.few_shot.items()} == {
        ("set", "cap"): 1,
        ("set", "nut"): 1,
    }
    for batch, prediction in zip(data.predict_dataloader(), predictions, strict=True):
        again = score(model, batch)
        torch.testing.assert_close(prediction.pred_score, again[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(prediction.anomaly_map, again[1], rtol=0, atol=1e-6)


def test_a_category_without_normal_images_is_named(tiny: ClipBackbone) -> None:
    with pytest.raises(DatasetError, match=r"no normal images for d/[ab]"):
        score(NearestNeighbours(tiny, layers=LAYERS), batch_of())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": (9,)}, "layers must rise within 1 to 8"),
        ({"k_shot": 0}, "k_shot must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(tiny: ClipBackbone, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NearestNeighbours(tiny, **{"layers": LAYERS, **arguments})
