"""AnomalyDINO: masks on a grid and a column, copies and their owners, batched zero-shot, errors."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.foreground import first_component, foreground
from afclip_lightning.components.retrieval import nearest
from afclip_lightning.methods.anomalydino import AnomalyDINO, batched_distances
from afclip_lightning.types import AnomalyPrediction
from afclip_runtime.errors import DatasetError
from tests.support.clips import small_config
from tests.support.methods import batch_of, data_of, fit_noise, score, trainer_of

KEY = ("d", "a")


def small(folder: Path, **arguments: object) -> AnomalyDINO:
    torch.manual_seed(0)
    backbone = ClipBackbone(small_config(folder), "random", image_size=None)
    return AnomalyDINO(backbone, **{"rotations": 4, **arguments})  # type: ignore[arg-type]


def test_the_component_is_that_of_a_decomposition() -> None:
    patches = torch.randn(3, 20, 6) * torch.tensor([1.0, 5.0, 1, 1, 1, 1]) + 2
    for found, one in zip(first_component(patches), patches, strict=True):
        _, _, axes = torch.linalg.svd(one - one.mean(0), full_matrices=False)
        axis = axes[0] * axes[0][axes[0].abs().argmax()].sign()
        torch.testing.assert_close(found, (one - one.mean(0)) @ axis, rtol=0, atol=1e-4)


def test_a_mask_takes_the_direction_that_fills_the_middle_and_grows_by_a_patch() -> None:
    component = torch.full((10, 10), -1.0)
    component[3:7, 3:7] = 20.0
    expected = torch.zeros(10, 10, dtype=torch.bool)
    expected[2:8, 2:8] = True
    for sign in (1, -1):
        found = foreground((sign * component).flatten()[None], (10, 10), 10.0)[0].unflatten(0, (10, 10))
        assert torch.equal(found, expected)


def test_a_column_leaks_over_the_ends_of_rows() -> None:
    component = torch.full((4, 5), -1.0)
    component[1:3, 1:5] = 20.0  # up to the right border
    grid, column = (foreground(component.flatten()[None], (4, 5), 10.0, way)[0] for way in ("grid", "column"))  # type: ignore[arg-type]
    assert grid.unflatten(0, (4, 5)).all()
    assert column.unflatten(0, (4, 5)).int().tolist() == [[0] * 5, [1] * 5, [1] * 5, [1, 0, 0, 0, 0]]


def test_copies_belong_to_their_image(tmp_path: Path) -> None:
    model = small(tmp_path)
    model.fit_memory(KEY, batch_of(3, 28).image)
    (bank,), (owner,), patches = model.memory.banks[KEY], model.memory.owners[KEY], 4
    assert bank.shape[0] == 3 * 4 * patches
    assert owner.tolist() == [image for image in range(3) for _ in range(4 * patches)]
    assert len(model.memory.without(KEY, [1]).banks["", ""][0]) == 2 * 4 * patches
    alone = small(tmp_path, rotated=["screw"])
    alone.fit_memory(KEY, batch_of(3, 28).image)
    assert len(alone.memory.banks[KEY][0]) == 3 * patches


def test_what_is_not_the_product_is_at_no_distance(tiny: ClipBackbone) -> None:
    batch, found = batch_of(), []
    for masked in ([], ["a"], ["*"]):
        model = AnomalyDINO(tiny, k_shot=2, rotations=1, masked=masked, mask_threshold=4.0, map_sigma=0.0)
        fit_noise(model)
        found.append(score(model, batch)[1])
    plain, first, every = found
    assert torch.equal(first[1::2], plain[1::2])  # of the other category
    assert torch.equal(first[::2], every[::2])
    assert (every == 0).any()
    assert not (plain == 0).any()


def test_masked_references_are_fewer(tiny: ClipBackbone) -> None:
    sizes = []
    for masked in (False, True):
        model = AnomalyDINO(tiny, rotations=2, masked=["*"], mask_threshold=4.0, mask_references=masked)
        model.fit_memory(KEY, batch_of(2).image)
        sizes.append(len(model.memory.banks[KEY][0]))
        assert len(model.memory.owners[KEY][0]) == sizes[-1]
    assert 0 < sizes[1] < sizes[0]


def test_batched_distances_equal_loops() -> None:
    unit = F.normalize(torch.randn(3, 40, 6), dim=-1)
    found = batched_distances(unit, 0.1)
    for image in range(3):
        others = torch.cat([unit[i] for i in range(3) if i != image]).double()
        for patch in range(40):
            distances = sorted((1 - others @ unit[image, patch].double()).tolist())
            limit = distances[int(0.1 * 80) - 1]
            below = [one for one in distances if one < limit]
            assert found[image, patch].item() == pytest.approx(sum(below) / len(below), abs=1e-6)
    same = F.normalize(torch.ones(2, 3, 4), dim=-1)
    assert batched_distances(same, 0.001).abs().max() < 1e-6  # none is nearer than the others
    assert len(nearest(unit[0], unit[1], 40)[0]) == 40


@pytest.mark.slow
def test_batched_zero_shot_compares_with_all_others(tmp_path: Path) -> None:
    model = small(tmp_path, k_shot=0, map_sigma=0.0)
    with pytest.raises(DatasetError, match="has no results for this image"):
        score(model, batch_of(2, 28))
    data = data_of(tmp_path, model)
    found = [one for one in trainer_of(tmp_path).predict(model, data) or [] if isinstance(one, AnomalyPrediction)]
    assert not model.known  # it is gone with the pass
    scores, samples = torch.cat([one.pred_score for one in found]), data.samples("test")
    features = [
        AnomalyDINO.patches(model, super(AnomalyDINO, model).extract(batch)) for batch in data.test_dataloader()
    ]
    unit = F.normalize(torch.cat(features), dim=-1)
    for category in ("cap", "nut"):
        chosen = [i for i, sample in enumerate(samples) if sample.category == category]
        expected = batched_distances(unit[chosen], 0.001).amax(dim=1)
        torch.testing.assert_close(scores[chosen], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k_shot": -1}, "k_shot must not be negative"),
        ({"morphology": "row"}, "morphology must be one of grid, column"),
        ({"rotations": 0}, "rotations and neighbours must be at least 1"),
        ({"neighbour_share": 0.0}, "neighbour_share and top_patches must be in"),
        ({"top_patches": 2.0}, "neighbour_share and top_patches must be in"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(tmp_path, **arguments)
