"""All engines give the numbers of torch, and reject files that they would misread."""

from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from afclip_lightning import load
from afclip_lightning.inspection.bundle import export_bundle
from afclip_lightning.inspection.predictor import Predictor
from afclip_runtime.cli import options
from afclip_runtime.engines import GRAPH_ENGINES, GraphEngine, GraphFacts, open_graph
from afclip_runtime.engines.self_test import IMAGES, POINTS, SelfTest, drawn, record
from afclip_runtime.errors import UserError
from afclip_runtime.inspection.bundle import GRAPH, open_bundle
from afclip_runtime.inspection.verdict import Inspection
from afclip_runtime.types import Tiling
from afclip_runtime.views.frame import Frame
from tests.support.photos import photos
from tests.support.small_models import SIZE, write_head

ENGINES = list(GRAPH_ENGINES)
BOUND = 1e-4  # of scores and values of maps, as `export` holds it
FACTS = GraphFacts(Frame(SIZE), "AFCLIP", "two blocks", {})


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_head(tmp_path_factory.mktemp("head"), "AFCLIP")


@pytest.fixture(scope="module")
def bundle(head: Path) -> Path:
    folder = head.parent / "bundle"
    assert export_bundle(load(head, device="cpu", calibration=None), folder) <= BOUND
    return folder


@pytest.fixture(scope="module", params=ENGINES)
def engine(bundle: Path, request: pytest.FixtureRequest) -> GraphEngine:
    pytest.importorskip(GRAPH_ENGINES[request.param].package)
    return open_graph(request.param, bundle / GRAPH, FACTS, threads=1)


def judged(model: Predictor, images: list[np.ndarray], threshold: float, pixel_threshold: float) -> list[Inspection]:
    model.threshold, model.pixel_threshold = threshold, pixel_threshold
    return model.predict_many(images)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("tiling", [Tiling(), Tiling("pad", tiles=2), Tiling("tiles", tile_size=40)], ids=str)
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_scores_maps_and_verdicts_are_those_of_torch(
    head: Path, bundle: Path, name: str, tiling: Tiling, batch_size: int
) -> None:
    pytest.importorskip(GRAPH_ENGINES[name].package)
    images = photos()
    with_torch = load(head, device="cpu", calibration=None, tiling=tiling, batch_size=batch_size)
    with_graph = open_bundle(bundle, engine=name, tiling=tiling, batch_size=batch_size)
    scores = sorted(one.score for one in with_torch.predict_many(images))
    gaps = np.diff(scores)
    widest = int(gaps.argmax())
    assert gaps[widest] > 4 * BOUND  # so that a verdict at its middle is one
    threshold = scores[widest] + gaps[widest] / 2
    pixels = float(np.mean(with_torch.predict(images[0]).anomaly_map))
    wanted, got = (judged(model, images, threshold, pixels) for model in (with_torch, with_graph))
    assert len({one.anomalous for one in wanted}) == 2
    for a, b in zip(wanted, got, strict=True):
        assert abs(a.score - b.score) <= BOUND
        assert a.anomaly_map.shape == b.anomaly_map.shape
        np.testing.assert_allclose(a.anomaly_map, b.anomaly_map, atol=BOUND, rtol=0)
        assert a.anomalous == b.anomalous
        assert a.mask is not None
        assert b.mask is not None
        sure = np.abs(a.anomaly_map - pixels) > BOUND
        np.testing.assert_array_equal(a.mask[sure], b.mask[sure])


def test_a_batch_gives_the_results_of_its_single_images(engine: GraphEngine) -> None:
    views = drawn(5, (SIZE, SIZE), seed=3)
    scores, maps = engine.score(views)
    assert scores.dtype == maps.dtype == np.float32
    assert maps.shape == (5, SIZE, SIZE)
    for index in range(5):
        score, anomaly_map = engine.score(views[index : index + 1])
        assert abs(score[0] - scores[index]) <= BOUND
        np.testing.assert_allclose(anomaly_map[0], maps[index], atol=BOUND, rtol=0)
    assert np.ptp(scores) > 10 * BOUND


@pytest.mark.parametrize(
    "views",
    [
        np.zeros((1, SIZE, SIZE, 3), np.float32),
        np.zeros((SIZE, SIZE, 3), np.uint8),
        np.zeros((1, SIZE, SIZE + 1, 3), np.uint8),
        np.zeros((1, 3, SIZE, SIZE), np.uint8),
        np.zeros((0, SIZE, SIZE, 3), np.uint8),
    ],
    ids=["float", "one image", "another size", "channels first", "none"],
)
def test_invalid_batches_of_views_are_refused(engine: GraphEngine, views: np.ndarray) -> None:
    with pytest.raises(ValueError, match=rf"views must be \[B, {SIZE}, {SIZE}, 3\], uint8, got"):
        engine.score(views)


def test_views_may_lie_anyhow_in_memory(engine: GraphEngine) -> None:
    views = drawn(2, (SIZE, SIZE), seed=3)
    turned = np.asfortranarray(views)
    np.testing.assert_array_equal(engine.score(views)[0], engine.score(turned)[0])


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_that_is_not_installed_is_one_clear_error(
    bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = GRAPH_ENGINES[name].package
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None if wanted == package else find_spec(wanted))
    with pytest.raises(UserError, match=rf"^{package} is not installed, .*: pip install {package}$"):
        open_graph(name, bundle / GRAPH, FACTS)


@pytest.mark.parametrize("name", ENGINES)
def test_a_graph_that_is_damaged_or_another_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip(GRAPH_ENGINES[name].package)
    whole = (bundle / GRAPH).read_bytes()
    cut = tmp_path / "cut.onnx"
    for content in (b"", b"no graph", whole[: len(whole) // 2]):
        cut.write_bytes(content)
        with pytest.raises(UserError, match=r"cut\.onnx: \w+ cannot read the graph"):
            open_graph(name, cut, FACTS)
    with pytest.raises(UserError, match=r"image is uint8 \[any, 28, 28, 3\], and uint8 \[any, 35, 28, 3\] is needed"):
        open_graph(name, bundle / GRAPH, GraphFacts(Frame((35, 28)), "AFCLIP", "two blocks", {}))
    with pytest.raises(UserError, match="--threads must be at least 1, got 0"):
        open_graph(name, bundle / GRAPH, FACTS, threads=0)


def test_the_command_line_offers_each_engine() -> None:
    assert tuple(ENGINES) == options.GRAPH_ENGINES  # named there without importing NumPy


def test_openvino_computes_in_float32(bundle: Path) -> None:
    openvino = pytest.importorskip("openvino")
    engine = open_graph("openvino", bundle / GRAPH, FACTS)
    assert engine.compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32  # type: ignore[attr-defined]


def test_drawn_images_are_the_same_everywhere() -> None:
    images = drawn(3, (30, 41), seed=7)
    assert images.shape == (3, 30, 41, 3)
    digest = sha256(images.tobytes()).hexdigest()[:16]
    assert digest == "523394971346484f"
    assert len({image.tobytes() for image in (*images, *drawn(3, (30, 41), seed=8))}) == 6


class Shifted:
    """An engine with wrong or non-finite numbers."""

    name = "onnx"

    def __init__(self, engine: GraphEngine, by: float) -> None:
        self.engine, self.frame, self.by = engine, engine.frame, by

    def score(self, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, maps = self.engine.score(views)
        return scores, maps + np.float32(self.by)


def test_an_engine_with_other_numbers_is_found_out(engine: GraphEngine) -> None:
    test = record(engine.score, engine.frame.shape, tolerance=1e-3)
    assert test.check(engine) < 1e-5
    assert test.check(Shifted(engine, 5e-4)) == pytest.approx(5e-4, rel=0.1)  # type: ignore[arg-type]
    for by in (2e-3, float("nan")):
        for images in (None, 1):
            with pytest.raises(UserError, match=r"the engine onnx differs on this machine .* more than 1e-03"):
                test.check(Shifted(engine, by), images)  # type: ignore[arg-type]


def test_a_self_test_without_numbers_is_refused() -> None:
    row = (0.0,) * POINTS**2
    assert len(SelfTest((0.0,) * IMAGES, (row,) * IMAGES, 1e-3).scores) == IMAGES
    for scores, maps in (((), ()), ((0.0,), ()), ((0.0,), (row[1:],))):
        with pytest.raises(ValueError, match="needs one score and 64 values of a map per image"):
            SelfTest(scores, maps, 1e-3)
