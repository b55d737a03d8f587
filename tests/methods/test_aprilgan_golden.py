"""APRIL-GAN against numbers recorded from the official code (see `golden/README.md`)."""

import hashlib

import numpy as np
import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.positional import resize_positional_embedding
from afclip_lightning.components.losses import dice_loss, two_class_focal_loss
from afclip_lightning.components.scoring import upsample
from afclip_lightning.methods.aprilgan import APRILGAN
from afclip_lightning.prompts.templates import APRILGAN_ABNORMAL, APRILGAN_NORMAL, APRILGAN_TEMPLATES, sentences
from tests.support.recipe import GOLDEN
from tests.support.recipe_baselines import NETWORKS, WIDTH, batch_of, image, make_backbone, value
from tests.support.rounding import Check, compare

pytestmark = pytest.mark.slow

FILE = "aprilgan.npz"
STORED = np.load(GOLDEN / FILE)
SIZE = int(STORED["image_size"])
KEY = ("golden", "metal_nut")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> ClipBackbone:
    return make_backbone(tmp_path_factory.mktemp("aprilgan"), "L14")


def aprilgan(backbone: ClipBackbone, k_shot: int = 0) -> APRILGAN:
    """Returns the method with the recipe's values."""
    model = APRILGAN(backbone, k_shot=k_shot)
    for name, parameter in model.linear.named_parameters():
        scale = 0.02 if name.endswith("bias") else 1 / 8
        parameter.data.copy_(value(f"aprilgan.fc.{name}", tuple(parameter.shape), scale))
    return model


TEST = batch_of(["metal_nut"] * 3, SIZE)


def test_sentences() -> None:
    for row, (name, states) in enumerate((("normal", APRILGAN_NORMAL), ("abnormal", APRILGAN_ABNORMAL))):
        lines = sentences(states, APRILGAN_TEMPLATES, "metal_nut")
        assert len(lines) == STORED["n_prompts"][row]
        assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == str(STORED[f"prompts_{name}_sha256"])


def test_positional_embedding(backbone: ClipBackbone) -> None:
    patch, native, size, _, _ = NETWORKS["L14"]
    grid, new_grid = ((side // patch, side // patch) for side in (native, size))
    table = value("visual.positional_embedding", (1 + grid[0] * grid[1], WIDTH))

    def resized(_: ClipBackbone, check: Check) -> None:
        check(resize_positional_embedding(table, grid, new_grid, "bicubic_antialias"), "pos_embed_resized")

    compare(resized, backbone, FILE)
    expected = resize_positional_embedding(table, grid, new_grid, "bicubic_antialias")
    torch.testing.assert_close(backbone.vision.visual.positional_embedding.data, expected, rtol=0, atol=0)


def test_text_and_features(backbone: ClipBackbone) -> None:
    compare(text_and_features, backbone, FILE)


def text_and_features(backbone: ClipBackbone, check: Check) -> None:
    model = aprilgan(backbone)
    features = model.extract(TEST)
    nut, carpet = model.text(batch_of(["metal_nut", "carpet"], SIZE).samples)
    check(nut, "text_features_metal_nut")
    check(carpet, "text_features_carpet")
    check(features.image_embedding, "pooled")
    check(torch.stack([tokens[:, 1::4, ::2] for tokens in features.tokens]), "tokens_sample")


def test_maps_and_scores(backbone: ClipBackbone) -> None:
    compare(maps_and_scores, backbone, FILE)


@torch.no_grad()
def maps_and_scores(backbone: ClipBackbone, check: Check) -> None:
    model = aprilgan(backbone)
    features = model.extract(TEST)
    prediction = model.score(features, TEST)
    check(prediction.pred_score, "zs_image_score")
    check(prediction.anomaly_map[:, ::2, ::2], "zs_anomaly_map")
    check(prediction.anomaly_map.mean((1, 2)), "zs_anomaly_map_mean")
    check(prediction.anomaly_map.amax((1, 2)), "zs_anomaly_map_max")
    layers = [pixels[-1, ::2, ::2] for pixels in model.maps(features, model.text(TEST.samples))]
    check(torch.stack(layers), "last_image_layer_maps")


def test_few_shot(backbone: ClipBackbone) -> None:
    compare(few_shot, backbone, FILE)


@torch.no_grad()
def few_shot(backbone: ClipBackbone, check: Check) -> None:
    shots = int(STORED["fs_k"])
    model = aprilgan(backbone, k_shot=shots)
    features = model.extract(TEST)
    model.fit_memory(KEY, torch.stack([image(100 + i, SIZE) for i in range(shots)]))
    assert [tuple(bank.shape) for bank in model.memory.banks[KEY]] == [tuple(s) for s in STORED["fs_memory_shapes"]]
    distances = [2 * model.memory.distance([KEY] * 3, i, tokens)[-1] for i, tokens in enumerate(features.tokens)]
    maps = upsample(torch.stack(distances).unflatten(1, features.grid), (SIZE, SIZE), align_corners=True)
    check(maps[:, ::2, ::2], "fs_last_image_layer_maps")
    model.ranges = model.measure([TEST])
    prediction = model.score(features, TEST)
    check(prediction.anomaly_map[:, ::2, ::2], "fs_anomaly_map")
    check(prediction.anomaly_map.mean((1, 2)), "fs_anomaly_map_mean")
    check(prediction.anomaly_map.amax((1, 2)), "fs_anomaly_map_max")
    check(prediction.pred_score, "fs_image_score")


def test_a_training_step(backbone: ClipBackbone) -> None:
    compare(a_training_step, backbone, FILE)


def a_training_step(backbone: ClipBackbone, check: Check) -> None:
    model, batch = aprilgan(backbone), batch_of(["metal_nut", "carpet"], SIZE)
    assert len(batch.samples) == STORED["train_n"]
    features = model.extract(batch)
    maps = list(model.maps(features, model.text(batch.samples)))
    check(torch.stack([pixels[:, ::3, ::3] for pixels in maps]), "train_maps_abn")
    check(torch.stack([two_class_focal_loss(pixels, batch.mask) for pixels in maps]), "train_focal_per_layer")
    check(torch.stack([dice_loss(pixels, batch.mask) for pixels in maps]), "train_dice_per_layer")
    losses = model.loss(features, batch)
    check(losses["total"], "train_loss")
    losses["total"].backward()
    optimizer = model.configure_optimizers()
    assert optimizer is not None
    before = {name: parameter.detach().clone() for name, parameter in model.linear.named_parameters()}
    optimizer.step()
    for name, parameter in model.linear.named_parameters():
        assert parameter.grad is not None
        check(parameter.grad.norm(), f"grad_norm.fc.{name}")
        check(parameter.grad.flatten()[:16], f"grad_first16.fc.{name}")
        moved = (parameter.detach() - before[name]).norm()
        # a difference of stored values of about 1/8, each rounded by up to 2^-27, beside steps of 1e-3: 1e-5 at most
        recorded = torch.from_numpy(STORED[f"adam1_delta_norm.fc.{name}"])
        torch.testing.assert_close(moved, recorded, rtol=1e-5, atol=0, check_dtype=False)
        check(parameter.flatten()[:16], f"adam1_first16.fc.{name}")
