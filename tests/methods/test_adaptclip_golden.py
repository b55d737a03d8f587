"""AdaptCLIP against numbers recorded from the official code (see `golden/README.md`)."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.losses import map_losses
from afclip_lightning.components.scoring import upsample
from afclip_lightning.distributed import batch_mean
from afclip_lightning.methods.adaptclip import AdaptCLIP
from afclip_lightning.types import Batch, ClipFeatures, Sample
from tests.support.recipe import GOLDEN, REFERENCE_NOISE, REFERENCE_PATTERN, images, normal, value
from tests.support.rounding import Check, compare

pytestmark = pytest.mark.slow

FILE = "adaptclip.npz"
STORED = np.load(GOLDEN / FILE)
INPUTS = np.load(GOLDEN / "anomalyclip.npz")  # of the same images
SIZE, WIDTH, TOKENS = 70, 16, 12
KEY = ("golden", "golden")
REFERENCES = images("input.reference", REFERENCE_NOISE, REFERENCE_PATTERN)
BATCH = Batch(
    image=images(),
    mask=torch.from_numpy(INPUTS["masks"][:, 0]),
    label=torch.from_numpy(INPUTS["labels"]),
    mask_known=torch.ones(3, dtype=torch.bool),
    samples=[Sample(*KEY, "test", Path("golden.png"), 0)] * 3,
    reference=REFERENCES,
    reference_rows=3 + torch.tensor([[0], [1], [0]]),  # image i beside reference i mod 2
)


def names_of_parts() -> dict[str, str]:
    """Returns the official names of our parts; the recorded names are neutral."""
    names = {"learnt_texts.normal_tokens": "textual.ctx_pos", "learnt_texts.abnormal_tokens": "textual.ctx_neg"}
    for ours, theirs in {"patch": "local", "image": "global"}.items():
        parts = {"layers.0": "down", "layers.1": "bn", "layers.3": "up"}
        names |= {f"{ours}_adapter.{part}": f"visual.{theirs}.{name}" for part, name in parts.items()}
    names |= {f"comparison.norms.{layer}": f"pq.layer_bn.{layer}" for layer in range(4)}
    local = {0: "conv1", 1: "bn1", 3: "up1", 4: "conv2", 5: "bn2", 7: "up2", 8: "out"}
    overall = {0: "fc1", 1: "bn1", 3: "fc2", 4: "bn2", 6: "fc3"}
    names |= {f"comparison.local.{part}": f"pq.local.{name}" for part, name in local.items()}
    return names | {f"comparison.overall.{part}": f"pq.global.{name}" for part, name in overall.items()}


def official(name: str) -> str:
    """Returns the recorded name of one of our tensors."""
    part = next(part for part in NAMES if name.startswith(part))
    return f"adaptclip.{NAMES[part]}{name.removeprefix(part)}"


NAMES = names_of_parts()


def initial(name: str, shape: tuple[int, ...]) -> Tensor:
    """Returns the recipe's value of an official tensor."""
    leaf = name.rsplit(".", 1)[-1]
    if name.endswith("bn.weight") or ".bn" in name or ".layer_bn" in name:
        offset, scale = (1.0, 0.1) if leaf == "weight" else (0.0, 0.02)
    elif ".up1." in name or ".up2." in name:
        offset, scale = 0.0, 1 / math.sqrt(shape[0]) if leaf == "weight" else 0.02
    else:
        return value(name, shape)
    return torch.tensor(offset + scale * normal(name, shape), dtype=torch.float32)


def adaptclip(backbone: ClipBackbone, **arguments: Any) -> AdaptCLIP:
    """Returns the method with the recipe's values, and the two references in its memory."""
    model = AdaptCLIP(backbone, width=WIDTH, k_shot=2, **arguments)
    for name in sorted(model.trainable_names()):
        parameter = model.get_parameter(name)
        shape = (1, *parameter.shape) if name.startswith("learnt_texts") else tuple(parameter.shape)
        parameter.data.copy_(initial(official(name), shape).reshape(parameter.shape))
    model.fit_memory(KEY, REFERENCES)
    return model


@torch.no_grad()
def features_of(model: AdaptCLIP, batch: Batch = BATCH) -> ClipFeatures:
    """Returns features with the V-V path's own class tokens, as the official code has them in its statistics."""
    features = model.extract(batch)
    assert model.spec.vv_from is not None
    walk = model.backbone.vision._walk(batch.image, model.spec.vv_from, 24, None)
    own = {number: value for number, _, value in walk}
    return replace(features, vv_tokens=tuple(own[number] for number in model.spec.vv_layers))


@pytest.fixture(scope="module")
def backbone(golden_backbones: dict[int, ClipBackbone]) -> ClipBackbone:
    return golden_backbones[64]


def test_features_and_texts(backbone: ClipBackbone) -> None:
    compare(features_and_texts, backbone, FILE)


@torch.no_grad()
def features_and_texts(backbone: ClipBackbone, check: Check) -> None:
    model = adaptclip(backbone)
    features = features_of(model)
    assert features.class_token is not None
    check(backbone.project(features.class_token, final_norm=False), "image_feature_raw")
    projected = torch.stack([backbone.project(tokens) for tokens in features.vv_tokens])
    check(projected[:, :, ::4, ::2], "patch_tokens_projected_sample")
    check(model.learnt_texts(backbone), "learned_text_raw")
    fixed = model.embed_text()[1]
    raw = torch.from_numpy(STORED["static_text_raw"]).to(fixed)
    torch.testing.assert_close(fixed, raw / raw.norm(dim=-1, keepdim=True), rtol=0, atol=1e-5)


def test_adapters(backbone: ClipBackbone) -> None:
    compare(adapters, backbone, FILE)


@torch.no_grad()
def adapters(backbone: ClipBackbone, check: Check) -> None:
    model = adaptclip(backbone).eval()
    features = features_of(model)
    tokens = model.projected(features)
    said = model.beside_texts(features, tokens[-1], model.embed_text())
    for name, one in zip(("visual", "textual"), said, strict=True):
        check(one.image, f"eval.{name}_logits")
        check(upsample(one.places, SIZE)[:, ::3, ::3], f"eval.{name}_map")
    for name in ("pq", "pq_nocontext"):
        model.comparison.context = name == "pq"
        compared, distances = model.compared(tokens, BATCH.keys, features.grid)
        check(torch.stack([one.image for one in compared]), f"eval.{name}_logits")
        check(torch.stack([upsample(one.places, SIZE)[:, ::6, ::6] for one in compared]), f"eval.{name}_map")
    check(torch.stack([upsample(one, SIZE)[:, ::6, ::6] for one in distances]), "eval.align_map")


def of_test(model: AdaptCLIP, check: Check) -> None:
    """Compares the results of the test script, without and with few-shot images."""
    model.eval()
    with torch.no_grad():
        for k_shot, name in ((0, "zero"), (2, "shot2")):
            model.k_shot = k_shot
            prediction = model.score(features_of(model), BATCH)
            check(prediction.anomaly_map[:, ::3, ::3], f"{name}.map_final")
            check(prediction.anomaly_map.mean((1, 2)), f"{name}.map_final_mean")
            check(prediction.anomaly_map.amax((1, 2)), f"{name}.map_final_max")
            check(prediction.pred_score, f"{name}.image_score")


def test_two_training_steps_and_a_test(backbone: ClipBackbone) -> None:
    compare(two_training_steps, backbone, FILE)


def two_training_steps(backbone: ClipBackbone, check: Check) -> None:
    model = adaptclip(backbone).train()
    optimizer = model.configure_optimizers()
    assert optimizer is not None
    features = features_of(model)
    for number in (1, 2):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        each = [(said.image, upsample(said.places, SIZE)) for said in model.adapters(features, BATCH)]
        model.load_state_dict(before, strict=False)  # another pass must find the statistics as this one
        maps = [map_losses(pixels, BATCH.mask) for _, pixels in each]
        entropies = [
            batch_mean(torch.nn.functional.cross_entropy(image, BATCH.label, reduction="none")) for image, _ in each
        ]
        check(torch.stack([one["focal"] for one in maps]), f"step{number}.loss.focal_visual_textual_pq4")
        dice = [one[name] for one in maps for name in ("dice_abnormal", "dice_normal")]
        check(torch.stack(dice), f"step{number}.loss.dice_abn_nor_pairs")
        check(torch.stack(entropies), f"step{number}.loss.ce_visual_textual_pq4")
        losses = model.loss(features, BATCH)
        check(losses["image_ce"], f"step{number}.loss.global")
        check(losses["focal"] + losses["dice_abnormal"] + losses["dice_normal"], f"step{number}.loss.local")
        optimizer.zero_grad()
        losses["total"].backward()
        for name in sorted(model.trainable_names()):
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            check(gradient.norm(), f"step{number}.grad_norm.{official(name)}")
            if number == 1:
                check(gradient.flatten()[:16], f"step1.grad16.{official(name)}")
        optimizer.step()
    for name in sorted(model.trainable_names()):
        check(model.get_parameter(name).norm(), f"step2.param_norm.{official(name)}")
        check(model.get_parameter(name).flatten()[:16], f"step2.param16.{official(name)}")
    for name in sorted(model.learnt_names() - model.trainable_names()):
        check(model.get_buffer(name).flatten()[:16], f"step2.buffer16.{official(name)}")
    of_test(model, check)


def test_the_number_of_parameters_is_that_of_the_official_code(backbone: ClipBackbone) -> None:
    model = AdaptCLIP(backbone, width=WIDTH)
    parts = (
        model.learnt_texts,
        torch.nn.ModuleList([model.image_adapter, model.patch_adapter]),
        model.comparison,
    )
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert counts == STORED["param_count_textual_visual_pq"].tolist()
