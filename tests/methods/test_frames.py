"""Frames that are not square: every method accepts them, and never confuses height and width."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.engine.factory import methods
from afclip_lightning.methods.anovl import augmented_views
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.methods.musc import MuSc
from afclip_lightning.types import AnomalyPrediction, Batch
from tests.support.cases import CASES, TRAINED
from tests.support.clips import small_clip, small_config
from tests.support.methods import batch_of, train_step

FRAME, GRID = (28, 70), (2, 5)
TURNED = {  # without what knows left from up: convolutions, rotated copies, the order of drawn noise, mirror images
    "KAnoCLIP": {"interaction": False, "conv_adapter": "global"},
    "AnoVL": {"steps": 0, "augment": False},
    "SubspaceAD": {"rotations": 0},
    "AnomalyDINO": {"rotations": 1},
}
CHOSEN: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in CASES]
CHOSEN += [("WinCLIP", {"k_shot": 2}), ("AFCLIP", {"k_shot": 2})]


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClipBackbone, ClipBackbone]:
    """Two frames for one tower of three blocks, which gives transposed results for the transposed image."""
    folder, clip = tmp_path_factory.mktemp("frames"), small_clip()
    with torch.no_grad():
        kernel, table = clip.visual.conv1.weight, clip.visual.positional_embedding
        kernel.copy_((kernel + kernel.mT) / 2)
        grid = table[1:].unflatten(0, (2, 2))
        table[1:] = ((grid + grid.transpose(0, 1)) / 2).flatten(0, 1)
    torch.save(clip.state_dict(), folder / "clip.pt")
    wide, tall = (ClipBackbone(small_config(folder), str(folder / "clip.pt"), size) for size in (FRAME, FRAME[::-1]))
    return wide, tall


def build(name: str, backbone: ClipBackbone, **arguments: Any) -> AnomalyMethod:
    torch.manual_seed(0)
    return methods()[name](backbone, **CASES[name].small | arguments)


def score(model: AnomalyMethod, batch: Batch, folder: Path) -> AnomalyPrediction:
    """Returns a method's prediction for a batch. The images themselves serve as few-shot images if needed."""
    if model.k_shot:
        for seed, category in enumerate("ab"):
            shots = batch_of(2, FRAME, seed + 1).image
            wide = batch.image.shape[2:] == FRAME
            model.fit_memory(("d", category), shots if wide else shots.mT.contiguous())
    with torch.inference_mode():
        if isinstance(model, MuSc):
            features = AnomalyMethod.extract(model, batch)
            model.take_observed([model.score_category([(4, [(batch.samples, features)])], "all", folder)])
        batch.reference, batch.reference_rows = batch.image[:0], torch.tensor([[1], [0], [3], [2]])
        return model.eval().score(model.extract(batch), batch)


@pytest.mark.parametrize(("name", "arguments"), CHOSEN)
def test_every_method_takes_a_wide_frame(
    name: str, arguments: dict[str, Any], backbones: tuple[ClipBackbone, ...], tmp_path: Path
) -> None:
    model = build(name, backbones[0], **arguments)
    assert model.backbone.grid == GRID
    found = score(model, batch_of(4, FRAME), tmp_path)
    assert found.anomaly_map.shape == (4, *FRAME)
    assert found.anomaly_map.isfinite().all()
    assert found.pred_score.shape == (4,)


@pytest.mark.parametrize("name", TRAINED)
def test_every_trained_method_trains_in_a_wide_frame(name: str, backbones: tuple[ClipBackbone, ...]) -> None:
    model, batch = build(name, backbones[0]), batch_of(4, FRAME)
    optimizer = model.configure_optimizers()
    losses = [train_step(model, optimizer, batch)["total"].item() for _ in range(4)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("name", "arguments"), CHOSEN)
def test_what_is_seen_of_a_transposed_image_is_transposed(
    name: str, arguments: dict[str, Any], backbones: tuple[ClipBackbone, ...], tmp_path: Path
) -> None:
    """Confused rows and columns would move the map's values, because no two patches of noise are equal."""
    batch = batch_of(4, FRAME)
    turned = replace(batch, image=batch.image.mT.contiguous(), mask=batch.mask.mT.contiguous())
    wide, tall = (build(name, backbone, **arguments | TURNED.get(name, {})) for backbone in backbones)
    seen, other = score(wide, batch, tmp_path), score(tall, turned, tmp_path)
    limit = 1e-4 * float(seen.anomaly_map.std())
    torch.testing.assert_close(other.anomaly_map.mT, seen.anomaly_map, rtol=0, atol=max(limit, 2e-5))
    torch.testing.assert_close(other.pred_score, seen.pred_score, rtol=0, atol=2e-5)
    assert float(seen.anomaly_map.std()) > 1e-4  # or all maps would be alike


def test_a_view_turns_a_wide_image_between_its_pixels() -> None:
    """A disc stays a disc, and a quarter turn moves a point from the right of the centre to above it."""
    image = torch.zeros(1, 3, 41, 81)
    y, x = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(81.0) - 40, indexing="ij")
    image[..., (x - 12) ** 2 + y**2 <= 25] = 1
    for number, view in enumerate(augmented_views(image)):
        assert view.shape == image.shape
        if 1 <= number <= 8 or number >= 19:
            disc = view[0, 0] * (x.abs() <= 20)  # beyond, quarter turns reflect it
            assert float(disc.sum()) == pytest.approx(float(image[0, 0].sum()), rel=0.05)
            across, down = (float((disc * axis).sum() / disc.sum()) for axis in (x, y))
            assert (across**2 + down**2) ** 0.5 == pytest.approx(12, abs=0.2)
