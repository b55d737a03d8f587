"""AdaptCLIP: the shared statistics, the drawn normal images, the state of the head, arguments."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.batch_norm import SharedBatchNorm
from afclip_lightning.components.memory import MemoryBank
from afclip_lightning.components.prompt_images import PromptImages
from afclip_lightning.data.loading_options import Loading
from afclip_lightning.methods.adaptclip import AdaptCLIP, harmonic_mean
from afclip_lightning.types import Sample
from afclip_runtime.errors import DatasetError
from tests.support.clips import small_config
from tests.support.methods import batch_of, data_of, fit_noise, score, take, train_step, trainer_of, with_prompts

KEY = ("d", "a")


def small(folder: Path, **arguments: Any) -> AdaptCLIP:
    torch.manual_seed(0)
    backbone = ClipBackbone(small_config(folder), "random", image_size=None)
    return AdaptCLIP(backbone, **{"layers": (2, 3), "vv_from": 2, "width": 8, **arguments})


def samples_of(folder: Path, labels: list[int], category: str = "a", split: str = "test") -> list[Sample]:
    folder.mkdir(exist_ok=True)
    found = []
    for number, label in enumerate(labels):
        path = folder / f"{category}-{split}-{number}.png"
        Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(path)
        found.append(Sample("d", category, "train" if split == "train" else "test", path, label))
    return found


@pytest.mark.parametrize(("ours", "torchs"), [((7, 5), nn.BatchNorm1d), ((3, 5, 2, 4), nn.BatchNorm2d)])
def test_shared_statistics_of_one_process_are_those_of_torchs_layer(ours: tuple[int, ...], torchs: Any) -> None:
    layer, other = SharedBatchNorm(5), torchs(5)
    for parameter, its in zip(layer.parameters(), other.parameters(), strict=True):
        parameter.data.copy_(torch.randn(5))
        its.data.copy_(parameter)
    for _ in range(3):
        values = torch.randn(ours) * 3 + 1
        own, its = values.clone().requires_grad_(), values.clone().requires_grad_()
        found, expected = layer(own), other(its)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        direction = torch.randn(ours)
        (found * direction).sum().backward()
        (expected * direction).sum().backward()
        torch.testing.assert_close(own.grad, its.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(layer.running_mean, other.running_mean)
        torch.testing.assert_close(layer.running_var, other.running_var)
    torch.testing.assert_close(layer.eval()(values), other.eval()(values), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1])
def test_a_value_alone_is_normalised_by_the_running_statistics(count: int) -> None:
    layer = SharedBatchNorm(3)
    layer.running_mean += 2
    layer.running_var *= 4
    before = layer.running_mean.clone(), layer.running_var.clone()
    values = torch.full((count, 3), 6.0, requires_grad=True)
    found = layer(values)
    torch.testing.assert_close(found, torch.full((count, 3), 2.0))
    found.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.full((count, 3), 0.5))
    assert torch.equal(layer.running_mean, before[0])
    assert torch.equal(layer.running_var, before[1])


def test_the_nearest_patch_is_that_of_the_smallest_distance() -> None:
    memory = MemoryBank()
    memory.fit(KEY, [torch.randn(2, 1 + 6, 4)])
    tokens = torch.randn(3, 1 + 5, 4)
    found = memory.nearest([KEY] * 3, 0, tokens)
    own = torch.nn.functional.normalize(tokens[:, 1:], dim=-1)
    torch.testing.assert_close((1 - (own * found).sum(-1)) / 2, memory.distance([KEY] * 3, 0, tokens))
    rows = {tuple(row) for row in memory.banks[KEY][0].tolist()}
    assert {tuple(row) for row in found.flatten(0, 1).tolist()} <= rows


def prompts_of(backbone: ClipBackbone, trained: list[Sample], normal: list[Sample], seed: int = 0) -> PromptImages:
    return PromptImages(trained, normal, backbone.preprocess, Loading(), seed)


def test_prompts_are_drawn_by_seed_epoch_and_image(tmp_path: Path) -> None:
    backbone = small(tmp_path).backbone
    trained = samples_of(tmp_path / "x", [0, 1, 1])
    normal = samples_of(tmp_path / "x", [0] * 5, split="train")
    prompts = prompts_of(backbone, trained, normal)
    drawn = [[prompts.draw(sample, epoch) for sample in trained] for epoch in range(40)]
    assert drawn == [[prompts.draw(sample, epoch) for sample in trained] for epoch in range(40)]
    counts = Counter(sample.image_path for row in drawn for sample in row)
    assert set(counts) == {sample.image_path for sample in normal}
    assert min(counts.values()) > 120 / 5 / 3  # uniform, up to chance
    assert len({tuple(map(str, row)) for row in drawn}) > 20
    other = prompts_of(backbone, trained, normal, seed=1)
    assert drawn != [[other.draw(sample, epoch) for sample in trained] for epoch in range(40)]


def test_without_a_training_split_the_other_normal_images_serve(tmp_path: Path) -> None:
    backbone = small(tmp_path).backbone
    trained = samples_of(tmp_path / "x", [0, 0, 1]) + samples_of(tmp_path / "x", [0, 1], category="b")
    prompts = prompts_of(backbone, trained, [])
    for epoch in range(5):
        drawn = [prompts.draw(sample, epoch) for sample in trained]
        assert drawn[:2] == [trained[1], trained[0]]
        assert drawn[2] in trained[:2]
        assert drawn[3:] == [trained[3]] * 2  # the only normal image of its category is its own prompt
    with pytest.raises(DatasetError, match=r"no normal image to compare the training images of d/c with"):
        prompts_of(backbone, trained + samples_of(tmp_path / "x", [1], category="c"), [])


def test_each_prompt_is_read_once_a_step(tmp_path: Path) -> None:
    backbone = small(tmp_path).backbone
    trained = samples_of(tmp_path / "x", [1] * 6)
    normal = samples_of(tmp_path / "x", [0] * 2, split="train")
    prompts = prompts_of(backbone, trained, normal)
    (batch,), rows = prompts.read(trained, 0, None)
    assert len(batch.image) == 2
    assert [batch.samples[row] for row in rows] == [prompts.draw(sample, 0) for sample in trained]


def test_a_batch_may_bring_its_normal_images(tmp_path: Path) -> None:
    model, batch = small(tmp_path).eval(), batch_of(4, 28)
    noise = batch_of(4, 28, seed=9).image
    outside = replace(batch, reference=noise[:1], reference_rows=torch.full((4, 1), 4))
    inside = replace(batch, image=torch.cat([noise[:1], batch.image[1:]]))
    with torch.no_grad():
        expected = [said.image for said in model.adapters(model.extract(batch), outside)]
        rows = replace(inside, reference=noise[:0], reference_rows=torch.zeros(4, 1, dtype=torch.int64))
        found = [said.image for said in model.adapters(model.extract(inside), rows)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one[1:], other[1:])
    with pytest.raises(TypeError, match="trains with normal reference images"):
        model.loss(model.extract(batch), batch)


def test_the_harmonic_mean_is_zero_where_a_value_is() -> None:
    found = harmonic_mean([torch.tensor([0.0, 1.0, 0.5]), torch.tensor([1.0, 1.0, 0.25])])
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 1 / 3]))


def test_images_of_unknown_label_are_in_no_statistics(tmp_path: Path) -> None:
    """They only fill up the last step of several processes."""
    found = []
    for count in (3, 4):
        model = with_prompts(small(tmp_path)).train()
        batch = take(batch_of(4, 28), list(range(count)))
        if count == 4:
            samples = [*batch.samples[:3], replace(batch.samples[3], label=-1, mask_known=False)]
            label, known = torch.tensor([0, 1, 0, -1]), torch.tensor([True] * 3 + [False])
            batch = replace(batch, samples=samples, label=label, mask_known=known)
        losses = model.loss(model.extract(batch), batch)
        found.append(
            [losses["total"], *(model.get_buffer(n) for n in sorted(model.learnt_names() - model.trainable_names()))]
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_checkpoint_keeps_the_statistics(tmp_path: Path) -> None:
    model = small(tmp_path, k_shot=1)
    data, trainer = data_of(tmp_path, model), trainer_of(tmp_path)
    trainer.fit(model, data)
    images = getattr(model.prompts, "__self__", None)
    assert isinstance(images, PromptImages)
    assert set(images.normal) == {("set", "cap"), ("set", "nut")}
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=True)
    again = small(tmp_path, k_shot=1)
    again.on_load_checkpoint(checkpoint)
    again.load_state_dict(checkpoint["state_dict"], strict=False)
    statistics = {name for name in checkpoint["state_dict"] if "running" in name}
    assert len(statistics) == 2 * (2 + 2 + 4)
    untouched = small(tmp_path).state_dict()
    assert all(not torch.equal(checkpoint["state_dict"][name], untouched[name]) for name in statistics)
    batch = batch_of(2, 28)
    for one in (model, again):
        fit_noise(one, 1)
    for found, expected in zip(score(again, batch), score(model, batch), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.slow
def test_a_head_serves_without_and_with_any_number_of_few_shot_images(tmp_path: Path) -> None:
    model, batch, found = small(tmp_path), batch_of(4, 28), []
    optimizer = model.configure_optimizers()
    assert optimizer is not None
    train_step(model, optimizer, batch)
    for shots in (0, 1, 3):
        model.k_shot = shots
        if shots:
            fit_noise(model, shots)
        scores, maps = score(model, batch)
        assert maps.shape == (4, 28, 28)
        assert float(maps.min()) >= 0
        assert float(maps.max()) <= 4 / 3 + 1e-6  # 2 / (1 / 1 + 1 / 2): a probability and a distance
        found.append((scores, maps))
    for (scores, maps), (others, other_maps) in pairwise(found):
        assert not torch.equal(scores, others)
        assert not torch.equal(maps, other_maps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": []}, "layers must name at least one block"),
        ({"width": 5}, "width must be an even number"),
        ({"reduction": 0}, "reduction at least 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"k_shot": -1}, "k_shot must not be negative"),
        ({"map_sigma": -1.0}, "map_sigma must not be negative"),
        ({"prompt_tokens": 90}, "must fit in the context length"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(tmp_path, **arguments)
