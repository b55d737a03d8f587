"""INT8: its layers, its images, the measured changes, and errors."""

import copy
import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from afclip_lightning.cli.export import main
from afclip_lightning.datasets.synthetic import Synthetic
from afclip_lightning.inspection import int8
from afclip_lightning.inspection.bundle import export_bundle
from afclip_lightning.inspection.export import write_graph
from afclip_lightning.inspection.int8_change import Change, measure
from afclip_lightning.inspection.int8_images import MOST, read_images
from afclip_lightning.inspection.predictor import Predictor
from afclip_lightning.methods.patch_rarity import PatchRarity
from afclip_runtime.engines import GraphFacts, open_graph
from afclip_runtime.engines.self_test import drawn
from afclip_runtime.errors import UserError
from afclip_runtime.inspection.bundle import CALIBRATION, open_bundle, read_card
from afclip_runtime.inspection.calibration import Calibration, from_normals
from afclip_runtime.inspection.inspector import Inspector
from afclip_runtime.types import Tiling
from afclip_runtime.views.frame import Frame
from afclip_runtime.views.roi import Roi
from tests.support.architectures import build_tiny
from tests.support.small_models import SIZE, write_head


def write_images(folder: Path, count: int, level: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(np.full((6, 6, 3), level + index, np.uint8)).save(folder / f"{index:03}.png")


# --- which images


def test_a_product_calibrates_on_train_and_is_compared_on_test(tmp_path: Path) -> None:
    product = tmp_path / "nuts"
    write_images(product / "train" / "good", 100)
    write_images(product / "test" / "good", 5)
    write_images(product / "test" / "crack", 4)
    given = read_images(product)
    assert len(given.calibrating) == len(given.normal) == MOST
    assert given.calibrating[0].name == "000.png"
    assert given.calibrating[-1].name == "098.png"  # spread over all
    assert [sample.label for sample in given.compared] == [1] * 4 + [0] * 5
    assert given.held_out
    assert given.labelled
    with pytest.raises(UserError, match=r"holds several products: name one of them, .*nuts"):
        read_images(tmp_path)


def test_of_a_plain_folder_half_is_held_out(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 21)
    given = read_images(tmp_path / "photos")
    calibrating, compared = set(given.calibrating), {sample.image_path for sample in given.compared}
    assert len(calibrating) == 11
    assert len(compared) == 10
    assert not calibrating & compared
    assert given.held_out
    assert not given.labelled
    write_images(tmp_path / "photos" / "good", 3)
    labelled = read_images(tmp_path / "photos")
    assert labelled.labelled
    assert sum(sample.label == 0 for sample in labelled.compared) + len(labelled.normal) == 3


def test_of_few_images_all_do_both_and_it_is_said(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 9)
    given = read_images(tmp_path / "photos")
    assert len(given.calibrating) == len(given.compared) == 9
    assert not given.held_out
    write_images(tmp_path / "few", 7)
    with pytest.raises(UserError, match="few has 7 images, and INT8 needs at least 8"):
        read_images(tmp_path / "few")
    with pytest.raises(UserError, match=r"absent, the folder of --calibration_images, does not exist"):
        read_images(tmp_path / "absent")


# --- what is measured


class Bright:
    """An engine whose score and map are the mean of the image, plus a step above a level."""

    name, method, backbone, settings, frame = "fake", "Bright", "none", {}, Frame(6)

    def __init__(self, step: float = 0.0, above: float = 255.0) -> None:
        self.step, self.above = step, above

    def check_ready(self) -> None: ...

    def score(self, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = views.mean((1, 2, 3), dtype=np.float32)
        scores = scores + self.step * (scores > self.above)
        return scores, np.tile(scores[:, None, None], (1, 6, 6)).astype(np.float32)


def change_of(folder: Path, engine: Bright, threshold: float | None) -> Change:
    exact, other = (Inspector(e, Tiling(), "object", 4) for e in (Bright(), engine))
    return measure(exact, other, read_images(folder), threshold, 1, (8, 2), lambda steps, total: steps)


def test_the_change_is_measured(tmp_path: Path) -> None:
    write_images(tmp_path / "good", 40)  # scores 0 to 39, of which the odd ones are compared
    change = change_of(tmp_path, Bright(step=3.0, above=30.0), threshold=32.0)
    assert change.compared_on == 20
    assert change.score_largest == 3.0
    assert change.score_mean == pytest.approx(3.0 * 5 / 20)  # 31, 33, 35, 37, 39
    assert change.score_spread == pytest.approx(np.diff(np.percentile(np.arange(1, 40, 2), [5, 95])).item())
    assert change.map_rms == pytest.approx(np.sqrt(9.0 * 5 / 20))
    assert change.map_spread == pytest.approx(np.arange(1, 40, 2).std())
    assert [(v.scores, v.anomalous) for v in change.verdicts] == [((31.0, 34.0), (False, True))]
    assert change.shares["verdicts"] == 1 / 20
    assert "No AUROC: the compared images are of one kind" in change.table()
    assert change.verdicts[0].image in change.table()
    assert change.beyond(0.2) == []
    assert change.beyond(0.1) == ["maps"]
    assert change.beyond(0.04) == ["scores", "maps", "verdicts"]


def test_without_a_threshold_each_model_has_its_own(tmp_path: Path) -> None:
    write_images(tmp_path / "good", 40)
    change = change_of(tmp_path, Bright(step=50.0, above=-1.0), threshold=None)
    assert change.thresholds is not None
    assert change.thresholds[1] == pytest.approx(change.thresholds[0] + 50.0)
    assert change.verdicts == []  # all scores moved alike, and the threshold with them


def test_auroc_where_labels_are_known_and_verdicts_only_with_a_threshold(tmp_path: Path) -> None:
    write_images(tmp_path / "good", 10)
    write_images(tmp_path / "crack", 10, level=50)
    change = change_of(tmp_path, Bright(), threshold=None)  # 5 normal images calibrate: too few for a threshold
    assert change.metrics == {"image_auroc": (1.0, 1.0)}
    assert "No pixel AUROC: there are no masks" in change.table()
    assert change.thresholds is None
    assert set(change.shares) == {"scores", "maps"}
    assert "not compared: there is no threshold" in change.table()


class Spots(Bright):
    """An engine whose map is the brightness of each pixel, and whose score is the highest."""

    def score(self, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps = views.max(-1).astype(np.float32)
        return maps.max((1, 2)), maps


def test_only_the_region_of_interest_is_compared(tmp_path: Path) -> None:
    """An anomaly outside the region is dark in the map: if it counted, it would be missed."""
    product = tmp_path / "nuts"
    write_images(product / "train" / "good", 8)
    write_images(product / "test" / "good", 8)
    for place, (row, column) in {"inside": (1, 1), "outside": (1, 5)}.items():
        mask = np.zeros((6, 6), np.uint8)
        mask[row, column] = 255
        for folder in ("test/crack", "ground_truth/crack"):
            (product / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(product / folder / f"{place}.png")
    roi = Roi((6, 6), include=(((0.0, 0.0), (3.0, 0.0), (3.0, 6.0), (0.0, 6.0)),))
    models = [Inspector(Spots(), Tiling(), "object", 4) for _ in range(2)]
    for model in models:
        model.roi = roi
    change = measure(*models, read_images(product, roi), 200.0, 1, (8, 2), lambda steps, total: steps)
    assert change.metrics == dict.fromkeys(("image_auroc", "pixel_auroc", "pixel_ap"), (1.0, 1.0))


def test_nan_is_beyond_any_tolerance(tmp_path: Path) -> None:
    write_images(tmp_path / "good", 16)
    change = change_of(tmp_path, Bright(), threshold=None)
    assert change.beyond(0.0) == []
    assert replace(change, score_largest=float("nan")).beyond(1e9) == ["scores"]
    assert replace(change, map_spread=0.0, map_rms=0.1).beyond(1e9) == ["maps"]


# --- which layers


@pytest.mark.slow
@pytest.mark.parametrize("name", ["OpenAI", "SigLIP", "EVA-02", "PE-Core", "DINOv2", "DINOv3, gated"])
def test_all_linear_layers_of_the_blocks_are_found(tmp_path: Path, name: str) -> None:
    backbone = build_tiny(name, tmp_path)
    model = Predictor(lambda more: PatchRarity(backbone, layers=[1, 2]), Tiling(), "object", "cpu", 2)
    path = tmp_path / "model.onnx"
    write_graph(model, path, "onnx")
    nodes = int8.linear_nodes(onnx.load(path).graph, int8.block_matrices(model))
    run = backbone.vision.blocks[:2]  # the third is after the last tap
    assert len(nodes) == sum(weight.ndim == 2 for weight in run.parameters()) >= 8


# --- the command


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    drawn_set = Synthetic(root, ["metal"], image_size=112, train_normal=10, test_normal=8, test_anomalous=8)
    drawn_set.prepare_data()
    return root / "metal"


@pytest.fixture(scope="module")
def tiny() -> Predictor:
    from afclip_lightning.backbones.clip import ClipBackbone

    def build(more: object) -> PatchRarity:  # which needs no training to say something
        return PatchRarity(ClipBackbone("tiny-8-112", "embedded", 112), layers=(2, 4, 6, 8))

    return Predictor(build, Tiling(), "object", "cpu", 8)


@pytest.mark.slow
def test_int8_of_the_embedded_tower(tmp_path: Path, tiny: Predictor, product: Path) -> None:
    path = tmp_path / "tiny.onnx"
    tables: list[str] = []
    facts = int8.export_int8(tiny, path, int8.Int8(product, say=tables.append))
    report = json.loads((tmp_path / "tiny.onnx.json").read_text())["int8"]
    assert report["layers"] == 32  # four in each of eight blocks
    assert report["compared_on"] == 16
    assert report["size"][1] == pytest.approx(path.stat().st_size, rel=0.01)
    assert report["size"][1] < report["size"][0] / 2
    exact, quantised = report["metrics"]["pixel_auroc"]
    assert f"{100 * quantised:.2f}" in tables[0]
    assert abs(quantised - exact) < 0.003
    assert report["score_largest"] > 1e-5  # something was rounded

    graph = onnx.load(path)
    said = {entry.key: entry.value for entry in graph.metadata_props}
    assert said["precision"] == facts["precision"] == "int8"
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    made_by = {output: node for node in graph.graph.node for output in node.output}
    integer = [n for n in graph.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in tensors]
    weights = [tensors[n.input[0]] for n in integer if tensors[n.input[0]].dtype == np.int8]
    assert len(weights) == 32
    assert max(np.abs(w.astype(int)).max() for w in weights) <= 64  # 7 bits: no sum is clipped without VNNI
    scaled = [
        node
        for node in graph.graph.node
        if any(name in made_by and made_by[name].op_type == "DequantizeLinear" for name in node.input)
    ]
    assert len([n for n in scaled if n.op_type in int8.LINEAR]) == len(scaled) == 32  # and nothing else is INT8

    engine_facts = GraphFacts(tiny.engine.frame, "PatchRarity", "tiny", {})
    images = drawn(4, (112, 112), seed=3)
    outputs = [open_graph("onnx", path, engine_facts).score(images)]
    alone = [open_graph("onnx", path, engine_facts).score(images[i : i + 1]) for i in range(4)]
    np.testing.assert_allclose(np.concatenate([one[0] for one in alone]), outputs[0][0], atol=1e-5)
    if find_spec("openvino"):
        outputs.append(open_graph("openvino", path, engine_facts).score(images))
        for mine, others in zip(*outputs, strict=True):
            np.testing.assert_allclose(mine, others, atol=0.03)  # one step of a rounding, here and there


@pytest.mark.slow
@pytest.mark.skipif(find_spec("nncf") is None, reason="NNCF is not installed: pip install 'afclip_lightning[nncf]'")
def test_nncf_quantises_the_same_layers(tmp_path: Path, tiny: Predictor, product: Path) -> None:
    path = tmp_path / "nncf.onnx"
    facts = int8.export_int8(tiny, path, int8.Int8(product, "nncf"))
    assert facts["int8"]["quantiser"] == "nncf"
    assert facts["int8"]["layers"] == 32
    exact, quantised = facts["int8"]["metrics"]["pixel_auroc"]
    assert abs(quantised - exact) < 0.003
    assert facts["int8"]["score_largest"] > 1e-5  # something was rounded
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    weights = [tensor for tensor in tensors.values() if tensor.dtype == np.int8 and tensor.ndim == 2]
    assert len(weights) == 32
    assert max(np.abs(w.astype(int)).max() for w in weights) <= 64  # 7 bits: no sum is clipped without VNNI
    engines = ["onnx", *(["openvino"] if find_spec("openvino") else [])]
    images = drawn(4, (112, 112), seed=3)
    outputs = [
        open_graph(e, path, GraphFacts(tiny.engine.frame, "PatchRarity", "tiny", {})).score(images) for e in engines
    ]
    for mine, others in zip(outputs[0], outputs[-1], strict=True):
        np.testing.assert_allclose(mine, others, atol=0.03)


def test_a_quantiser_that_is_missing_is_named(tmp_path: Path, tiny: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(UserError, match=r"needs NNCF: pip install 'afclip_lightning\[nncf\]'"):
        int8.export_int8(tiny, tmp_path / "x.onnx", int8.Int8(tmp_path, "nncf"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_bundle_in_int8(tmp_path: Path, tiny: Predictor, product: Path) -> None:
    model = copy.copy(tiny)
    model.checkpoint = "head"
    model.use(Calibration(from_normals(np.arange(20.0), 0.01), None, "head", model.settings))
    folder = tmp_path / "bundle"
    between = export_bundle(model, folder, int8=int8.Int8(product))
    card = read_card(folder)
    assert card.precision == card.settings["precision"] == "int8"
    assert card.int8 is not None
    assert card.int8["layers"] == 32
    assert card.calibration is None  # it was of float32 scores
    assert between <= card.self_test.tolerance
    assert 1e-4 < card.self_test.tolerance < 0.2
    runs = open_bundle(folder, engine="onnx")
    assert runs.settings["precision"] == "int8"
    assert runs.settings["engine"] == "onnx"
    images = [drawn(1, (150, 120), seed=1)[0]]
    assert abs(runs.predict_many(images)[0].score - tiny.predict_many(images)[0].score) < 0.05
    made = Calibration(model.calibration.image, None, "head", runs.settings)
    made.save(folder / CALIBRATION)
    assert open_bundle(folder, engine="onnx").calibration == made
    if find_spec("openvino"):
        with pytest.raises(UserError, match="engine: 'onnx' when calibrated, 'openvino' now"):
            open_bundle(folder, engine="openvino")
    replace(made, settings={**made.settings, "graph": "another"}).save(folder / CALIBRATION)
    with pytest.raises(UserError, match="another INT8 graph"):
        open_bundle(folder, engine="onnx")
    model.calibration.save(folder / CALIBRATION)
    with pytest.raises(
        UserError, match=r"float32 scores when calibrated, INT8 scores now: calibrate with the INT8 model"
    ):
        open_bundle(folder, engine="onnx")


@pytest.mark.slow
def test_a_model_that_changes_too_much_leaves_no_file(tmp_path: Path, tiny: Predictor, product: Path) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_text("what was there before")
    said = r"(?s)was not written: INT8 changes scores and maps by a share above --tolerance 0.*AUROC"
    with pytest.raises(UserError, match=said):
        int8.export_int8(tiny, path, int8.Int8(product, tolerance=0.0))
    assert path.read_text() == "what was there before"
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.onnx"]


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    head = write_head(tmp_path, "CLIP")
    generator = np.random.default_rng(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(16):
        pixels = generator.integers(0, 256, (SIZE, SIZE + 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    call = ["--checkpoint", str(head), "--to", "onnx", "--int8", "--calibration_images", "photos", "--tolerance", "9"]
    assert main(call) == 0
    said = capsys.readouterr().out
    assert "Calibrated on 8 images, compared on 8, held out from calibration" in said
    assert "No AUROC: the images have no labels" in said
    assert "each at its own threshold" in said
    report = json.loads(Path("CLIP.onnx.json").read_text())["int8"]
    assert report["layers"] == 8
    assert report["tolerance"] == 9


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--to", "torch_export", "--int8", "--calibration_images", "x"],
            "--int8 writes ONNX: use --to bundle or --to onnx.",
        ),
        (["--to", "onnx", "--int8"], "--int8 needs --calibration_images DIR"),
        (
            ["--to", "onnx", "--tolerance", "1"],
            "--calibration_images, --tolerance and --quantiser need --int8: add it",
        ),
    ],
)
def test_options_that_do_not_go_together(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", "absent.ckpt", *options]) == 2
    assert said in capsys.readouterr().err
