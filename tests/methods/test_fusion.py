"""A fusion: the rule in plain steps, its fit, storage and combinations, and rejected heads."""

from pathlib import Path
from typing import Any

import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.methods.fusion import Fusion
from afclip_lightning.methods.head_with_memory import HeadWithMemory
from afclip_runtime.errors import DatasetError, UserError
from tests.support.layouts import write_image
from tests.support.methods import batch_of, data_of, fit_noise, score, take, trainer_of

RARITY: dict[str, Any] = {"method": "PatchRarity", "arguments": {"layers": [4, 8]}}
WORDS: dict[str, Any] = {"method": "CLIP"}
AFCLIP: dict[str, Any] = {"method": "AFCLIP", "arguments": {"layers": [2, 6], "adapter_heads": 2}}


def said(model: Fusion, count: int, seed: int) -> torch.Tensor:
    batch = batch_of(count, seed=seed)
    return model.eval().statistics_of(model.extract(batch), batch)


def test_scores_and_maps_are_the_rule_in_plain_steps(tiny: ClipBackbone) -> None:
    model, batch = Fusion(tiny, [RARITY, WORDS], weights=[1.0, 3.0]).eval(), batch_of(3)
    model.take_normal([said(model, 4, 1), said(model, 3, 2)])
    scores, maps = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 112, 112, dtype=torch.float64)
    for head, weight in zip(model.members, (0.25, 0.75), strict=True):
        found = []
        for count, seed in ((4, 1), (3, 2)):
            normal = batch_of(count, seed=seed)
            found.append([one.double() for one in score(head, normal)])
        every = [torch.cat(kind) for kind in zip(*found, strict=True)]
        spread = sum(((kind - kind.mean()) ** 2).sum() for kind, _ in found) / (4 + 3 - 2)
        pixels = sum(((kind - kind.mean()) ** 2).sum() for _, kind in found) / every[1].numel()
        one = score(head, batch)
        scores += weight * (one[0] - every[0].mean()) / spread**0.5
        maps += weight * (one[1] - every[1].mean()) / pixels**0.5
    got = score(model, batch)
    torch.testing.assert_close(got[0].double(), scores, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(got[1].double(), maps, rtol=1e-3, atol=1e-4)


def test_what_differs_between_categories_is_no_noise(tiny: ClipBackbone) -> None:
    model = Fusion(tiny, [RARITY, WORDS])
    one, other = torch.rand(5, 2, 3, dtype=torch.float64), torch.rand(5, 2, 3, dtype=torch.float64)
    one[..., 2] += one[..., 1] ** 2
    other[..., 2] += other[..., 1] ** 2
    model.take_normal([one, other])
    scale = model.scale.clone()
    other[..., 2] += 2 * 7 * other[..., 1] + 7**2  # all values of the maps are 7 higher
    other[..., :2] += 7
    model.take_normal([one, other])
    torch.testing.assert_close(model.scale, scale)


def test_scores_do_not_depend_on_the_batch(tiny: ClipBackbone) -> None:
    torch.manual_seed(0)
    model, batch = Fusion(tiny, [RARITY, AFCLIP]), batch_of()
    model.take_normal([said(model, 4, 1)])
    scores, maps = score(model, batch)
    assert all(torch.equal(*pair) for pair in zip(score(model, batch), (scores, maps), strict=True))
    for rows in ([2, 0, 3, 1], [1]):
        part = score(model, take(batch, rows))
        torch.testing.assert_close(part[0], scores[rows], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(part[1], maps[rows], rtol=1e-4, atol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = score(model, batch)
    assert {values.dtype for values in mixed} == {torch.float32}
    assert all(values.isfinite().all() for values in mixed)


@pytest.mark.slow
def test_fit_takes_the_scales_from_normal_images_and_trains_nothing(tmp_path: Path, tiny: ClipBackbone) -> None:
    model = Fusion(tiny, [RARITY, WORDS])
    data, trainer = data_of(tmp_path, model), trainer_of(tmp_path)
    for number in (1, 2):
        write_image(tmp_path / f"set/nut/test/good/{number:03}.png")
    trainer.fit(model, data)
    assert trainer.global_step == 0
    (dataset,) = data.training_sets
    groups: dict[Any, list[torch.Tensor]] = {}
    model.eval()
    for batch in dataset.ordered_loader(dataset.train_split, training=True):
        for row, sample in enumerate(batch.samples):
            if sample.label == 0:
                one = take(batch, [row])
                groups.setdefault(batch.keys[row], []).append(model.statistics_of(model.extract(one), one))
    assert len(groups) == 2
    again = Fusion(tiny, [RARITY, WORDS])
    again.take_normal([torch.cat(group) for group in groups.values()])
    torch.testing.assert_close(model.scale, again.scale, rtol=1e-3, atol=0)
    torch.testing.assert_close(model.location, again.location, rtol=1e-3, atol=0)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    kept = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert set(kept["state_dict"]) == {"location", "scale"}
    again = Fusion(tiny, [RARITY, WORDS])
    again.on_load_checkpoint(kept)
    again.load_state_dict(kept["state_dict"], strict=False)
    batch = batch_of()
    assert all(torch.equal(*pair) for pair in zip(score(model, batch), score(again, batch), strict=True))


def test_fit_refuses_heads_that_have_to_be_trained(tmp_path: Path, tiny: ClipBackbone) -> None:
    model = Fusion(tiny, [RARITY, AFCLIP])
    with pytest.raises(UserError, match=r"AFCLIP has to be trained: .*`head fuse`"):
        trainer_of(tmp_path, enable_checkpointing=False).fit(model, data_of(tmp_path, model))


def test_a_fusion_stands_beside_a_memory(tiny: ClipBackbone) -> None:
    model = HeadWithMemory(tiny, layers=(4,), k_shot=3, head="Fusion", head_arguments={"heads": [RARITY, WORDS]})
    fit_noise(model, 3)
    scores, maps = score(model, batch_of())
    assert scores.isfinite().all()
    assert maps.std() > 0


def test_too_few_or_equal_normal_images_are_refused(tiny: ClipBackbone) -> None:
    model = Fusion(tiny, [RARITY, WORDS])
    rows = said(model, 3, 1)
    with pytest.raises(DatasetError, match="at least two normal images of one category"):
        model.take_normal([rows[:1], rows[1:2]])
    with pytest.raises(UserError, match="PatchRarity, head 1, gives all normal images the same score or map"):
        model.take_normal([rows[:1].expand(3, -1, -1)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": [RARITY]}, "two or more heads, got 1"),
        ({"heads": [RARITY, {"name": "CLIP"}]}, "each needs the name of a method"),
        ({"heads": [RARITY, {"method": "NoHead"}]}, "there is no head 'NoHead'"),
        (
            {"heads": [RARITY, {"method": "NearestNeighbours", "arguments": {"layers": [2]}}]},
            "cannot score an image alone",
        ),
        ({"heads": [RARITY, {"method": "MuSc", "arguments": {"layers": [2]}}]}, "cannot score an image alone"),
        (
            {"heads": [{"method": "MRAD", "arguments": {"layer": 8, "vv_from": start}} for start in (2, 3)]},
            "V-V paths from blocks 2 and 3",
        ),
        ({"heads": [RARITY, WORDS], "weights": [1.0]}, "weights must be 2 positive numbers"),
        ({"heads": [RARITY, WORDS], "weights": [1.0, 0.0]}, "weights must be 2 positive numbers"),
    ],
)
def test_bad_arguments_are_refused(tiny: ClipBackbone, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fusion(tiny, **arguments)
