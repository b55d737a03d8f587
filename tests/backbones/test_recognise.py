"""Identification of weights: their kind and the options that use them. Loading of files with other libraries' names."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from afclip_lightning.backbones.layouts import converted
from afclip_lightning.backbones.recognise import recognise
from afclip_lightning.backbones.sources import MODELS
from afclip_lightning.backbones.weights import load_vision_weights, load_weights
from afclip_runtime.errors import WeightsError
from tests.support.clips import openai_archive, small_clip, small_config

State = dict[str, Tensor]


def written(path: Path, state: State) -> Path:
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    return path


def split(state: State, name: str, into: tuple[str, str, str]) -> None:
    parts = state.pop(name).chunk(3)
    state.update((new, part.clone()) for new, part in zip(into, parts, strict=True))


def renamed(state: State, *renames: tuple[str, str]) -> State:
    new = {}
    for name, tensor in state.items():
        for old, to in renames:
            name = name.replace(old, to)
        new[name] = tensor
    return new


def as_meta_dinov2(state: State) -> State:
    """Returns timm's DINOv2 with registers as Meta publishes it: the class token's position apart, a mask token."""
    position = torch.randn(1, 1, state["cls_token"].shape[-1])
    table = torch.cat([position, state["pos_embed"]], dim=1)
    state = state | {"cls_token": state["cls_token"] - position, "pos_embed": table}
    return renamed(state | {"mask_token": torch.zeros(1, 8)}, ("reg_token", "register_tokens"))


def as_hugging_face_dinov2(state: State) -> State:
    state = as_meta_dinov2(state)
    state |= {f"layernorm.{part}": state.pop(f"norm.{part}") for part in ("weight", "bias")}
    for name in [name for name in state if ".attn.qkv." in name]:
        split(
            state,
            name,
            *[tuple(name.replace("attn.qkv", f"attention.attention.{p}") for p in ("query", "key", "value"))],
        )
    return renamed(
        state,
        ("blocks.", "encoder.layer."),
        ("attn.proj", "attention.output.dense"),
        ("ls1.gamma", "layer_scale1.lambda1"),
        ("ls2.gamma", "layer_scale2.lambda1"),
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("pos_embed", "embeddings.position_embeddings"),
        ("cls_token", "embeddings.cls_token"),
        ("mask_token", "embeddings.mask_token"),
        ("register_tokens", "embeddings.register_tokens"),
    )


def as_hugging_face_dinov3(state: State) -> State:
    """Returns timm's DINOv3, whose query and value lack the biases of zeros that Meta's has."""
    state = dict(state)
    for name in [name for name in state if ".attn.qkv." in name]:
        split(state, name, *[tuple(name.replace("attn.qkv", f"attention.{p}_proj") for p in "qkv")])
    for index in range(12):
        for part in "qv":
            state[f"blocks.{index}.attention.{part}_proj.bias"] = torch.zeros(384)
    return renamed(
        state | {"embeddings.mask_token": torch.zeros(1, 1, 384)},
        ("blocks.", "layer."),
        ("attn.proj", "attention.o_proj"),
        ("gamma_1", "layer_scale1.lambda1"),
        ("gamma_2", "layer_scale2.lambda1"),
        ("mlp.fc1.", "mlp.up_proj."),
        ("mlp.fc2.", "mlp.down_proj."),
        ("patch_embed.proj", "embeddings.patch_embeddings"),
        ("cls_token", "embeddings.cls_token"),
        ("reg_token", "embeddings.register_tokens"),
    )


def as_hugging_face_clip(state: State) -> State:
    state = dict(state)
    for name in [name for name in state if ".attn.in_proj_" in name]:
        split(state, name, *[tuple(name.replace("attn.in_proj_", f"self_attn.{p}_proj.") for p in "qkv")])
    state["text_model.embeddings.position_embedding.weight"] = state.pop("positional_embedding")
    for name, theirs in (("visual.proj", "visual_projection.weight"), ("text_projection", "text_projection.weight")):
        state[theirs] = state.pop(name).T
    return renamed(
        state,
        ("visual.transformer.resblocks", "vision_model.encoder.layers"),
        ("transformer.resblocks", "text_model.encoder.layers"),
        (".attn.", ".self_attn."),
        (".ln_1.", ".layer_norm1."),
        (".ln_2.", ".layer_norm2."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
        ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
        ("visual.conv1", "vision_model.embeddings.patch_embedding"),
        ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("token_embedding.", "text_model.embeddings.token_embedding."),
        ("ln_final.", "text_model.final_layer_norm."),
    ) | {"vision_model.embeddings.position_ids": torch.arange(5)[None]}


REGISTERS, V3 = "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"
TOWERS: list[tuple[str, str, Callable[[State], State], str, str]] = [
    (REGISTERS, "a.safetensors", dict, "timm's", "dinov2-reg-s"),
    (REGISTERS, "a.pth", as_meta_dinov2, "Meta's", "dinov2-reg-s"),
    (REGISTERS, "a.safetensors", as_hugging_face_dinov2, "Hugging Face's DINOv2", "dinov2-reg-s"),
    (V3, "a.bin", dict, "timm's", "dinov3-s"),
    (V3, "a.safetensors", as_hugging_face_dinov3, "Hugging Face's DINOv3", "dinov3-s"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "file", "change", "layout", "preset"), TOWERS)
def test_a_tower_is_known_by_its_tensors_and_loads(
    tmp_path: Path, model: str, file: str, change: Callable[[State], State], layout: str, preset: str
) -> None:
    torch.manual_seed(0)
    source, tower = (timm.create_model(model, num_classes=0) for _ in range(2))
    for tensor in source.state_dict().values():
        torch.nn.init.normal_(tensor)
    path = written(tmp_path / file, change(source.state_dict()))
    found = recognise(path)
    assert (found.what, found.layout, found.architectures) == ("a vision tower", layout, (f"timm:{model}",))
    assert found.presets == (preset,)
    assert found.use == f"--model.backbone.preset {preset} --model.backbone.vision_weights {path}"
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    load_vision_weights(tower, str(path))
    for name, tensor in tower.state_dict().items():
        torch.testing.assert_close(tensor, source.state_dict()[name], msg=name)


def test_a_clip_of_hugging_face_fills_one_of_open_clip(tmp_path: Path) -> None:
    source = small_clip(seed=4)
    for number, clip in enumerate((small_clip(seed=5), custom_text_clip())):
        path = written(tmp_path / f"{number}.safetensors", as_hugging_face_clip(source.state_dict()))
        load_weights(clip, path)
        text = torch.randint(0, 49408, (2, 77))
        image = torch.rand(2, 3, 28, 28)
        assert torch.equal(clip.encode_image(image), source.encode_image(image))
        assert torch.equal(clip.encode_text(text), source.encode_text(text))


def custom_text_clip() -> open_clip.model.CustomTextCLIP:
    from tests.support.clips import SMALL

    return open_clip.model.CustomTextCLIP(
        16, open_clip.model.CLIPVisionCfg(**SMALL["vision_cfg"]), open_clip.model.CLIPTextCfg(**SMALL["text_cfg"])
    ).eval()


def test_a_whole_clip_is_known_by_its_tensors(tmp_path: Path) -> None:
    small_config(tmp_path, "small-for-check")
    open_clip.add_model_config(tmp_path / "small-for-check.json")
    state = small_clip().state_dict()
    openai_archive(small_clip(), tmp_path / "o.pt")
    for path, layout, kind in (
        (written(tmp_path / "a.safetensors", state), "open_clip", "safetensors"),
        (written(tmp_path / "a.pt", state), "open_clip", "torch.save"),
        (written(tmp_path / "h.safetensors", as_hugging_face_clip(state)), "Hugging Face's CLIP", "safetensors"),
        (tmp_path / "o.pt", "open_clip", "TorchScript archive"),
    ):
        found = recognise(path)
        assert (found.what, found.layout, found.format) == ("a whole CLIP", layout, kind)
        assert "small-for-check" in found.architectures
        assert f"--model.backbone.weights {path}" in found.use
    embedded = recognise(MODELS / "tiny-8-112.safetensors")
    assert embedded.architectures == ("tiny-8-112",)
    assert embedded.dtypes == {"float16": 159, "int32": 1}


def test_of_weights_with_two_activations_the_use_says_so(tmp_path: Path) -> None:
    with torch.device("meta"):
        clip = open_clip.create_model("ViT-B-32", device="meta", pretrained_image=False, pretrained_text=False)
    state = {name: torch.zeros(tensor.shape, dtype=torch.uint8) for name, tensor in clip.state_dict().items()}
    found = recognise(written(tmp_path / "b.safetensors", state))
    assert found.architectures == ("ViT-B-32", "ViT-B-32-quickgelu")
    assert "activation quick_gelu (OpenAI's weights) or gelu: the file does not tell" in found.use


def test_unknown_tensors_are_reported_as_such(tmp_path: Path) -> None:
    found = recognise(written(tmp_path / "a.safetensors", {"x": torch.zeros(3)}))
    assert (found.what, found.architectures, found.use, found.values) == ("not known", (), "", 3)
    tower = {"patch_embed.proj.weight": torch.zeros(8, 3, 2, 2), "blocks.0.x": torch.zeros(1)}
    found = recognise(written(tmp_path / "b.safetensors", tower))
    assert (found.what, found.architectures, found.use) == ("a vision tower", (), "")


def test_unusable_files_give_one_line(tmp_path: Path) -> None:
    written(tmp_path / "nan.safetensors", {"x": torch.tensor([1.0, float("nan")])})
    written(tmp_path / "inf.pt", {"x": torch.tensor([float("inf")])})
    torch.save(torch.nn.Linear(2, 2), tmp_path / "object.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    whole = written(tmp_path / "a.safetensors", {"x": torch.zeros(1000)}).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-1])
    content = bytearray(written(tmp_path / "a.pt", {"x": torch.zeros(1000)}).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.pt").write_bytes(content)
    (tmp_path / "text.pt").write_text("hello")
    for name, message in (
        ("nan.safetensors", "x holds NaN or infinity"),
        ("inf.pt", "x holds NaN or infinity"),
        ("object.pt", "holds other objects than tensors"),
        ("list.pt", "holds list, not tensors by name"),
        ("none.pt", "holds no tensors"),
        ("cut.safetensors", "Error while deserializing header"),
        ("flipped.pt", "is damaged: the checksum of"),
        ("text.pt", "is neither a safetensors file nor a file of torch.save"),
        ("absent.pt", "does not exist"),
        (".", "is a folder"),
    ):
        with pytest.raises(WeightsError, match=message) as caught:
            recognise(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_state_dict_of_a_known_maker_is_left_as_it_is() -> None:
    state = small_clip().state_dict()
    assert converted(state) is state
