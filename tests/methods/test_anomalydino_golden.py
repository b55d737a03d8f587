"""AnomalyDINO against numbers recorded from the official code (see `golden/README.md`)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.foreground import first_component, foreground
from afclip_lightning.components.rotation import rotated
from afclip_lightning.components.scoring import upsample_and_smooth
from afclip_lightning.methods.anomalydino import AnomalyDINO, batched_distances
from afclip_lightning.types import Batch, Sample
from tests.support.recipe import GOLDEN, normal
from tests.support.recipe_dino import make_backbone, photo
from tests.support.rounding import Check, compare

pytestmark = pytest.mark.slow

FILE = "anomalydino.npz"
STORED = np.load(GOLDEN / FILE)
FRAME = tuple(int(side) for side in STORED["prepared_shape"][1:])
ORDER = [int(name[-5]) for name in STORED["test_order"]]
ORIGINAL = (150, 173)
KEY = ("golden", "x")
UNTURNED: dict[str, Any] = {"masked": [], "rotations": 1}
KINDS: dict[str, tuple[list[int], dict[str, Any]]] = {  # few-shot images and arguments
    "plain": ([1], UNTURNED),
    "knn3": ([0, 1], {**UNTURNED, "neighbours": 3}),
    "maskref": ([0, 1], {"rotations": 1, "masked": ["*"], "mask_references": True, "morphology": "column"}),
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> ClipBackbone:
    return make_backbone(tmp_path_factory.mktemp("dino"), "dinos", 4, 7, FRAME, "bicubic_offset")


def prepared(names: list[str]) -> Tensor:
    """Returns the network's input of images by name: the shorter side resized, then cut to whole patches."""
    return torch.stack([_prepared(photo(f"anomalydino.{name}", *ORIGINAL, disc=True)) for name in names])


def _prepared(pixels: np.ndarray) -> Tensor:
    height, width = ORIGINAL
    size = FRAME[0], int(FRAME[0] * width / height)
    resized = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))[: FRAME[0], : FRAME[1]]
    tensor = torch.from_numpy(resized.copy()).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (tensor - mean[:, None, None]) / std[:, None, None]


def batch_of(image: Tensor) -> Batch:
    empty, count = torch.zeros(len(image), *FRAME, dtype=torch.uint8), len(image)
    known, samples = torch.ones(count, dtype=torch.bool), [Sample(*KEY, "test", Path("x.png"), 0)] * count
    return Batch(image, empty, torch.zeros(count, dtype=torch.long), known, samples)


TEST = batch_of(prepared([f"test.{i}" for i in ORDER]))


def test_the_input_and_the_positions(backbone: ClipBackbone) -> None:
    recorded = torch.from_numpy(STORED["prepared_sample"])
    torch.testing.assert_close(TEST.image[0, :, ::14, ::14], recorded, rtol=0, atol=1e-6)
    positions = backbone.vision.visual.trunk.pos_embed[0]
    torch.testing.assert_close(positions[::5], torch.from_numpy(STORED["pos_embed_resized_sample"]), rtol=0, atol=2e-6)


def exactly_as(backbone: ClipBackbone) -> Batch:
    """Returns the test images in the precision of a backbone."""
    return replace(TEST, image=TEST.image.to(next(backbone.parameters())))


def test_features(backbone: ClipBackbone) -> None:
    compare(features, backbone, FILE)


@torch.no_grad()
def features(backbone: ClipBackbone, check: Check) -> None:
    model, test = AnomalyDINO(backbone), exactly_as(backbone)
    patches = model.patches(model.extract(test))
    check(patches[0, ::5], "features0_sample")
    check(patches[0].norm(dim=-1), "features0_norms")


@torch.no_grad()
def test_masks_are_those_of_the_code(backbone: ClipBackbone) -> None:
    model = AnomalyDINO(backbone)
    patches = model.patches(model.extract(TEST))
    component, recorded = first_component(patches), torch.from_numpy(STORED["agnostic.first_pc"])
    torch.testing.assert_close(component, recorded, rtol=0, atol=1e-3)
    column = foreground(component, model.backbone.grid, 10.0, "column")
    assert torch.equal(column, torch.from_numpy(STORED["agnostic.mask"]).bool())
    grid = foreground(component, model.backbone.grid, 10.0)
    assert (grid != column).sum(dim=1).tolist() == [54, 49, 66]


@pytest.mark.parametrize("kind", KINDS)
def test_distances_scores_and_maps(backbone: ClipBackbone, kind: str) -> None:
    shots, arguments = KINDS[kind]
    references = prepared([f"train.{i}" for i in shots])

    @torch.no_grad()
    def body(backbone: ClipBackbone, check: Check) -> None:
        model = AnomalyDINO(backbone, k_shot=len(shots), **arguments)
        test = exactly_as(backbone)
        model.fit_memory(KEY, references.to(test.image))
        (bank,) = model.memory.banks[KEY]
        assert tuple(bank.shape) == tuple(STORED[f"{kind}.memory_shape"])
        check(bank[::97], f"{kind}.memory_sample")
        prediction = model.score(model.extract(test), test)
        check(prediction.pred_score, f"{kind}.image_score")
        patches = model.patches(model.extract(test))
        tokens = torch.cat([patches[:, :1], patches], dim=1)
        distances = 2 * model.memory.distance([KEY] * 3, 0, tokens, model.neighbours)
        shown = model.shown(patches, ["x"])
        distances = (distances if shown is None else distances * shown).unflatten(1, model.backbone.grid)
        check(distances, f"{kind}.patch_dist")
        pixels = upsample_and_smooth(distances, ORIGINAL, 4.0)  # the code's maps are of the image's own size
        check(pixels[:, ::6, ::6], f"{kind}.map_final")
        check(pixels.mean((1, 2)), f"{kind}.map_final_mean")

    compare(body, backbone, FILE)


def turned(name: str, degrees: float) -> np.ndarray:
    """Returns the photo of that name, rotated, in whole grey levels."""
    pixels = torch.from_numpy(photo(f"anomalydino.{name}", *ORIGINAL, disc=True)).permute(2, 0, 1)[None]
    levels = rotated(pixels.float(), degrees)[0].permute(1, 2, 0).numpy().round()
    return np.asarray(levels.clip(0, 255).astype(np.uint8))


def test_rotation_is_that_of_the_code() -> None:
    for degrees in range(0, 360, 45):
        assert np.array_equal(turned("test.0", degrees)[::20, ::20], STORED[f"rotation.{degrees}"])


@torch.no_grad()
def test_rotated_references(backbone: ClipBackbone) -> None:
    """The code rotates a photo before it resizes it; here its images are put into the memory by hand."""
    model = AnomalyDINO(backbone, masked=["*"], morphology="column")
    copies = [
        torch.stack([_prepared(turned(f"train.{i}", degrees)) for degrees in range(0, 360, 45)]) for i in range(2)
    ]
    patches = torch.stack([model.patches(backbone.encode_image(of_one, model.spec)).flatten(0, 1) for of_one in copies])
    model.memory.fit(KEY, [torch.cat([patches[:, :1], patches], dim=1)])
    (bank,) = model.memory.banks[KEY]
    assert tuple(bank.shape) == tuple(STORED["agnostic.memory_shape"])
    torch.testing.assert_close(bank[::97], torch.from_numpy(STORED["agnostic.memory_sample"]), rtol=0, atol=1e-5)
    prediction = model.score(model.extract(TEST), TEST)
    recorded = torch.from_numpy(np.asarray(STORED["agnostic.image_score"])).float()
    torch.testing.assert_close(prediction.pred_score, recorded, rtol=0, atol=1e-5)


def test_batched_zero_shot() -> None:
    count, (patches, width) = 12, (255, 8)
    base = 1.5 * normal("anomalydino.batched.base", (patches, width))
    features = [normal(f"anomalydino.batched.{i}", (patches, width)) + base for i in range(count)]
    unit = torch.nn.functional.normalize(torch.tensor(np.stack(features), dtype=torch.float32), dim=-1)
    distances = batched_distances(unit, 0.001)
    assert int(0.001 * (count - 1) * patches) == STORED["batched.kth"]
    torch.testing.assert_close(distances, torch.from_numpy(STORED["batched.dist"]), rtol=0, atol=2e-6)
    score = distances.topk(int(0.01 * patches)).values.mean(1)
    torch.testing.assert_close(score, torch.from_numpy(STORED["batched.score"]), rtol=0, atol=2e-6, check_dtype=False)
    assert STORED["batched.nan_count_5_images"] > 0
    assert batched_distances(unit[:5], 0.001).isfinite().all()
