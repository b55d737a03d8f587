"""Presets: their facts equal those of the registries that they name."""

import open_clip
import pytest
import timm
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower

from afclip_lightning.backbones.presets import COUNTED_MB, PRESETS, Preset, preset
from afclip_runtime.errors import UserError

TIMM = "timm:"
VISION_TOWERS = {  # the same weights as timm lists them, with a licence
    "clip-b": "vit_base_patch16_clip_224.openai",
    "clip-l": "vit_large_patch14_clip_224.openai",
    "clip-l-336": "vit_large_patch14_clip_336.openai",
    "laion-b": "vit_base_patch16_clip_224.laion2b",
    "laion-b-plus": "vit_base_patch16_plus_clip_240.laion400m_e32",
    "laion-l": "vit_large_patch14_clip_224.laion2b",
    "laion-h": "vit_huge_patch14_clip_224.laion2b",
    "datacomp-b": "vit_base_patch16_clip_224.datacompxl",
    "datacomp-l": "vit_large_patch14_clip_224.datacompxl",
    "dfn-l": "vit_large_patch14_clip_224.dfn2b_s39b",
    "dfn-h-378": "vit_huge_patch14_clip_378.dfn5b",
    "metaclip-b": "vit_base_patch16_clip_224.metaclip_2pt5b",
    "metaclip-l": "vit_large_patch14_clip_224.metaclip_2pt5b",
    "metaclip2-h": "vit_huge_patch14_clip_224.metaclip2_worldwide",
    "metaclip2-h-378": "vit_huge_patch14_clip_378.metaclip2_worldwide",
    "siglip-b": "vit_base_patch16_siglip_512.webli",
    "siglip-l": "vit_large_patch16_siglip_384.webli",
    "siglip-so400m": "vit_so400m_patch14_siglip_384.webli",
    "siglip2-b": "vit_base_patch16_siglip_512.v2_webli",
    "siglip2-l": "vit_large_patch16_siglip_512.v2_webli",
    "siglip2-so400m": "vit_so400m_patch16_siglip_512.v2_webli",
    "eva02-clip-b": "eva02_base_patch16_clip_224.merged2b",
    "eva02-clip-l": "eva02_large_patch14_clip_224.merged2b",
    "eva02-clip-l-336": "eva02_large_patch14_clip_336.merged2b",
    "pe-core-b": "vit_pe_core_base_patch16_224.fb",
    "pe-core-l": "vit_pe_core_large_patch14_336.fb",
    "vitamin-b": "vitamin_base_224.datacomp1b_clip",
    "vitamin-l": "vitamin_large_336.datacomp1b_clip",
    "mobileclip2-b": "vit_base_mci_224.apple_mclip2_dfndr2b",
}


def vision_tower(entry: Preset) -> tuple[torch.nn.Module, int]:
    """The vision tower without memory, and the size that its registry names."""
    with torch.device("meta"):
        if entry.model.startswith(TIMM):
            tower = timm.create_model(entry.weights.removeprefix(TIMM), num_classes=0)
            return tower, tower.pretrained_cfg["input_size"][1]
        config = open_clip.get_model_config(entry.model)
        tower = _build_vision_tower(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]))
        return getattr(tower, "trunk", tower), config["vision_cfg"]["image_size"]


@pytest.mark.parametrize("name", PRESETS)
def test_facts_are_those_of_the_registry(name: str) -> None:
    entry = PRESETS[name]
    assert entry.name == name
    tower, native = vision_tower(entry)
    blocks = tower.blocks if hasattr(tower, "blocks") else tower.transformer.resblocks
    assert entry.depth == len(blocks)
    assert entry.native_size == native
    assert list(entry.layers) == sorted(set(entry.layers))
    assert entry.layers[0] >= 1
    assert entry.layers[-1] <= entry.depth
    if entry.model.startswith(TIMM):
        assert entry.weights.partition(".")[0] == entry.model
    elif entry.vision_weights is None:
        assert open_clip.get_pretrained_cfg(entry.model, entry.weights)
    listed = entry.weights.removeprefix(TIMM) if entry.model.startswith(TIMM) else VISION_TOWERS.get(name)
    if listed:
        assert entry.licence == timm.models.get_pretrained_cfg(listed).license


def parameters_of(entry: Preset) -> int:
    """Parameters of the whole model that a file of weights contains."""
    with torch.device("meta"):
        if entry.model.startswith(TIMM):
            built = timm.create_model(entry.model.removeprefix(TIMM), num_classes=0)
        else:
            config = open_clip.get_model_config(entry.model)
            cls = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
            built = cls(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    return sum(parameter.numel() for parameter in built.parameters())


@pytest.mark.parametrize("name", ["siglip2-b", "metaclip2-h", "dinov2-g", "mobileclip2-b", "pe-core-b"])
def test_sizes_that_no_page_states_are_counted(name: str) -> None:
    assert parameters_of(PRESETS[name]) * 4e-6 == pytest.approx(COUNTED_MB[PRESETS[name].model], abs=0.51)


def test_each_preset_has_a_size() -> None:
    assert {entry.model for entry in PRESETS.values() if entry.download_mb is None} == COUNTED_MB.keys()
    assert PRESETS["laion-l"].size == "1,710 MB"
    assert PRESETS["dinov3-l"].size == "≈ 1,212 MB, counted: float32"


def test_an_unknown_preset_is_refused_with_the_nearest_and_the_list() -> None:
    with pytest.raises(
        UserError, match=r"no preset 'dinov3-xl'. Did you mean dinov3-l\? There are: clip-b, .*dinov3-b"
    ):
        preset("dinov3-xl")
