"""Properties of all few-shot methods, and of arguments that many methods share."""

import inspect
from typing import Any

import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.engine.factory import methods
from afclip_lightning.methods.base import AnomalyMethod
from afclip_runtime.errors import DatasetError
from tests.support.cases import CASES
from tests.support.methods import batch_of, fit_noise, score

ARGUMENTS = {name: list(inspect.signature(cls).parameters) for name, cls in methods().items()}
FIRST = {name: next(iter(case.tiny.values())) for name, case in CASES.items() if case.tiny}


def built(name: str, backbone: ClipBackbone, arguments: dict[str, Any]) -> AnomalyMethod:
    torch.manual_seed(0)
    return methods()[name](backbone, **{**FIRST[name], **arguments})


@pytest.mark.parametrize("name", [name for name in FIRST if "memory_weight" in ARGUMENTS[name]])
def test_the_memory_adds_the_weighted_distance(name: str, tiny: ClipBackbone) -> None:
    model: Any = built(name, tiny, {"k_shot": 2, "map_sigma": 0.0})
    batch = batch_of()
    with pytest.raises(DatasetError, match=r"no normal images for d/[ab]"):
        score(model, batch)
    fit_noise(model)
    scores, maps = score(model, batch)
    distance = model.memory.mean_distance(batch.keys, model.extract(batch).tokens)
    model.k_shot = 0
    plain_scores, plain_maps = score(model, batch)
    torch.testing.assert_close(scores, plain_scores + distance.amax(dim=1))
    assert (maps >= plain_maps - 1e-6).all()
    assert (maps > plain_maps + 1e-4).any()
    model.k_shot, model.memory_weight = 2, 0.0
    torch.testing.assert_close(score(model, batch)[1], plain_maps)


WRONG = {"k_shot": (-1, "k_shot"), "map_sigma": (-1.0, "map_sigma"), "memory_weight": (-0.1, "memory_weight")} | {
    "layers": ((), "layers must name at least one block"),
    "temperature": (0.0, "temperature"),
    "top_patches": (0, "top_patches"),
}


@pytest.mark.parametrize(
    ("name", "argument"), [(name, one) for name in FIRST for one in WRONG if one in ARGUMENTS[name]]
)
def test_wrong_arguments_are_refused(name: str, argument: str, tiny: ClipBackbone) -> None:
    value, message = WRONG[argument]
    with pytest.raises(ValueError, match=message):
        built(name, tiny, {argument: value})
