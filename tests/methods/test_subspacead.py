"""SubspaceAD: moments add up, parts equal a whole, batched zero-shot, errors."""

from pathlib import Path

import numpy as np
import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.subspace import Moments, SubspaceBank, residual
from afclip_lightning.methods.subspacead import SubspaceAD, small_blur
from afclip_lightning.types import AnomalyPrediction
from afclip_runtime.errors import DatasetError, UserError
from tests.support.clips import small_config
from tests.support.methods import batch_of, data_of, fit_noise, score, trainer_of

KEY = ("d", "a")


def small(folder: Path, **arguments: object) -> SubspaceAD:
    torch.manual_seed(0)
    backbone = ClipBackbone(small_config(folder), "random", image_size=None)
    return SubspaceAD(backbone, **{"layers": [1, 3], "rotations": 1, **arguments})  # type: ignore[arg-type]


def test_moments_add_up() -> None:
    vectors = torch.randn(40, 5, dtype=torch.float64) + 3
    parts = Moments.of(vectors[:7]) + Moments.of(vectors[7:8]) + Moments.of(vectors[8:])
    assert parts.count == 40
    torch.testing.assert_close(parts.mean, vectors.mean(0))
    torch.testing.assert_close(parts.scatter / 39, vectors.T.cov())
    centred = vectors - 1.0
    torch.testing.assert_close(Moments.of(vectors).about(torch.ones(5).double()).scatter, centred.T @ centred)


@pytest.mark.parametrize(("explained_variance", "count"), [(0.5, 1), (0.95, 2), (1.0, 5)])
def test_the_fewest_axes_with_a_share_of_the_variance(explained_variance: float, count: int) -> None:
    vectors = torch.randn(500, 5, dtype=torch.float64) * torch.tensor([10.0, 5.0, 1.0, 0.5, 0.1])
    mean, axes = Moments.of(vectors).subspace(explained_variance)
    assert axes.shape == (count, 5)
    torch.testing.assert_close(axes @ axes.T, torch.eye(count), rtol=0, atol=1e-6)
    expected = [
        np.sum((x - sum((x @ axis) * axis for axis in axes.double().numpy())) ** 2)
        for x in (vectors[:8] - mean.double()).numpy()
    ]
    found = residual(vectors[:8], mean, axes)
    torch.testing.assert_close(found.double(), torch.tensor(expected), rtol=1e-4, atol=1e-3)


def test_equal_patches_have_a_subspace() -> None:
    mean, axes = Moments.of(torch.ones(6, 3)).subspace(0.99)
    assert residual(torch.ones(2, 3), mean, axes).abs().max() < 1e-12


def test_images_in_parts_give_the_subspace_of_the_whole(tmp_path: Path) -> None:
    model = small(tmp_path, rotations=0)
    images = batch_of(4, 28).image
    model.fit_memory(KEY, images)
    whole = model.memory.banks[KEY]
    model.memory.fit_parts(KEY, [[images[:1]], [images[1:2], images[2:]]], model.fit_memory)
    mean, axes = model.memory.banks[KEY]
    torch.testing.assert_close(mean, whole[0])
    torch.testing.assert_close(axes.T @ axes, whole[1].T @ whole[1], rtol=0, atol=1e-5)


def test_copies_are_drawn_by_the_seed_and_not_for_every_category(tmp_path: Path) -> None:
    image, means = batch_of(2, 28).image, []
    for seed, category in ((0, "a"), (0, "a"), (1, "a"), (0, "transistor"), (1, "transistor")):
        model = small(tmp_path, shot_seed=seed)
        model.fit_memory(("d", category), image)
        means.append(model.memory.banks["d", category][0])
    assert torch.equal(means[0], means[1])
    assert torch.equal(means[3], means[4])
    assert not torch.equal(means[0], means[2])
    assert not torch.equal(means[0], means[3])
    twice = small(tmp_path, two_draws=True)
    twice.fit_memory(KEY, image)
    assert torch.equal(twice.memory.banks[KEY][0], means[0])  # the mean is that of the first draw


def test_what_is_far_from_normal_patches_scores_high(tiny: ClipBackbone) -> None:
    model, batch = SubspaceAD(tiny, layers=[4, 6], k_shot=2, rotations=2), batch_of()
    with pytest.raises(DatasetError, match="k_shot is set, but there are no normal images"):
        score(model, batch)
    fit_noise(model)
    plain, _ = score(model, batch)
    batch.image[0, :, :40, :40] = 5.0
    marked, maps = score(model, batch)
    assert marked[0] > plain[0]
    assert torch.equal(marked[1:], plain[1:])
    assert maps[0, :30, :30].mean() > maps[0, 60:].mean()


@pytest.mark.slow
def test_batched_zero_shot_takes_all_test_images(tmp_path: Path) -> None:
    model = small(tmp_path, k_shot=0)
    with pytest.raises(DatasetError, match="needs all test images"):
        score(model, batch_of(2, 28))
    data = data_of(tmp_path, model)
    found = trainer_of(tmp_path).predict(model, data)
    maps = torch.cat([one.anomaly_map for one in found or [] if isinstance(one, AnomalyPrediction)])
    assert not model.memory.banks  # they are gone with the pass
    patches = [model.patches(model.extract(batch)) for batch in data.test_dataloader()]
    samples = data.samples("test")
    rows = torch.cat(patches)
    for category in ("cap", "nut"):
        chosen = [i for i, sample in enumerate(samples) if sample.category == category]
        mean, axes = Moments.of(rows[chosen].flatten(0, 1)).subspace(0.99)
        expected = residual(rows[chosen], mean, axes).mean()
        assert maps[chosen].mean().item() == pytest.approx(expected.item(), rel=0.3)  # bilinear, at the borders


def test_the_blur_is_nearly_a_mean_and_mirrors_the_border() -> None:
    maps = torch.zeros(1, 5, 5)
    maps[0, 0, 0] = 1
    blurred = small_blur(maps)[0]
    assert blurred[0, 0].item() == pytest.approx(0.3403**2, abs=1e-4)
    assert blurred[1, 1].item() == pytest.approx(0.3298**2, abs=1e-4)
    torch.testing.assert_close(small_blur(torch.ones(2, 4, 6)), torch.ones(2, 4, 6))


def test_a_subspace_cannot_be_adapted() -> None:
    bank = SubspaceBank(0.99)
    bank.fit_moments(KEY, Moments.of(torch.randn(9, 3)))
    with pytest.raises(UserError, match="a subspace cannot leave out one of its few-shot images"):
        bank.to_tensors(KEY)
    with pytest.raises(UserError, match="a subspace cannot leave out"):
        bank.without(KEY, [0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": []}, "layers must name at least one block"),
        ({"k_shot": -1}, "k_shot must not be negative"),
        ({"rotations": -1}, "rotations must not be negative"),
        ({"explained_variance": 0.0}, "explained_variance and top_pixels must be in"),
        ({"top_pixels": 1.5}, "explained_variance and top_pixels must be in"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(tmp_path, **arguments)
