"""WinCLIP and WinCLIP+ against numbers recorded from two public codes (see `golden/README.md`)."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.windows import encode_windows, window_index
from afclip_lightning.methods.winclip import WinCLIP, harmonic_aggregation
from afclip_lightning.prompts.templates import WINCLIP_ABNORMAL, WINCLIP_NORMAL, WINCLIP_TEMPLATES_21, sentences
from afclip_lightning.types import Batch, Sample
from tests.support.recipe import GOLDEN
from tests.support.recipe_baselines import image, make_backbone
from tests.support.rounding import Check, compare

SIZE = 80
KEY = ("golden", "metal_nut")
CODES = ("accurate", "anomalib")
FEW_SHOT: dict[str, dict[str, Any]] = {
    "accurate": {"patch_memory": "last", "map_fusion": "sum"},
    "anomalib": {"patch_memory": "last_normalised", "map_fusion": "mean"},
}
FILE = "winclip.npz"
STORED = np.load(GOLDEN / FILE)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> ClipBackbone:
    return make_backbone(tmp_path_factory.mktemp("winclip"), "B16")


@pytest.fixture(scope="module")
def batch() -> Batch:
    return Batch(
        image=torch.stack([image(index, SIZE) for index in range(2)]),
        mask=torch.zeros(2, SIZE, SIZE, dtype=torch.uint8),
        label=torch.zeros(2, dtype=torch.int64),
        mask_known=torch.ones(2, dtype=torch.bool),
        samples=[Sample(*KEY, "test", Path("golden.png"), 0, class_name="another name")] * 2,
    )


@pytest.mark.parametrize("code", CODES)
def test_text(backbone: ClipBackbone, batch: Batch, code: str) -> None:
    for state, states in (("normal", WINCLIP_NORMAL), ("abnormal", WINCLIP_ABNORMAL)):
        prompts = "\n".join(sentences(states, WINCLIP_TEMPLATES_21, "metal_nut"))
        assert hashlib.sha256(prompts.encode()).hexdigest() == STORED[f"{code}_prompts_{state}_sha256"]

    def text(backbone: ClipBackbone, check: Check) -> None:
        check(WinCLIP(backbone, templates="code").text(batch.samples)[0], f"{code}_text_features")

    compare(text, backbone, FILE)


@pytest.mark.parametrize("code", CODES)
def test_windows_and_their_scores(backbone: ClipBackbone, batch: Batch, code: str) -> None:
    def windows(backbone: ClipBackbone, check: Check) -> None:
        for size, encoded in zip((2, 3), encode_windows(backbone.vision, batch.image, (2, 3)), strict=True):
            check(encoded, f"{code}_window{size}_embedding")
            scores = torch.from_numpy(STORED[f"{code}_window{size}_score"])
            check(harmonic_aggregation(scores, backbone.grid, size), f"{code}_harmonic{size}_map")

    compare(windows, backbone, FILE)
    for size in (2, 3):
        expected = torch.from_numpy(STORED[f"accurate_window{size}_index"])
        torch.testing.assert_close(window_index(backbone.grid, size), expected, rtol=0, atol=0)


@pytest.mark.parametrize("code", CODES)
def test_zero_shot(backbone: ClipBackbone, batch: Batch, code: str) -> None:
    def zero_shot(backbone: ClipBackbone, check: Check) -> None:
        model = WinCLIP(backbone, templates="code")
        with torch.inference_mode():
            features = model.extract(batch)
            prediction = model.score(features, batch)
        check(features.image_embedding, f"{code}_image_embedding")
        check(prediction.pred_score, f"{code}_image_score")
        check(prediction.anomaly_map[:, ::3, ::3], f"{code}_anomaly_map")
        check(prediction.anomaly_map.mean(dim=(1, 2)), f"{code}_anomaly_map_mean")

    compare(zero_shot, backbone, FILE)


@pytest.mark.parametrize("code", CODES)
def test_few_shot(backbone: ClipBackbone, batch: Batch, code: str) -> None:
    def few_shot(backbone: ClipBackbone, check: Check) -> None:
        model = WinCLIP(backbone, templates="code", k_shot=int(STORED[f"{code}_fs_k"]), **FEW_SHOT[code])
        with torch.inference_mode():
            model.fit_memory(KEY, torch.stack([image(100 + index, SIZE) for index in range(model.k_shot)]))
            features = model.extract(batch)
            patches, windows = model.patch_tokens(features), model.windows(features, batch.image)
            association = model.association(patches, windows, batch.keys, features.grid)
            distances = [model.memory.distance([KEY] * 2, index, t) for index, t in enumerate([patches, *windows])]
            prediction = model.score(features, batch)
        space = {"accurate": "residual", "anomalib": "lnpost"}[code]
        check(patches[:, 1::3], f"{code}_patch_tokens_{space}")
        check(distances[0].unflatten(1, features.grid), f"{code}_fs_patch_map")
        for size, distance in zip((2, 3), distances[1:], strict=True):
            check(distance, f"anomalib_fs_window{size}_score")
            check(harmonic_aggregation(distance, features.grid, size), f"{code}_fs_window{size}_map")
        check(association, f"{code}_fs_map")
        check(prediction.pred_score, f"{code}_fs_image_score")
        check(prediction.anomaly_map[:, ::3, ::3], f"{code}_fs_anomaly_map")

    compare(few_shot, backbone, FILE)
