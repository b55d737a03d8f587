"""A head with a memory: equal to the rule in plain steps, a constant head has no effect, arguments."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.scoring import upsample
from afclip_lightning.methods.head_with_memory import HeadWithMemory
from afclip_lightning.methods.patch_rarity import PatchRarity
from afclip_runtime.errors import UserError
from tests.support.methods import batch_of, fit_noise, score, take

LAYERS = (2, 5)


def fitted(backbone: ClipBackbone, shots: int = 3, **arguments: Any) -> HeadWithMemory:
    model = HeadWithMemory(backbone, **{"layers": LAYERS, "k_shot": shots, **arguments})
    fit_noise(model, shots)
    return model


def patches_of(model: HeadWithMemory, image: torch.Tensor) -> list[torch.Tensor]:
    spec = model.backbone.spec(LAYERS)
    return [F.normalize(t[:, 1:].double(), dim=-1) for t in model.backbone.encode_image(image, spec).tokens]


def test_scores_and_maps_are_the_rule_in_plain_steps(tiny: ClipBackbone) -> None:
    model = fitted(tiny, smoothing=0.0, head="PatchRarity", head_arguments={"layers": [8]}, head_weight=0.3)
    batch = take(batch_of(), [0])
    few_shot = batch_of(3, tiny.image_size, 1).image  # as `fit_noise` draws them
    total = torch.zeros(tiny.grid[0] * tiny.grid[1], dtype=torch.float64)
    for query, memory in zip(patches_of(model, batch.image), patches_of(model, few_shot), strict=True):
        distance = (1 - (query[0] @ memory.flatten(0, 1).T).amax(dim=1)) / 2
        out = []
        for i in range(3):
            others = torch.cat([memory[j] for j in range(3) if j != i])
            out.append((1 - (memory[i] @ others.T).amax(dim=1)) / 2)
        usual = torch.cat(out)
        total += (distance - usual.mean()) / usual.std() / len(LAYERS)
    head = PatchRarity(tiny, layers=(8,))
    of_normal, of_image = (
        F.avg_pool2d(head.score(head.extract(one), one).anomaly_map[:, None], tiny.vision.patch_size).flatten(1)
        for one in (batch_of(3, tiny.image_size, 1), batch)
    )
    total += 0.3 * ((of_image[0] - of_normal.mean()) / of_normal.std()).double()
    scores, maps = score(model, batch)
    torch.testing.assert_close(scores[0].double(), total.max(), rtol=1e-3, atol=1e-3)
    expected = upsample(total.unflatten(0, tiny.grid)[None].float(), tiny.image_size)
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-3)


def test_the_filter_lowers_a_lonely_patch(tiny: ClipBackbone) -> None:
    batch = batch_of()
    sharp, smooth = (score(fitted(tiny, smoothing=s), batch) for s in (0.0, 1.0))
    assert (smooth[0] < sharp[0]).all()
    assert smooth[1].std() < sharp[1].std()


def test_copies_of_one_image_make_no_score_infinite(tiny: ClipBackbone) -> None:
    model, one = HeadWithMemory(tiny, layers=LAYERS, k_shot=2), take(batch_of(), [0])
    model.fit_memory(("d", "a"), one.image.repeat(2, 1, 1, 1))
    scores, maps = score(model, one)
    assert scores.isfinite().all()
    assert maps.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k_shot": 0}, "k_shot must be at least 1"),
        ({"smoothing": -1.0}, "smoothing must not be negative, got -1.0"),
        ({"head_weight": -1.0}, "head_weight must not be negative"),
        ({"head": "NoHead"}, "there is no head 'NoHead'; there are AACLIP, AFCLIP"),
        ({"head": "HeadWithMemory"}, "there is no head 'HeadWithMemory'"),
        ({"head": "NearestNeighbours", "head_arguments": {"layers": [2]}}, "cannot score an image alone"),
        ({"head": "MuSc", "head_arguments": {"layers": [2]}}, "cannot score an image alone"),
    ],
)
def test_bad_arguments_are_refused(tiny: ClipBackbone, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeadWithMemory(tiny, **{"layers": LAYERS, **arguments})


def test_a_wrong_argument_of_the_head_is_named(tiny: ClipBackbone) -> None:
    with pytest.raises(UserError, match=r"PatchRarity: .*shares"):
        HeadWithMemory(tiny, layers=LAYERS, head="PatchRarity", head_arguments={"layers": [2], "shares": 1})


def test_layers_are_spread_over_the_tower(tiny: ClipBackbone) -> None:
    assert HeadWithMemory(tiny).spec.layers == (2, 4, 6, 8)
