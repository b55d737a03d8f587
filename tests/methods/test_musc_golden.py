"""MuSc against numbers recorded from the official code (see `golden/README.md`)."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.mutual_scoring import aggregate, normalise_planes
from afclip_lightning.components.scoring import upsample
from afclip_lightning.methods.musc import MuSc, Scored, constrain
from afclip_lightning.types import Sample
from tests.support.recipe import GOLDEN
from tests.support.recipe_baselines import make_backbone, value
from tests.support.rounding import Check, compare

pytestmark = pytest.mark.slow

LAYERS, SCALES, SIZE = (6, 12, 18, 24), (1, 3, 5), 70
FILE = "musc.npz"
RECORDED = np.load(GOLDEN / FILE)
SAMPLES = [Sample("golden", "golden", "test", Path(f"{i}.png"), 0) for i in range(int(RECORDED["n_images"]))]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> ClipBackbone:
    return make_backbone(tmp_path_factory.mktemp("musc"), "L14", pos_embed="bicubic")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    base = value("musc.base", (3, SIZE, SIZE), scale=0.8)
    return torch.stack([base + value(f"image.{i}", (3, SIZE, SIZE), scale=0.3 + 0.1 * i) for i in range(len(SAMPLES))])


def scored(model: MuSc, images: torch.Tensor, folder: Path) -> list[Scored]:
    """Returns the mutual scores of the images, read in batches of 4 and compared two at a time."""
    batches = zip([SAMPLES[:4], SAMPLES[4:]], images.split(4), strict=True)
    encoded = [(samples, model.backbone.encode_image(part, model.spec)) for samples, part in batches]
    model.block = 2
    found = model.score_category([(len(SAMPLES), encoded)], "golden/golden", folder)
    assert not list(folder.iterdir())
    return list(found.values())


def test_features(backbone: ClipBackbone, images: torch.Tensor) -> None:
    def features(backbone: ClipBackbone, check: Check) -> None:
        features = backbone.encode_image(images, backbone.spec(LAYERS, image_embedding=True))
        check(torch.stack([tokens[4:, 1::4, ::2] for tokens in features.tokens]), "tokens_sample")
        assert features.image_embedding is not None
        check(F.normalize(features.image_embedding, dim=-1), "cls_features")
        for scale in SCALES:
            layers = [aggregate(normalise_planes(tokens), features.grid, scale) for tokens in features.tokens]
            every = torch.stack(layers, dim=2)  # [I, N, L, C]
            assert every.shape == tuple(RECORDED[f"lnamd_r{scale}_shape"])
            check(every[::2, ::3, :, ::4], f"lnamd_r{scale}_sample")

    compare(features, backbone, FILE)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("row", range(len(LAYERS)))
def test_mutual_scores_of_a_layer_at_a_scale(
    backbone: ClipBackbone, images: torch.Tensor, tmp_path: Path, scale: int, row: int
) -> None:
    def scores(backbone: ClipBackbone, check: Check) -> None:
        found = scored(MuSc(backbone, layers=[LAYERS[row]], scales=[scale]), images, tmp_path)
        check(torch.stack([of.patch_map for of in found]).flatten(1), f"msm_r{scale}", row)

    compare(scores, backbone, FILE)


@pytest.mark.parametrize("windows", [(1, 2, 3), (1,), (2,), (3,), (1, 4), ()])
def test_maps_and_scores(
    backbone: ClipBackbone, images: torch.Tensor, tmp_path: Path, windows: tuple[int, ...]
) -> None:
    def maps_and_scores(backbone: ClipBackbone, check: Check) -> None:
        found = scored(MuSc(backbone, layers=LAYERS, scales=SCALES, rscin_windows=windows), images, tmp_path)
        maps = torch.stack([of.patch_map for of in found])
        check(maps, "patch_map")
        upsampled = upsample(maps, (SIZE, SIZE), align_corners=True)
        check(upsampled[:, ::3, ::3], "anomaly_map")
        check(upsampled.mean((1, 2)), "anomaly_map_mean")
        scores = torch.tensor([of.pred_score for of in found])
        check(scores, f"rscin_scores_k{''.join(map(str, windows))}" if windows else "image_score_max")

    compare(maps_and_scores, backbone, FILE)


@pytest.mark.parametrize("windows", [(1, 2, 3), (1,), (2,), (3,), (1, 4)])
def test_constrained_scores_of_recorded_ones(backbone: ClipBackbone, windows: tuple[int, ...]) -> None:
    def constrained(backbone: ClipBackbone, check: Check) -> None:
        scores, embeddings = (torch.from_numpy(RECORDED[key]) for key in ("image_score_max", "cls_features"))
        check(constrain(scores, embeddings, windows), f"rscin_scores_k{''.join(map(str, windows))}")

    compare(constrained, backbone, FILE)
