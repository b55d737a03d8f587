"""MRAD against numbers recorded from the official code (see `golden/README.md`)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.schedule import cosine
from afclip_lightning.components.scoring import upsample
from afclip_lightning.methods.mrad import MEMORY, MRAD
from afclip_lightning.types import Batch, Sample
from tests.support.recipe import GOLDEN, images, value
from tests.support.rounding import Check, compare

pytestmark = pytest.mark.slow

FILE = "mrad.npz"
STORED = np.load(GOLDEN / FILE)
SIZE = 70
OFFICIAL = {  # our tensors by the official names; the biases of the keys are not there
    "mrad.patch_proj.fc.0.weight": "patch_query.weight",
    "mrad.patch_proj.fc.0.bias": "patch_query.bias",
    "mrad.patch_proj.fc.1.weight": "patch_key.weight",
    "mrad.image_proj.mlp1.weight": "image_query.weight",
    "mrad.image_proj.mlp1.bias": "image_query.bias",
    "mrad.image_proj.mlp2.weight": "image_key.weight",
}
LR = 4e-4


def batch_of(image: Tensor, mask: Tensor | None = None) -> Batch:
    mask = torch.zeros(len(image), SIZE, SIZE, dtype=torch.uint8) if mask is None else mask
    label = mask.amax((1, 2)).long()
    samples = [Sample("golden", "x", "test", Path(f"{i}.png"), int(one)) for i, one in enumerate(label)]
    return Batch(image, mask, label, torch.ones(len(image), dtype=torch.bool), samples)


TEST = batch_of(images())
AUXILIARY = batch_of(
    images("mrad.aux", list(STORED["aux_noise"]), list(STORED["aux_pattern"])),
    torch.from_numpy(STORED["aux_masks"][:, 0]).byte(),
)


def mrad(backbone: ClipBackbone, **arguments: Any) -> MRAD:
    """Returns the method with the recipe's values and the memory of the auxiliary images."""
    model = MRAD(backbone, **arguments)
    if model.variant == "FT":
        for theirs, ours in OFFICIAL.items():
            parameter = model.get_parameter(ours)
            parameter.data.copy_(value(theirs, tuple(parameter.shape)))
    model.keep_keys(model.keys_of(model.extract(AUXILIARY), AUXILIARY))
    return model


def of_label(level: str, label: int) -> np.ndarray:
    """Returns the rows of the recorded memory that have a label."""
    return np.flatnonzero(STORED[f"bank.{level}_values"][:, label])


def keys_of(model: MRAD, level: str) -> Tensor:
    """Returns the keys in the recorded order."""
    normal, anomalous = (
        getattr(model, f"{kind}_{level}{'es' if level == 'patch' else 's'}") for kind in ("normal", "anomalous")
    )
    order = np.argsort(np.concatenate([of_label(level, 0), of_label(level, 1)]))
    return torch.cat([normal, anomalous])[torch.from_numpy(order)]


@pytest.fixture(scope="module")
def backbone(golden_backbones: dict[int, ClipBackbone]) -> ClipBackbone:
    return golden_backbones[64]


def test_features_and_memory(backbone: ClipBackbone) -> None:
    compare(features_and_memory, backbone, FILE)


@torch.no_grad()
def features_and_memory(backbone: ClipBackbone, check: Check) -> None:
    model = mrad(backbone, variant="TF")
    features = model.extract(TEST)
    check(backbone.vision.normalise(features.vv_tokens[0][:, 1:]), "patch_tokens_24")
    check(model.patches(features), "patch_aggregated")
    assert features.class_token is not None
    check(backbone.project(features.class_token, final_norm=False), "image_feature_raw")
    image, patches = model.queries(features)
    check(patches, "patch_query")
    for level, query in (("image", image), ("patch", patches)):
        check(keys_of(model, level), f"bank.{level}_keys")
        check(query @ keys_of(model, level).T, f"{level}_sim")


def of_test(model: MRAD, check: Check, prefix: str) -> None:
    """Compares the results of the test script."""
    with torch.no_grad():
        features = model.extract(TEST)
        image, patches = model.probabilities(model.queries(features))
        prediction = model.score(features, TEST)
    check(image, f"{prefix}.image_prob", np.s_[:, 1])
    check(patches, f"{prefix}.patch_prob", np.s_[..., 1])
    check(upsample(patches.unflatten(1, features.grid), SIZE)[:, ::3, ::3], f"{prefix}.map_up")
    check(prediction.anomaly_map[:, ::3, ::3], f"{prefix}.map_final")
    check(prediction.anomaly_map.mean((1, 2)), f"{prefix}.map_final_mean")
    check(prediction.anomaly_map.amax((1, 2)), f"{prefix}.map_final_max")
    check(prediction.pred_score, f"{prefix}.image_score")


def test_retrieval_without_training(backbone: ClipBackbone) -> None:
    compare(lambda backbone, check: of_test(mrad(backbone, variant="TF"), check, "tf"), backbone, FILE)


def test_retrieval_with_linear_maps(backbone: ClipBackbone) -> None:
    compare(with_linear_maps, backbone, FILE)


@torch.no_grad()
def with_linear_maps(backbone: ClipBackbone, check: Check) -> None:
    model = mrad(backbone)
    of_test(model, check, "ft0")
    query = model.patch_query(model.queries(model.extract(TEST)).patches)
    bias = value("mrad.patch_proj.fc.1.bias", (48,)).to(query)  # of the keys: one number for all keys of a query
    similarity = query @ (model.patch_key(keys_of(model, "patch")) + bias).T
    check(similarity, "ft0.patch_sim_projected")


def test_two_training_steps(backbone: ClipBackbone) -> None:
    compare(two_training_steps, backbone, FILE)


def two_training_steps(backbone: ClipBackbone, check: Check) -> None:
    model = mrad(backbone)
    optimizer = model.configure_optimizers()
    assert optimizer is not None
    features = model.extract(AUXILIARY)
    for number in (1, 2):
        for group in optimizer.param_groups:
            group["lr"] = cosine(LR, 1e-6, (number - 1) / 2)
            assert group["lr"] == pytest.approx(float(STORED[f"step{number}.lr"]), rel=1e-6)
        image, patches = model.probabilities(model.queries(features), hide=True)
        check(image, f"step{number}.image_prob", np.s_[:, 1])
        check(patches, f"step{number}.patch_prob", np.s_[..., 1])
        losses = model.loss(features, AUXILIARY)
        for name, term in losses.items():
            check(term, f"step{number}.loss.{name}")
        optimizer.zero_grad()
        losses["total"].backward()
        for theirs, ours in OFFICIAL.items():
            gradient = model.get_parameter(ours).grad
            assert gradient is not None
            check(gradient.norm(), f"step{number}.grad_norm.{theirs}")
            check(gradient.flatten()[:16], f"step{number}.grad16.{theirs}")
        optimizer.step()
        for theirs, ours in OFFICIAL.items():
            check(model.get_parameter(ours).norm(), f"step{number}.param_norm.{theirs}")
            check(model.get_parameter(ours).flatten()[:16], f"step{number}.param16.{theirs}")
    of_test(model, check, "ft2")


def test_the_number_of_parameters_is_that_of_the_paper_without_the_biases_of_the_keys(backbone: ClipBackbone) -> None:
    model, (width, embedding) = MRAD(backbone), (64, 48)
    official = 2 * (width * embedding + embedding) + 2 * (embedding**2 + embedding)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == official - 2 * embedding
    assert set(MEMORY) == model.learnt_names() - model.trainable_names()
