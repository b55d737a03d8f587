"""SubspaceAD against numbers recorded from the official code (see `golden/README.md`)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.rotation import rotated
from afclip_lightning.components.scoring import upsample
from afclip_lightning.components.subspace import Moments, residual
from afclip_lightning.methods.subspacead import SubspaceAD, small_blur
from afclip_lightning.types import Batch, Sample
from tests.support.recipe import GOLDEN
from tests.support.recipe_dino import make_backbone, photo
from tests.support.rounding import Check, compare

pytestmark = pytest.mark.slow

FILE = "subspacead.npz"
STORED = np.load(GOLDEN / FILE)
SIZE = 70
LAYERS = tuple(range(3, 10))
ORDER = [int(name[-1]) for name in STORED["test_order"]]
KEY = ("golden", "x")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> ClipBackbone:
    return make_backbone(tmp_path_factory.mktemp("dino"), "dino", 20, 3, SIZE, "bicubic_antialias")


def prepared(backbone: ClipBackbone, names: list[str]) -> Tensor:
    return backbone.preprocess.to_tensors([photo(f"subspacead.{name}", SIZE, SIZE) for name in names])


def batch_of(image: Tensor) -> Batch:
    empty, count = torch.zeros(len(image), SIZE, SIZE, dtype=torch.uint8), len(image)
    known, samples = torch.ones(count, dtype=torch.bool), [Sample(*KEY, "test", Path("x.png"), 0)] * count
    return Batch(image, empty, torch.zeros(count, dtype=torch.long), known, samples)


def test_the_tower(backbone: ClipBackbone) -> None:
    image = prepared(backbone, ["test.0", "test.1"])
    recorded = torch.from_numpy(STORED["pixel_values_sample"])
    torch.testing.assert_close(image[:, :, ::5, ::5], recorded, rtol=0, atol=1e-6)
    compare(lambda backbone, check: tower(image, backbone, check), backbone, FILE)


def tower(image: Tensor, backbone: ClipBackbone, check: Check) -> None:
    image = image.to(next(backbone.parameters()))
    features = backbone.encode_image(image, backbone.spec([3, 9, 20]))
    # the recorded tokens are every fifth of class token, 4 registers and patches; ours have no registers
    for row, tokens in enumerate(features.tokens, 1):
        check(tokens[:, 1::5], "hidden_states_sample", np.s_[row, :, 1:])
        check(tokens[:, 0], "hidden_states_sample", np.s_[row, :, 0])


@pytest.mark.parametrize("kind", ["base", "batched", "ev0.5", "ev0.9", "ev0.95", "ev0.999"])
def test_subspace_and_scores(backbone: ClipBackbone, kind: str) -> None:
    def body(backbone: ClipBackbone, check: Check) -> None:
        tokens = torch.from_numpy(STORED["test_tokens" if kind == "batched" else "train_tokens"])
        moments = Moments.of(tokens.flatten(0, 2))
        mean, axes = moments.subspace(float(kind[2:]) if kind.startswith("ev") else 0.99)
        assert len(axes) == STORED[f"{kind}.k"]
        grid = residual(torch.from_numpy(STORED["test_tokens"]), mean, axes)
        check(grid, f"{kind}.grid_scores")
        if kind.startswith("ev"):
            return
        check(mean[0], f"{kind}.mean")
        check(axes.T @ axes, f"{kind}.projector")
        check(torch.linalg.eigvalsh(moments.scatter / (moments.count - 1)).flip(0), f"{kind}.eigenvalues")
        pixels = small_blur(upsample(grid, SIZE))
        check(pixels[:, ::2, ::2], f"{kind}.map")
        check(pixels.mean((1, 2)), f"{kind}.map_mean")
        check(pixels.flatten(1).topk(int(0.01 * SIZE**2)).values.mean(1), f"{kind}.image_score_top1pct")

    compare(body, backbone, FILE)


@torch.no_grad()
def test_the_method_from_pixels_on(backbone: ClipBackbone) -> None:
    """From the residual streams of 20 blocks, which float32 gives to 1e-4: scores up to 100, to a relative 1e-4."""
    model = SubspaceAD(backbone, layers=LAYERS, k_shot=2, rotations=0)
    model.fit_memory(KEY, prepared(backbone, [f"train.{i}" for i in STORED["base.shots"]]))
    batch = batch_of(prepared(backbone, [f"test.{i}" for i in ORDER]))
    features = model.extract(batch)
    recorded = torch.from_numpy(STORED["test_tokens"]).flatten(1, 2)
    torch.testing.assert_close(model.patches(features), recorded, rtol=0, atol=1e-4)
    prediction = model.score(features, batch)
    largest = float(STORED["base.map"].max())
    for ours, name in ((prediction.anomaly_map[:, ::2, ::2], "map"), (prediction.pred_score, "image_score_top1pct")):
        torch.testing.assert_close(ours, torch.from_numpy(STORED[f"base.{name}"]).float(), rtol=0, atol=1e-4 * largest)


@torch.no_grad()
def test_rotated_copies_drawn_twice(backbone: ClipBackbone) -> None:
    """With Pillow's rotation, as in the official code: the mean of one draw, the covariance of the other."""
    model, names = SubspaceAD(backbone, layers=LAYERS), [f"train.{i}" for i in STORED["aug.shots"]]
    draws = STORED["aug.angles"].reshape(2, len(names), -1)
    first, second = (_moments(model, names, draw) for draw in draws)
    mean, axes = second.about(first.mean).subspace(0.99)
    assert len(axes) == STORED["aug.k"]
    torch.testing.assert_close(mean[0], torch.from_numpy(STORED["aug.mean"]).float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(axes.T @ axes, torch.from_numpy(STORED["aug.projector"]).float(), rtol=0, atol=1e-4)
    grid = residual(torch.from_numpy(STORED["test_tokens"]), mean, axes)
    limit = 1e-4 * float(STORED["aug.grid_scores"].max())
    torch.testing.assert_close(grid, torch.from_numpy(STORED["aug.grid_scores"]), rtol=0, atol=limit)


def _moments(model: SubspaceAD, names: list[str], angles: np.ndarray) -> Moments:
    total = model._moments_of(prepared(model.backbone, names))
    for name, drawn in zip(names, angles, strict=True):
        image = Image.fromarray(photo(f"subspacead.{name}", SIZE, SIZE))
        for angle in drawn:
            turned = model.preprocess.to_tensors([np.asarray(image.rotate(angle))])
            total = total + model._moments_of(turned)
    return total


def test_rotation_is_pillows_but_for_a_few_pixels() -> None:
    pixels = photo("subspacead.train.0", SIZE, SIZE)
    for angle in STORED["aug.angles"]:
        ours = rotated(torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), float(angle), (0, 0, 0))[0]
        theirs = torch.from_numpy(np.array(Image.fromarray(pixels).rotate(float(angle)))).permute(2, 0, 1)
        assert (ours != theirs).any(dim=0).float().mean() < 0.05
