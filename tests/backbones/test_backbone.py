"""The backbone: taps, sizes, positional embeddings, text, weights from every kind of file."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.transformer import text_global_pool
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.positional import resize_positional_embedding
from afclip_lightning.backbones.preprocess import CLIP_MEAN, CLIP_STD
from afclip_lightning.backbones.sources import normalisation_of
from afclip_lightning.backbones.spec import FeatureSpec
from afclip_lightning.backbones.weights import fingerprint, uses_quick_gelu
from afclip_lightning.methods.patch_rarity import PatchRarity
from afclip_runtime.errors import UserError, WeightsError
from tests.support.clips import SMALL, TIMM, openai_archive, small_clip, small_config


def test_frozen_and_always_in_eval_mode(tiny: ClipBackbone) -> None:
    tiny.train()
    assert not tiny.training
    assert not any(module.training for module in tiny.modules())
    assert not any(parameter.requires_grad for parameter in tiny.parameters())


def test_taps_equal_a_pass_block_by_block(tmp_path: Path) -> None:
    backbone = ClipBackbone(small_config(tmp_path), "random", image_size=None)
    visual, image = backbone.vision.visual, torch.randn(2, 3, 28, 28)
    x = visual.conv1(image).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(2, 1, -1), x], 1) + visual.positional_embedding
    x = visual.ln_pre(x)
    outputs = []
    for block in visual.transformer.resblocks:
        x = block(x)
        outputs.append(x)
    features = backbone.encode_image(image, backbone.spec((1, 3), image_embedding=True))
    torch.testing.assert_close(features.tokens[0], outputs[0])
    torch.testing.assert_close(features.tokens[1], outputs[2])
    torch.testing.assert_close(features.image_embedding, visual(image))
    torch.testing.assert_close(backbone.project(outputs[2])[:, 0], visual(image))
    assert features.grid == (2, 2)
    assert backbone.encode_image(image, backbone.spec((1,))).image_embedding is None


@pytest.mark.parametrize("layers", [(0, 1), (1, 4), (2, 1), (1, 1)])
def test_layers_out_of_range_are_refused(tmp_path: Path, layers: tuple[int, ...]) -> None:
    backbone = ClipBackbone(small_config(tmp_path), "random", image_size=None)
    with pytest.raises(ValueError, match="within 1 to 3"):
        backbone.spec(layers)
    with pytest.raises(ValueError, match="vv_layers must rise within 1 to 3"):
        backbone.spec(vv_layers=layers, vv_from=1)


def test_layers_of_another_tower_name_those_of_this_one(tiny: ClipBackbone) -> None:
    depth = r"must rise within \d to 8 for tiny-8-112, got \[6, 12, 18, 24\]"
    with pytest.raises(ValueError, match=rf"^layers {depth}\. For this tower: --model\.layers \[2,4,6,8\]$"):
        PatchRarity(tiny)
    with pytest.raises(ValueError, match=rf"^vv_layers {depth}\. For this tower: --model\.layers \[5,6,7,8\]$"):
        tiny.spec(vv_layers=(6, 12, 18, 24), vv_from=5)
    with pytest.raises(ValueError, match=r"got \[9\]$"):
        tiny.spec((9,))


def test_taps_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    backbone = ClipBackbone(small_config(tmp_path), "random", image_size=None)
    with pytest.raises(ValueError, match="got none of them"):
        backbone.spec(())
    with pytest.raises(ValueError, match="vv_layers must rise within 3 to 3"):
        backbone.spec(vv_layers=(2,), vv_from=3)
    for arguments in ({"vv_layers": (2,)}, {"layers": (2,), "vv_from": 2}, {"vv_layers": (2,), "vv_from": 0}):
        with pytest.raises(ValueError, match="go together"):
            backbone.spec(**arguments)


def naive_dual_path(visual: Any, image: torch.Tensor, first: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Both streams after every block, attention written out head by head."""

    def attend(block: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        width = v.shape[-1] // block.attn.num_heads
        heads = []
        for i in range(block.attn.num_heads):
            part = slice(i * width, (i + 1) * width)
            heads.append(torch.softmax(q[..., part] @ k[..., part].mT / width**0.5, -1) @ v[..., part])
        return torch.cat(heads, -1) @ block.attn.out_proj.weight.T + block.attn.out_proj.bias

    x = visual.conv1(image).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(image), 1, -1), x], 1) + visual.positional_embedding
    x = value = visual.ln_pre(x)
    originals, values = [], []
    for number, block in enumerate(visual.transformer.resblocks, 1):
        q, k, v = (block.ln_1(x) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).chunk(3, -1)
        value_after = value + attend(block, v, v, v)
        x = x + attend(block, q, k, v)
        x = x + block.mlp(block.ln_2(x))
        value = value_after if number >= first else x
        originals.append(x)
        values.append(value)
    return originals, values


@pytest.mark.parametrize("first", [1, 2, 3])
def test_dual_path_equals_the_loop_and_leaves_the_original_path_alone(tmp_path: Path, first: int) -> None:
    vision = {**SMALL["vision_cfg"], "width": 128}  # two heads
    backbone = ClipBackbone(small_config(tmp_path, vision_cfg=vision), "random", image_size=None)
    image = torch.randn(2, 3, 28, 28)
    before = [{name: hooks for name, hooks in vars(m).items() if "hooks" in name} for m in backbone.modules()]
    spec = backbone.spec((1, 3), True, vv_layers=range(first, 4), vv_from=first)
    features = backbone.encode_image(image, spec)
    assert before == [{name: hooks for name, hooks in vars(m).items() if "hooks" in name} for m in backbone.modules()]
    originals, values = naive_dual_path(backbone.vision.visual, image, first)
    for tokens, original, value in zip(features.vv_tokens, originals[first - 1 :], values[first - 1 :], strict=True):
        torch.testing.assert_close(tokens[:, 1:], value[:, 1:])
        torch.testing.assert_close(tokens[:, 0], original[:, 0])
    assert not any(torch.equal(a, b) for a, b in zip(features.vv_tokens, features.vv_tokens[1:], strict=False))
    plain = backbone.encode_image(image, backbone.spec((1, 3), True))
    assert plain.vv_tokens == ()
    for tokens, expected in zip(features.tokens, plain.tokens, strict=True):
        torch.testing.assert_close(tokens, expected)
    torch.testing.assert_close(features.class_token, plain.class_token)
    torch.testing.assert_close(features.image_embedding, plain.image_embedding)
    torch.testing.assert_close(backbone.project(plain.class_token), plain.image_embedding)
    unnormed = backbone.project(plain.class_token, final_norm=False)
    torch.testing.assert_close(unnormed, plain.class_token @ backbone.vision.visual.proj)


def test_dual_path_runs_no_block_that_nothing_needs(tmp_path: Path) -> None:
    backbone = ClipBackbone(small_config(tmp_path), "random", image_size=None)
    last = backbone.vision.blocks[2]
    del last.mlp  # would raise if it ran
    features = backbone.encode_image(torch.randn(1, 3, 28, 28), backbone.spec(vv_layers=(2,), vv_from=1))
    assert len(features.vv_tokens) == 1


def test_sizes(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    backbone = ClipBackbone(config, "random", image_size=70)
    assert backbone.encode_image(torch.randn(1, 3, 70, 70), backbone.spec((2,))).tokens[0].shape == (1, 26, 64)
    assert backbone.preprocess.image_size == 70
    with pytest.raises(
        ValueError, match=r"of the patch size 14, got 75; nearest: 70 and 84\. It is --model\.backbone\.image_size"
    ):
        ClipBackbone(config, "random", image_size=75)


@pytest.mark.parametrize(("rule", "mode", "antialias"), [
    ("bilinear", "bilinear", False),
    ("bicubic", "bicubic", False),
    ("bicubic_antialias", "bicubic", True),
])  # fmt: skip
def test_positional_embedding_rules(rule: str, mode: str, antialias: bool) -> None:
    table = torch.randn(2 + 4 * 4, 3)  # two prefix rows
    for side in (3, 6):
        resized = resize_positional_embedding(table, (4, 4), (side, side), rule)
        torch.testing.assert_close(resized[:2], table[:2])
        planes = table[2:].reshape(1, 4, 4, 3).permute(0, 3, 1, 2)
        expected = F.interpolate(planes, size=side, mode=mode, align_corners=False, antialias=antialias)
        torch.testing.assert_close(resized[2:], expected.permute(0, 2, 3, 1).reshape(-1, 3))
    assert resize_positional_embedding(table, (4, 4), (4, 4), rule) is table


def test_open_clips_own_resize_is_bicubic_antialias(tmp_path: Path) -> None:
    """Weights of one size loaded by open_clip at another equal ours under the rule of that name."""
    path = tmp_path / "w.safetensors"
    save_file({k: v.contiguous() for k, v in small_clip().state_dict().items()}, path)
    config = small_config(tmp_path)
    ours = ClipBackbone(config, str(path), image_size=70, pos_embed="bicubic_antialias", activation="gelu")
    theirs = open_clip.create_model("small", pretrained=str(path), force_image_size=70).eval()
    image = torch.randn(1, 3, 70, 70)
    features = ours.encode_image(image, ours.spec((3,), image_embedding=True))
    torch.testing.assert_close(features.image_embedding, theirs.visual(image))


def test_text_cut_at_the_end_token_equals_the_whole_sequence(tmp_path: Path) -> None:
    backbone = ClipBackbone(small_config(tmp_path), "random", image_size=None)
    prompts = ["with defect.", "a photo of a flawless metal nut for anomaly detection."]
    ids, text = backbone.tokenize(prompts), backbone.text
    hidden = text.token_embedding(ids) + text.positional_embedding
    hidden = text.ln_final(text.transformer(hidden, attn_mask=text.attn_mask))
    expected = text_global_pool(hidden, ids, "argmax") @ text.text_projection
    torch.testing.assert_close(backbone.encode_text(prompts), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("deep", [0, 2, 4], ids=["no deep tokens", "within what is shared", "beyond it"])
def test_prompts_that_begin_alike_equal_those_taken_apart(tmp_path: Path, deep: int) -> None:
    text = {**SMALL["text_cfg"], "layers": 3, "width": 32, "heads": 2}
    tower = ClipBackbone(small_config(tmp_path, text_cfg=text), "random", image_size=None).text
    torch.manual_seed(1)
    first, rest = torch.randn(3, 32, requires_grad=True), torch.randn(5, 4, 32, requires_grad=True)
    tokens = torch.randn(2, deep, 32, requires_grad=True)
    end = torch.tensor([6, 5, 6, 4, 6])

    def embed(shared: int) -> tuple[Tensor, ...]:
        prompts = torch.cat([first.expand(5, -1, -1), rest], dim=1)
        with FlopCounterMode(display=False) as counter:
            embedded = tower(prompts, end, tokens if deep else (), shared)
        used = [first, rest, tokens] if deep else [first, rest]
        operations.append(counter.get_total_flops())
        return embedded, *torch.autograd.grad(embedded.square().sum(), used)

    operations: list[int] = []
    torch.testing.assert_close(embed(3), embed(0))
    once, apart = operations
    assert once == apart if deep == 4 else once < 0.75 * apart  # 3 + 5 * 4 tokens for 5 * 7


def test_prompts_of_several_beginnings_equal_the_towers_own_blocks(tmp_path: Path) -> None:
    text = {**SMALL["text_cfg"], "layers": 3, "width": 32, "heads": 2}
    tower = ClipBackbone(small_config(tmp_path, text_cfg=text), "random", image_size=None).text
    torch.manual_seed(1)
    first, rest = torch.randn(2, 3, 32, requires_grad=True), torch.randn(5, 4, 32, requires_grad=True)
    end, sizes = torch.tensor([6, 5, 6, 4, 6]), [2, 3]
    prompts = torch.cat([first.repeat_interleave(torch.tensor(sizes), dim=0), rest], dim=1)
    hidden = prompts + tower.positional_embedding[:7]
    for block in tower.transformer.resblocks:  # every block whole, every prompt by itself
        hidden = block(hidden, attn_mask=tower.attn_mask[:7, :7])
    whole = tower.ln_final(hidden[range(5), end]) @ tower.text_projection
    with FlopCounterMode(display=False) as counter:
        once = tower(prompts, end, shared=3, sizes=sizes)
    cut = 2 * 3 + 5 * 4  # tokens, for 5 * 7; of the last block all of them give keys and values, the ends all else
    per_token = 2 * 32 * (4 + 8) * 32
    attention = 2 * 2 * 32 * 2 * (2 * 3 * 3 + 5 * 4 * 7) + 2 * 2 * 32 * 5 * 7
    last = 2 * 32 * 2 * 32 * cut + 2 * 32 * (2 + 8) * 32 * 5
    projection = 2 * 5 * 32 * tower.text_projection.shape[1]
    assert counter.get_total_flops() == 2 * cut * per_token + last + attention + projection
    expected, *others = (
        (embedded, *torch.autograd.grad(embedded.square().sum(), [first, rest], retain_graph=True))
        for embedded in (whole, once, tower(prompts, end))
    )
    for other in others:
        torch.testing.assert_close(other, expected)


def test_random_weights_follow_the_seed_and_leave_the_global_one_alone(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = ClipBackbone(config, "random", image_size=None, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    again = ClipBackbone(config, "random", image_size=None, seed=3)
    other = ClipBackbone(config, "random", image_size=None, seed=4)
    assert first.weights_hash == again.weights_hash != other.weights_hash
    assert "RANDOM" in first.description


@pytest.mark.parametrize("kind", ["safetensors", "pt", "torchscript"])
def test_local_files_of_every_kind(tmp_path: Path, kind: str) -> None:
    clip = small_clip(seed=7)
    clip.load_state_dict({name: tensor.half().float() for name, tensor in clip.state_dict().items()})
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, path)
    elif kind == "pt":
        torch.save({"state_dict": clip.state_dict()}, path)
    else:
        openai_archive(clip, path)
    backbone = ClipBackbone(small_config(tmp_path), str(path), image_size=None, activation="auto")
    # an archive is OpenAI's own form, so its weights were trained with QuickGELU; other files follow the config
    assert backbone.activation == ("quick_gelu" if kind == "torchscript" else "gelu")
    image = torch.randn(1, 3, 28, 28)
    if kind == "torchscript":
        quick = small_clip(quick_gelu=True)
        quick.load_state_dict(clip.state_dict())
        clip = quick
    features = backbone.encode_image(image, backbone.spec((3,), image_embedding=True))
    torch.testing.assert_close(features.image_embedding, clip.visual(image))
    assert path.name in backbone.description


def test_equal_weights_have_one_fingerprint_in_any_file(tmp_path: Path) -> None:
    clip, config = small_clip(), small_config(tmp_path)
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, tmp_path / "a.safetensors")
    torch.save(clip.state_dict(), tmp_path / "b.pt")
    a, b = (ClipBackbone(config, str(tmp_path / n), image_size=None) for n in ("a.safetensors", "b.pt"))
    assert a.weights_hash == b.weights_hash
    assert a.spec((1,)).differences(b.spec((1,)).to_dict()) == []
    with torch.no_grad():
        clip.visual.proj[0, 0] += 1e-3
    torch.save(clip.state_dict(), tmp_path / "c.pt")
    c = ClipBackbone(config, str(tmp_path / "c.pt"), image_size=None)
    assert [line.split(":")[0] for line in a.spec((1,)).differences(c.spec((1,)).to_dict())] == ["weights_hash"]


@pytest.mark.slow
def test_a_recipe_has_one_fingerprint_on_any_processor() -> None:
    """Random and resized tensors differ in their last bits between processors."""
    code = (
        "from afclip_lightning.backbones.clip import ClipBackbone\n"
        "for model, text in (('tiny-8-112', 'own'), ('timm:vit_tiny_patch16_224', 'random')):\n"
        "    print(ClipBackbone(model, 'random', image_size=None, text=text).weights_hash)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "ATEN_CPU_CAPABILITY": instructions},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for instructions in ("default", "avx2")
    }
    assert len(found) == 1


def test_tensors_that_were_computed_count_by_their_first_values() -> None:
    state = {"read": torch.arange(8.0), "drawn": torch.arange(1.0, 9.0)}
    exact, coarse = fingerprint(state), fingerprint(state, {"drawn"})
    state["drawn"] *= 1 + 1e-6
    assert fingerprint(state) != exact
    assert fingerprint(state, {"drawn"}) == coarse
    state["drawn"] += 1
    assert fingerprint(state, {"drawn"}) != coarse
    state["drawn"] -= 1
    state["read"][0] = 1e-9
    assert fingerprint(state, {"drawn"}) != coarse


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_fingerprint_does_not_depend_on_the_parts_that_are_summed(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {"matrix": torch.randn(37, 11, generator=generator).to(dtype), "scale": torch.tensor(2.0, dtype=dtype)}
    whole = fingerprint(state)
    monkeypatch.setattr("afclip_lightning.backbones.weights.FINGERPRINT_PART", 10)
    assert fingerprint(state) == whole
    state["matrix"][36, 10] += 1
    assert fingerprint(state) != whole


def test_spec_names_every_difference(tiny: ClipBackbone) -> None:
    spec = tiny.spec((2, 4))
    assert isinstance(spec, FeatureSpec)
    other = {**spec.to_dict(), "layers": [1, 2], "pos_embed": "bicubic"}
    assert [line.split(":")[0] for line in spec.differences(other)] == ["layers", "pos_embed"]


def test_activation_of_a_local_file_is_never_guessed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="activation: quick_gelu"):
        ClipBackbone("ViT-B-16", str(path), image_size=None)


def test_weights_that_cannot_be_had_name_the_local_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    with pytest.raises(
        WeightsError, match=r"give its path as `weights`, on the command line --model\.backbone\.weights FILE"
    ):
        ClipBackbone("ViT-B-32", "openai", image_size=224)
    with pytest.raises(WeightsError, match=r"no weights tagged 'opneai'; it has: openai"):
        ClipBackbone("ViT-B-32", "opneai", image_size=224)
    with pytest.raises(WeightsError, match=r"absent\.pt do not exist"):
        ClipBackbone("ViT-B-32", str(tmp_path / "absent.pt"), image_size=224)
    with pytest.raises(ValueError, match="did you mean ViT-B-32"):
        ClipBackbone("ViT-B-23")


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    config, path = small_config(tmp_path), tmp_path / "w.pt"
    for content in (b"", b"not weights", b"PK\x03\x04 neither"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"w\.pt: not usable"):
            ClipBackbone(config, str(path), image_size=None)
    torch.save({"visual.proj": torch.zeros(3, 3)}, path)
    with pytest.raises(WeightsError, match=r"w\.pt: not usable"):
        ClipBackbone(config, str(path), image_size=None)


@pytest.mark.parametrize(("model", "quick"), [("ViT-L-14-336", True), ("ViT-B-32", True), ("ViT-B-32-256", False)])
def test_tags_turn_quick_gelu_on_for_openai_only(model: str, quick: bool) -> None:
    tag = "openai" if quick else open_clip.list_pretrained_tags_by_model(model)[0]
    assert uses_quick_gelu(model, open_clip.get_model_config(model), tag) is quick


@pytest.mark.slow
def test_timm_tower(tmp_path: Path) -> None:
    """A timm vision transformer: taps, a file of its own weights, another size, projection of the class token."""
    config = small_config(tmp_path, "timm-small", **TIMM)
    source = ClipBackbone(config, "random", image_size=224, seed=5)
    trunk = source.vision.visual.trunk
    path = tmp_path / "vision.safetensors"
    save_file({k: v.clone() for k, v in trunk.state_dict().items() if not k.startswith("head.")}, path)
    backbone = ClipBackbone(config, "random", image_size=224, vision_weights=str(path))
    image = torch.randn(1, 3, 224, 224)
    spec = backbone.spec((2, 12), image_embedding=True)
    features = backbone.encode_image(image, spec)
    torch.testing.assert_close(features.tokens[1], source.encode_image(image, source.spec((12,))).tokens[0])
    torch.testing.assert_close(backbone.project(features.tokens[1])[:, 0], features.image_embedding)
    assert features.tokens[0].shape == (1, 197, 192)
    smaller = ClipBackbone(config, "random", image_size=64, pos_embed="bilinear", vision_weights=str(path))
    expected = resize_positional_embedding(trunk.pos_embed[0], (14, 14), (4, 4), "bilinear")
    torch.testing.assert_close(smaller.vision.visual.trunk.pos_embed[0], expected)
    assert smaller.encode_image(torch.randn(1, 3, 64, 64), smaller.spec((1,))).tokens[0].shape == (1, 17, 192)
    save_file({"blocks.0.norm1.weight": torch.ones(192)}, path)
    with pytest.raises(WeightsError, match="does not fit the vision tower"):
        ClipBackbone(config, "random", image_size=64, vision_weights=str(path))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_dual_path_of_a_timm_tower(tmp_path: Path, name: str) -> None:
    """The original path equals timm's pass, with and without registers. The V-V path equals attention by hand."""
    vision = {**TIMM["vision_cfg"], "timm_model_name": name}
    backbone = ClipBackbone(
        small_config(tmp_path, "timm-vv", **{**TIMM, "vision_cfg": vision}), "random", image_size=112
    )
    image = torch.randn(2, 3, 112, 112)
    plain = backbone.encode_image(image, backbone.spec((11, 12), True))
    features = backbone.encode_image(image, backbone.spec((11, 12), True, vv_layers=(11, 12), vv_from=12 - 1))
    torch.testing.assert_close(features.tokens, plain.tokens)
    torch.testing.assert_close(features.class_token, plain.class_token)
    torch.testing.assert_close(features.image_embedding, plain.image_embedding)
    torch.testing.assert_close(backbone.project(plain.class_token), plain.image_embedding)
    both = backbone.encode_image(image, backbone.spec((11,), vv_layers=(12,), vv_from=12))
    block, trunk = backbone.vision.blocks[11], backbone.vision.visual.trunk
    x = trunk.forward_intermediates(image, indices=[10], output_fmt="NLC", return_prefix_tokens=True)[1][0]
    x = torch.cat([x[1], x[0]], 1)
    v = block.attn.qkv(block.norm1(x)).chunk(3, -1)[2].unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2)
    mixed = torch.softmax(v @ v.mT / v.shape[-1] ** 0.5, -1) @ v
    expected = x + block.ls1(block.attn.proj(mixed.transpose(1, 2).flatten(2)))
    torch.testing.assert_close(both.vv_tokens[0][:, 1:], expected[:, trunk.num_prefix_tokens :])


def test_a_tower_whose_attention_is_of_another_kind_has_no_dual_path(tmp_path: Path) -> None:
    config = small_config(tmp_path, "normed", vision_cfg={**SMALL["vision_cfg"], "qk_norm": True})
    backbone = ClipBackbone(config, "random", image_size=None)
    assert backbone.encode_image(torch.randn(1, 3, 28, 28), backbone.spec((2,))).tokens[0].shape == (1, 5, 64)
    with pytest.raises(WeightsError, match="the V-V path cannot run"):
        backbone.spec(vv_layers=(3,), vv_from=2)


@pytest.mark.slow
def test_siglip_like_tower_without_class_token(tmp_path: Path) -> None:
    """A tower that pools by attention, and a text tower that is not causal and pools its last token."""
    vision = {
        "image_size": 224,
        "timm_model_name": "vit_base_patch16_siglip_224",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }
    text = {**SMALL["text_cfg"], "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "width": 64}
    config = small_config(tmp_path, "siglip-like", embed_dim=768, vision_cfg=vision, text_cfg=text, custom_text=True)
    backbone = ClipBackbone(config, "random", image_size=64)
    features = backbone.encode_image(torch.randn(2, 3, 64, 64), backbone.spec((1, 12)))
    torch.testing.assert_close(features.tokens[0][:, 0], features.tokens[0][:, 1:].mean(1))
    assert features.tokens[1].shape == (2, 17, 768)
    clip = CustomTextCLIP(768, CLIPVisionCfg(**vision), CLIPTextCfg(**text)).eval()
    shared = {k: v for k, v in backbone.text.state_dict().items() if k in clip.text.state_dict()}
    clip.text.load_state_dict(shared)
    ids = torch.randint(0, 49408, (1, 77))  # SigLIP's own tokenizer needs a download
    embedded = backbone.text(backbone.text.token_embedding(ids), torch.tensor([5]))
    torch.testing.assert_close(embedded, clip.encode_text(ids))


def test_normalisation_is_what_the_weights_were_trained_with(tmp_path: Path) -> None:
    half = (0.5, 0.5, 0.5)
    assert normalisation_of("ViT-B-16-SigLIP", "webli") == (half, half)
    assert normalisation_of("ViT-B-16-SigLIP", "some/file.safetensors") == (half, half)
    assert normalisation_of("ViT-L-14-336", "openai") == (CLIP_MEAN, CLIP_STD)
    backbone = ClipBackbone(small_config(tmp_path), "random", image_size=None, mean=half)
    assert backbone.preprocess.mean == half
    assert backbone.preprocess.std == CLIP_STD
    other = ClipBackbone(small_config(tmp_path), "random", image_size=None)
    assert [d.split(":")[0] for d in backbone.spec((1,)).differences(other.spec((1,)).to_dict())] == ["mean"]


def test_towers_without_patch_tokens_are_refused(tmp_path: Path) -> None:
    resnet = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    config = small_config(tmp_path, "resnet-like", embed_dim=64, vision_cfg=resnet)
    with pytest.raises(WeightsError, match="ModifiedResNet has no patch tokens"):
        ClipBackbone(config, "random", image_size=None)
    with pytest.raises(ValueError, match="QuickGELU in its config"):
        ClipBackbone(small_config(tmp_path, "quick", quick_gelu=True), "random", image_size=None, activation="gelu")


def test_specs_are_equal_by_content(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    for name in ("a", "b"):
        save_file({k: v.contiguous() for k, v in small_clip().state_dict().items()}, tmp_path / f"{name}.safetensors")
    specs = [ClipBackbone(config, str(tmp_path / f"{n}.safetensors"), image_size=None).spec((1,)) for n in "ab"]
    assert specs[0].weights != specs[1].weights
    assert specs[0] == specs[1]


def test_prompts_that_the_text_tower_would_cut_off(tiny: ClipBackbone) -> None:
    assert tiny.tokenize(["a " * 75]).shape == (1, 77)  # fits just so
    for encode in (tiny.tokenize, tiny.encode_text):
        with pytest.raises(UserError, match=r"takes 77 tokens, and this prompt has more: 'a a a .*shorter class name"):
            encode(["a photo of a bottle", "a " * 76])
