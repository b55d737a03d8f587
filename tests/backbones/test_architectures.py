"""Every family of vision transformers that open_clip and timm have: features, sizes, the V-V path, windows, methods."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.windows import encode_windows, window_index
from afclip_lightning.engine.factory import methods
from afclip_lightning.methods.nearest_neighbours import NearestNeighbours
from afclip_lightning.types import AnomalyPrediction, Batch
from afclip_runtime.errors import UserError, WeightsError
from tests.reference import dual_path_naive as naive
from tests.support.architectures import ARCHITECTURES, DEPTH, build_tiny, is_of_timm, is_vision_only, smaller_trunks
from tests.support.cases import CASES
from tests.support.methods import batch_of, data_of, fit_noise, score, train_step, trainer_of

ROTARY = [name for name in ARCHITECTURES if name.startswith(("EVA", "PE", "DINOv3", "Sapiens", "RoPE", "LingBot"))]
EXACT: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("architectures")


@lru_cache(maxsize=2)
def tiny_of(name: str, folder: Path) -> ClipBackbone:
    return build_tiny(name, folder, **({"text": "random"} if is_vision_only(name) else {}))


@pytest.fixture(params=ARCHITECTURES, scope="module")
def backbone(request: pytest.FixtureRequest, folder: Path) -> ClipBackbone:
    return tiny_of(request.param, folder)


@pytest.fixture(params=ARCHITECTURES)
def exact(request: pytest.FixtureRequest, folder: Path) -> ClipBackbone:
    """In float64."""
    return deepcopy(tiny_of(request.param, folder)).double()


def image_for(backbone: ClipBackbone, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *backbone.preprocess.shape, dtype=next(backbone.parameters()).dtype)


@torch.no_grad()
def own_pass(backbone: ClipBackbone, image: Tensor) -> tuple[list[Tensor], Tensor]:
    """Returns the output of each block in the tower's own forward pass, and the result of that pass."""
    outputs: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda *given: outputs.append(given[2])) for block in backbone.vision.blocks]
    embedding = backbone.vision.visual(image)
    for hook in hooks:
        hook.remove()
    return outputs, embedding


def test_features_are_those_of_the_towers_own_pass(exact: ClipBackbone, request: pytest.FixtureRequest) -> None:
    one = ARCHITECTURES[request.node.callspec.params["exact"]]
    vision, image = exact.vision, image_for(exact)
    streams, embedding = own_pass(exact, image)
    beside = exact.encode_image(image, exact.spec((1, 2, 3), True, vv_layers=(2, 3), vv_from=2))
    plain = exact.encode_image(image, exact.spec((1, 2, 3), True))
    assert plain.grid == exact.grid == (4, 4)
    assert (vision.depth, vision.has_class_token) == (DEPTH, one.has_class_token)
    assert [stream.shape[1] for stream in streams] == [vision.n_prefix + 16] * DEPTH
    for features in (plain, beside):
        for tokens, stream in zip(features.tokens, streams, strict=True):
            patches = stream[:, vision.n_prefix :]
            torch.testing.assert_close(tokens[:, 1:], patches, **EXACT)
            torch.testing.assert_close(tokens[:, 0], stream[:, 0] if one.has_class_token else patches.mean(1), **EXACT)
        torch.testing.assert_close(features.class_token, features.tokens[-1][:, 0])
        torch.testing.assert_close(features.image_embedding, embedding, **EXACT)
    assert not torch.allclose(beside.vv_tokens[-1][:, 1:], plain.tokens[-1][:, 1:])


def test_a_token_is_projected_as_the_image_embedding_is(exact: ClipBackbone, request: pytest.FixtureRequest) -> None:
    pools = ARCHITECTURES[request.node.callspec.params["exact"]].pools
    features = exact.encode_image(image_for(exact), exact.spec((3,), True))
    tokens = features.tokens[0]
    projected = exact.project(tokens)
    assert projected.shape == (2, 17, exact.embed_dim)
    if pools == "map":  # of an image of one token, attention pools that token
        trunk = exact.vision.visual.trunk
        for place in (0, 1, 16):
            alone = trunk.fc_norm(trunk.attn_pool(trunk.norm(tokens[:, place : place + 1])))
            torch.testing.assert_close(projected[:, place], exact.vision.visual.head(trunk.head(alone)), **EXACT)
    else:
        pooled = tokens[:, 0] if pools == "token" else tokens[:, 1:].mean(1)
        torch.testing.assert_close(exact.project(pooled), features.image_embedding, **EXACT)


@pytest.mark.parametrize("name", ROTARY)
def test_both_streams_equal_the_loop(folder: Path, name: str) -> None:
    backbone = deepcopy(tiny_of(name, folder)).double()
    vision, image = backbone.vision, image_for(backbone, 1)
    features = backbone.encode_image(image, backbone.spec((2, 3), vv_layers=(2, 3), vv_from=2))
    with torch.no_grad():
        embedded, rotations = vision.embed(image)
        original = value = list(embedded[0])
        for number, (block, rotation) in enumerate(zip(vision.blocks, rotations, strict=True), 1):
            original, after = naive.step(block, original, value, rotation)
            value = after if number >= 2 else original
            if number >= 2:
                expected = torch.stack([*original[:1], *original[vision.n_prefix :]])
                if vision.has_class_token:
                    torch.testing.assert_close(features.tokens[number - 2][0], expected, **EXACT)
                of_values = torch.stack(value[vision.n_prefix :])
                torch.testing.assert_close(features.vv_tokens[number - 2][0, 1:], of_values, **EXACT)


def test_values_are_not_rotated(folder: Path) -> None:
    """Patches of equal value attend equally at any position: the V-V path compares contents."""
    backbone = tiny_of("DINOv3", folder)
    image = torch.randn(1, 3, 16, 16).repeat(1, 1, 4, 4)  # one patch, 16 times
    features = backbone.encode_image(image, backbone.spec(vv_layers=(1,), vv_from=1))
    patches = features.vv_tokens[0][0, 1:]
    torch.testing.assert_close(patches, patches[:1].expand(16, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("patches", [(6, 6), (6, 3)])
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if is_of_timm(name)])
def test_another_size_equals_timms_own(folder: Path, name: str, patches: tuple[int, int]) -> None:
    """Absolute positions by timm's rule, rotary ones, both or none: a tower accepts any size in whole patches."""
    backbone = tiny_of(name, folder)
    ours, theirs = deepcopy(backbone.vision), deepcopy(backbone.vision.visual)
    h, w = patches[0] * ours.patch_size, patches[1] * ours.patch_size
    ours.resize((h, w), "bicubic_antialias")
    theirs.set_input_size((h, w))
    image = torch.randn(1, 3, h, w)
    with torch.no_grad():
        features = ours.tap(image, backbone.spec((3,), True))
        torch.testing.assert_close(features.image_embedding, theirs(image), rtol=1e-4, atol=1e-5)
    assert features.grid == patches
    assert features.tokens[0].shape == (1, 1 + patches[0] * patches[1], ours.width)


@pytest.mark.parametrize("name", ["EVA-02", "PE-Core", "DINOv3", "RoPE of each block", "SigLIP"])
def test_windows_keep_the_rotations_of_their_places(folder: Path, name: str) -> None:
    backbone = tiny_of(name, folder)
    vision, image = backbone.vision, image_for(backbone)
    small, whole = encode_windows(vision, image, (2, 4))
    torch.testing.assert_close(
        whole[:, 0],
        backbone.encode_image(image, backbone.spec(image_embedding=True)).image_embedding,
        rtol=1e-4,
        atol=1e-5,
    )
    embedded, rotations = vision.embed(image)
    for place, patches in enumerate(window_index((4, 4), 2)):
        tokens = torch.cat([embedded[:, : vision.n_prefix], embedded[:, vision.n_prefix + patches]], dim=1)
        for block, rotation in zip(vision.blocks, rotations, strict=True):
            tokens = block(tokens) if rotation is None else block(tokens, rope=rotation[:, patches])
        torch.testing.assert_close(small[:, place], vision.pool(tokens), rtol=1e-4, atol=1e-5)


def batch_for(backbone: ClipBackbone) -> Batch:
    """Returns images with the reference images that some methods need."""
    batch = batch_of(4, backbone.preprocess.shape[0])
    batch.reference, batch.reference_rows = batch.image[:0], torch.tensor([[2], [3], [0], [1]])
    return batch


def scored(method: Any, batch: Batch, folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields scores and maps: of a batch, or of a small test set where images are compared with each other."""
    if not method.needs_test_set:
        yield score(method, batch)
        return
    for prediction in trainer_of(folder).predict(method, data_of(folder, method)) or []:
        assert isinstance(prediction, AnomalyPrediction)
        yield prediction.pred_score, prediction.anomaly_map


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES))
def test_every_method_runs_on_it(backbone: ClipBackbone, name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = methods()[name](backbone, **CASES[name].small)
    batch = batch_for(backbone)
    batch = replace(batch, samples=[replace(sample, class_name="metal nut") for sample in batch.samples])
    optimizer = method.configure_optimizers()
    assert (optimizer is not None) == CASES[name].trains
    if optimizer is not None:
        losses = train_step(method, optimizer, batch)
        assert all(loss.isfinite() for loss in losses.values())
        assert all(p.isfinite().all() for p in method.parameters())
    if method.k_shot:
        fit_noise(method, method.k_shot)
    for scores, maps in scored(method, batch, tmp_path):
        assert scores.isfinite().all()
        assert maps.isfinite().all()
        assert maps.shape == (len(scores), *backbone.preprocess.shape)
        assert method.needs_test_set or maps.std() > 0  # the images of that set are alike


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_tower_without_text_runs_what_needs_none(folder: Path, name: str) -> None:
    backbone = build_tiny("DINOv3", folder)
    refused = None
    try:
        methods()[name](backbone, **CASES[name].small)
    except UserError as error:
        refused = str(error)
    assert refused is None or name not in {
        "MuSc",
        "MuSc2",
        "MRAD",
        "NearestNeighbours",
        "PatchRarity",
        "SubspaceAD",
        "UniADet",
    }
    assert refused in (
        None,
        "timm:vit_large_patch16_dinov3 is a vision tower without text, and this method needs text. Name a CLIP, such "
        "as `model: PE-Core-L-14-336`, or a method without text (NearestNeighbours, PatchRarity, MuSc), or add `text: "
        "random`: a text tower whose sentences mean nothing until a method is trained.",
    )


REFUSED = {
    "RN50": "vision tower ModifiedResNet has no patch tokens that its projection fits; use .* such as ViT-B-16",
    "coca_ViT-B-32": "vision tower VisionTransformer has no patch tokens that its projection fits; use .* ViT-B-16",
    "convnext_tiny": "vision tower ConvNeXt is not a vision transformer, so it cannot be tapped; use one, such as",
    "MobileCLIP2-S0": "vision tower FastVit is not a vision transformer, .* MobileCLIP2-B",
    "vit_relpos_medium_patch16_cls_224": "vision tower VisionTransformerRelPos is not a vision transformer",
    "timm:naflexvit_base_patch16_radio_v3": "tower NaFlexVit is not a vision transformer, .* vit_base_patch16_radio_v3",
    "timm:resnet18": "vision tower ResNet is not a vision transformer",
    "timm:swin_tiny_patch4_window7_224": "vision tower SwinTransformer is not a vision transformer",
}


@pytest.mark.slow
@pytest.mark.parametrize("model", REFUSED)
def test_what_cannot_work_says_what_would(model: str) -> None:
    with pytest.raises(WeightsError, match=REFUSED[model]) as refused:
        ClipBackbone(model, "random", image_size=None)
    assert "\n" not in str(refused.value)


def test_tokens_that_fill_no_grid_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build_tiny("DINOv2", folder)
    embed = backbone.vision.visual.trunk.patch_embed
    forward = embed.forward
    monkeypatch.setattr(embed, "forward", lambda image: forward(image)[:, :-1])
    backbone.vision.visual.trunk.pos_embed = None
    with pytest.raises(
        WeightsError, match=r"makes 15 tokens of 56 x 56 pixels, which do not form a grid of patches of 14 pixels"
    ):
        backbone.vision.resize((56, 56), "bilinear")


def test_names_of_timm(folder: Path) -> None:
    plain = build_tiny("DINOv3", folder)
    with smaller_trunks({"embed_dim": 64, "num_heads": 4}):
        untagged = ClipBackbone("timm:vit_large_patch16_dinov3", "random", image_size=64)
    assert plain.model == untagged.model == "timm:vit_large_patch16_dinov3"
    assert plain.spec((1,)) == untagged.spec((1,))
    assert plain.preprocess.mean == (0.485, 0.456, 0.406)
    assert build_tiny("TIPSv2", folder).preprocess.mean == (0, 0, 0)
    assert plain.embed_dim == plain.vision.width
    assert NearestNeighbours(plain, layers=(1, 3), k_shot=1).spec.model == plain.model
    with pytest.raises(ValueError, match=r"timm has no model 'vit_large_patch16_dinov4'; did you mean .*dinov3"):
        ClipBackbone("timm:vit_large_patch16_dinov4", "random")
    with pytest.raises(WeightsError, match=r"without weights tagged 'openai'. Name its own, `weights: timm:vit_tiny"):
        ClipBackbone("timm:vit_tiny_patch16_224.augreg_in21k")
    with pytest.raises(ValueError, match="ViT-B-32 has a text tower of its own, got text: random"):
        ClipBackbone("ViT-B-32", "random", text="random")
    with pytest.raises(ValueError, match="text must be one of own, random, got 'none'"):
        ClipBackbone("timm:vit_tiny_patch16_224", "random", text="none")  # type: ignore[arg-type]


def test_a_file_fills_a_tower_of_timm(folder: Path, tmp_path: Path) -> None:
    source = build_tiny("DINOv3", folder, seed=3)
    path = tmp_path / "tower.pt"
    torch.save(source.vision.visual.trunk.state_dict(), path)
    with smaller_trunks({"embed_dim": 64, "num_heads": 4}):
        filled = ClipBackbone(ARCHITECTURES["DINOv3"].model, str(path), image_size=64)
    image = image_for(source)
    spec = source.spec((3,))
    torch.testing.assert_close(filled.encode_image(image, spec).tokens, source.encode_image(image, spec).tokens)
    assert filled.preprocess.mean == (0.485, 0.456, 0.406)


def test_a_random_text_tower_beside_a_vision_tower(folder: Path) -> None:
    first, again, other = (build_tiny("DINOv3", folder, text="random", seed=seed) for seed in (0, 0, 1))
    torch.testing.assert_close(first.encode_text(["a nut"]), again.encode_text(["a nut"]))
    assert not torch.allclose(first.encode_text(["a nut"]), other.encode_text(["a nut"]))
    assert first.encode_text(["a nut"]).shape == (1, first.embed_dim)
    assert first.weights_hash != build_tiny("DINOv3", folder).weights_hash
