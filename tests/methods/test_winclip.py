"""WinCLIP: windows, harmonic means, text of categories, few-shot memory, arguments."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afclip_lightning.backbones import windows
from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.windows import encode_windows, window_index
from afclip_lightning.engine.app import main
from afclip_lightning.methods.winclip import WinCLIP, harmonic_aggregation
from afclip_runtime.errors import DatasetError
from tests.reference import winclip_naive as naive
from tests.support.clips import TIMM, small_config
from tests.support.layouts.mvtec import write_mvtec
from tests.support.methods import TextCalls, batch_of, data_of, score, take, trainer_of

CONFIGS = Path(__file__).parents[2] / "configs"
KEYS = (("d", "a"), ("d", "b"))
SIDE = 70
VISION = {"image_size": SIDE, "layers": 3, "width": 64, "head_width": 64, "patch_size": 14}  # a grid of 5 × 5


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ClipBackbone:
    return ClipBackbone(
        small_config(tmp_path_factory.mktemp("winclip"), "winclip-small", vision_cfg=VISION), "random", image_size=None
    )


def fitted(backbone: ClipBackbone, **arguments: Any) -> WinCLIP:
    """Returns WinCLIP+ with a normal image for each of the categories of `batch_of`."""
    model = WinCLIP(backbone, k_shot=1, **arguments)
    for seed, key in enumerate(KEYS, 10):
        model.fit_memory(key, batch_of(1, SIDE, seed).image)
    return model


@pytest.fixture(params=["zero-shot", "few-shot"])
def model(request: pytest.FixtureRequest, small: ClipBackbone) -> WinCLIP:
    return WinCLIP(small) if request.param == "zero-shot" else fitted(small)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_harmonic_aggregation_equals_the_loop(h: int, w: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, min(h, w)))
    count = (h - size + 1) * (w - size + 1)
    values = data.draw(st.lists(st.sampled_from([0.0, 1e-4, 0.2, 0.5, 1.0]), min_size=count, max_size=count))
    scores = torch.tensor([values, values[::-1]])
    expected = np.stack([naive.harmonic(row, (h, w), size) for row in scores.double().numpy()])
    actual = harmonic_aggregation(scores, (h, w), size)
    torch.testing.assert_close(actual, torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-12)
    assert window_index((h, w), size).tolist() == naive.patches_of((h, w), size)


def test_a_score_below_zero_by_rounding_counts_as_zero() -> None:
    scores = torch.tensor([[-6e-8, 0.5, 0.5, 0.5]])
    patches = harmonic_aggregation(scores, (3, 3), 2)[0]
    torch.testing.assert_close(patches[:2, :2], torch.zeros(2, 2))
    torch.testing.assert_close(patches[2], torch.full((3,), 0.5))


def test_windows_equal_single_passes_of_their_tokens(small: ClipBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first normalisation, as in the description of the method, and with passes of any size."""
    visual, image = small.vision.visual, batch_of(2, SIDE).image
    patches = visual.conv1(image).flatten(2).transpose(1, 2)
    tokens = torch.cat([visual.class_embedding.expand(2, 1, -1), patches], 1) + visual.positional_embedding
    encoded = encode_windows(small.vision, image, (2, 3))
    for size, of_size in zip((2, 3), encoded, strict=True):
        index = naive.patches_of(small.grid, size)
        assert of_size.shape == (2, len(index), small.embed_dim)
        for number in (0, 5, len(index) - 1):
            x = visual.ln_pre(tokens[:, [0, *(1 + patch for patch in index[number])]])
            for block in visual.transformer.resblocks:
                x = block(x)
            expected = visual.ln_post(x[:, 0]) @ visual.proj
            torch.testing.assert_close(of_size[:, number], expected, rtol=1e-4, atol=1e-5)
    for limit in (1, 70):
        monkeypatch.setattr(windows, "WINDOW_TOKENS_CPU", limit)
        for a, b in zip(encode_windows(small.vision, image, (2, 3)), encoded, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_a_window_of_the_whole_grid_is_the_image(tmp_path: Path, pool: str) -> None:
    config = small_config(tmp_path, f"whole-{pool}", vision_cfg=VISION | {"pool_type": pool})
    backbone = ClipBackbone(config, "random", image_size=56)
    image = batch_of(2, size=56).image
    (encoded,) = encode_windows(backbone.vision, image, (4,))
    features = backbone.encode_image(image, backbone.spec(image_embedding=True))
    torch.testing.assert_close(encoded[:, 0], features.image_embedding, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_medium_patch16_reg4_gap_256"])
def test_windows_of_a_timm_tower(tmp_path: Path, name: str) -> None:
    """With a class token, and with registers before the patches of every window."""
    vision = {**TIMM["vision_cfg"], "timm_model_name": name, "timm_pool": "token" if "tiny" in name else "avg"}
    backbone = ClipBackbone(
        small_config(tmp_path, f"timm-{name}", **{**TIMM, "vision_cfg": vision}), "random", image_size=64
    )
    image = batch_of(1, size=64).image
    small, whole = encode_windows(backbone.vision, image, (2, 4))
    assert small.shape[1] == 9
    features = backbone.encode_image(image, backbone.spec(image_embedding=True))
    torch.testing.assert_close(whole[:, 0], features.image_embedding, rtol=1e-4, atol=1e-5)


def test_scores_do_not_depend_on_the_batch(model: WinCLIP) -> None:
    batch = batch_of(size=SIDE)
    scores, maps = score(model, batch)
    assert maps.shape == batch.mask.shape
    assert 0 <= maps.min() < maps.max() <= 1
    for a, b in zip(score(model, batch), (scores, maps), strict=True):
        assert torch.equal(a, b)
    for rows in ([2, 0, 3, 1], [1], [3, 2]):
        part = score(model, take(batch, rows))
        torch.testing.assert_close(part[0], scores[rows], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(part[1], maps[rows], rtol=1e-5, atol=1e-6)


def test_scores_are_float32_in_mixed_precision(model: WinCLIP) -> None:
    batch = batch_of(size=SIDE)
    exact = score(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = score(model, batch)
    for a, b in zip(mixed, exact, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0, atol=0.03)


def test_names_and_templates_change_the_text(small: ClipBackbone) -> None:
    batch = batch_of(2, SIDE)
    batch = replace(batch, samples=[replace(sample, class_name="hex nut") for sample in batch.samples])
    texts = [
        WinCLIP(small, **arguments).text(batch.samples)
        for arguments in ({}, {"names": "class_name"}, {"templates": "code"})
    ]
    assert (texts[0][0] - texts[0][1]).abs().max() > 1e-4  # categories `a` and `b`
    assert torch.equal(texts[1][0], texts[1][1])
    assert (texts[2] - texts[0]).abs().max() > 1e-4


def test_nothing_trains_and_the_loss_is_refused(small: ClipBackbone) -> None:
    model, batch = WinCLIP(small), batch_of(size=SIDE)
    assert not model.trainable_names()
    assert model.configure_optimizers() is None
    with pytest.raises(TypeError, match="WinCLIP trains nothing"):
        model.loss(model.extract(batch), batch)


@pytest.mark.parametrize("patch_memory", ["penultimate", "last", "last_normalised"])
def test_a_few_shot_image_gets_half_its_zero_shot_score(small: ClipBackbone, patch_memory: str) -> None:
    batch = batch_of(size=SIDE)
    model = WinCLIP(small, k_shot=1, patch_memory=patch_memory)
    for row, key in enumerate(KEYS):
        model.fit_memory(key, batch.image[row : row + 1])
    scores, maps = score(model, batch)
    plain_scores, plain_maps = score(WinCLIP(small), batch)
    torch.testing.assert_close(scores[:2], plain_scores[:2] / 2, rtol=0, atol=1e-5)
    torch.testing.assert_close(maps[:2], plain_maps[:2] / 2, rtol=0, atol=1e-5)
    assert (maps[2:] > plain_maps[2:] / 2 + 1e-4).all()


def test_patch_memories_are_three_spaces(small: ClipBackbone) -> None:
    batch = batch_of(size=SIDE)
    tokens = {}
    for patch_memory in ("penultimate", "last", "last_normalised"):
        model = WinCLIP(small, k_shot=1, patch_memory=patch_memory)
        tokens[patch_memory] = model.patch_tokens(model.extract(batch))
    expected = small.encode_image(batch.image, small.spec((2, 3)))
    torch.testing.assert_close(tokens["penultimate"], expected.tokens[0])
    torch.testing.assert_close(tokens["last"], expected.tokens[1])
    torch.testing.assert_close(tokens["last_normalised"], small.vision.visual.ln_post(expected.tokens[1]))


def test_the_sum_is_twice_the_mean(small: ClipBackbone) -> None:
    batch = batch_of(size=SIDE)
    mean, both = (score(fitted(small, map_fusion=fusion), batch) for fusion in ("mean", "sum"))
    assert torch.equal(mean[0], both[0])
    torch.testing.assert_close(2 * mean[1], both[1])


def test_a_category_without_normal_images_is_named(small: ClipBackbone) -> None:
    model, batch = fitted(small), batch_of(size=SIDE)
    with pytest.raises(DatasetError, match="no normal images for d/c"):
        score(model, replace(batch, samples=[replace(s, category="c") for s in batch.samples]))


def test_a_pass_embeds_each_category_once_and_draws_its_memory(tmp_path: Path, small: ClipBackbone) -> None:
    model = WinCLIP(small, k_shot=2)
    data, trainer = data_of(tmp_path, model), trainer_of(tmp_path, enable_checkpointing=False)
    calls = TextCalls(small)
    trainer.test(model, data, verbose=False)
    assert calls.count == 2  # categories, 242 sentences each: one pass of the text tower
    assert set(model.memory.few_shot) == {("set", "cap"), ("set", "nut")}
    assert not model.memory.banks
    assert not model.text.kept
    calls.handle.remove()


@pytest.mark.parametrize(("arguments", "message"), [
    ({"window_sizes": (2, 6)}, r"within 1 to 5 patches for a grid of \(5, 5\), got 6"),
    ({"window_sizes": ()}, "at least one size"),
    ({"window_sizes": (2, 2)}, "each once"),
    ({"window_sizes": (0,)}, "got 0"),
    ({"templates": "22"}, "templates must be one of paper, code, got '22'"),
    ({"names": "folder"}, "names must be one of category, class_name, got 'folder'"),
    ({"patch_memory": "first"}, "patch_memory must be one of"),
    ({"map_fusion": "max"}, "map_fusion must be one of"),
    ({"k_shot": -1}, "k_shot must not be negative"),
    ({"temperature": 0.0}, "temperature be positive"),
])  # fmt: skip
def test_bad_arguments_are_refused(small: ClipBackbone, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WinCLIP(small, **arguments)


@pytest.mark.slow
def test_the_shipped_config_tests_few_shot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFCLIP_DATA", str(tmp_path / "data"))
    write_mvtec(tmp_path / "data/mvtec", ["bottle", "metal_nut"])
    options = {
        "config": CONFIGS / "winclip_plus_mvtec.yaml",
        "out": "run",
        "model.backbone.model": small_config(tmp_path, vision_cfg=VISION),
        "model.backbone.weights": "random",
        "model.backbone.image_size": SIDE,
        "model.k_shot": 1,
        "data.categories": "[bottle,metal_nut]",
        "data.num_workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }
    assert main(["test", *(f"--{key}={value}" for key, value in options.items())]) == 0
    rows = json.loads((tmp_path / "run/results.json").read_text())["rows"]
    assert [row["category"] for row in rows] == ["bottle", "metal_nut", "mean"]
    shots = json.loads((tmp_path / "run/few_shot.json").read_text())
    assert len(shots) == 2
