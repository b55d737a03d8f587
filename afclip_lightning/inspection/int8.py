"""`export --int8`: the linear layers of the backbone's blocks in INT8, everything after the last block in float32.

The file is ONNX with quantise and dequantise nodes. ONNX Runtime and OpenVINO both run it with integer kernels. ONNX
Runtime's quantiser writes it, or NNCF's. SmoothQuant, percentiles and INT8 of the head were measured and left out
(docs/int8.md).
"""

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from afclip_lightning.inspection.export import TOLERANCE as FLOAT_TOLERANCE
from afclip_lightning.inspection.export import quiet, write_graph
from afclip_lightning.inspection.int8_change import measure
from afclip_lightning.inspection.int8_images import read_images
from afclip_lightning.inspection.predictor import Predictor, Progress
from afclip_runtime.engines import GraphFacts, open_graph
from afclip_runtime.engines.base import GRAPH_DIGEST, INT8, PRECISION
from afclip_runtime.engines.graph import IMAGE
from afclip_runtime.engines.self_test import record
from afclip_runtime.errors import UserError, indented, shown
from afclip_runtime.files import atomic_path, fingerprint, write_json
from afclip_runtime.inspection.bundle import BundleCard
from afclip_runtime.inspection.inspector import Inspector
from afclip_runtime.types import Tiling
from afclip_runtime.views.roi import Roi

if TYPE_CHECKING:
    import onnx

TOLERANCE = 0.1
LINEAR = ("MatMul", "Gemm")
Quantiser = Literal["onnxruntime", "nncf"]


def _all(steps: Iterable[Any], total: int) -> Iterable[Any]:
    return steps


@dataclass(frozen=True)
class Int8:
    """How INT8 is made and tested.

    Attributes:
        images: Folder of images of the product. See `read_images`.
        quantiser: Quantiser that writes the file.
        tolerance: Upper limit of each of `Change.shares`.
        say: Called with the table of changes.
        progress: See `measure`.
    """

    images: Path
    quantiser: Quantiser = "onnxruntime"
    tolerance: float = TOLERANCE
    say: Callable[[str], None] = logging.getLogger(__name__).info
    progress: Progress = _all


def export_int8(model: Predictor, path: Path, int8: Int8) -> dict[str, Any]:
    """Writes a model as an ONNX file in INT8, writes its metadata to `PATH.json`, and returns the metadata.

    The graph applies the model's region of interest itself, as in `export`.

    Raises:
        UserError: See `write_int8_graph`.
    """
    facts = write_int8_graph(model, path, int8, model.roi)
    write_json(path.with_name(path.name + ".json"), facts)
    return facts


def write_int8_graph(model: Predictor, path: Path, int8: Int8, roi: Roi | None = None) -> dict[str, Any]:
    """Writes a model as an ONNX file in INT8, and returns the file's metadata, including the changes by INT8.

    Args:
        model: Model on the CPU. Its calibration serves to compare verdicts. The file does not include it, because it
            holds for float32 scores.
        path: File to write.
        int8: How INT8 is made and tested.
        roi: Region of interest that the graph applies itself, to whole images. `None` for a graph of views.

    Raises:
        UserError: There are too few images, the model cannot be exported, its backbone has nothing to quantise, or INT8
            changes more than the tolerance. No file is left behind.
    """
    quantise = _by_nncf() if int8.quantiser == "nncf" else _by_onnxruntime
    given = read_images(int8.images, model.roi)
    with TemporaryDirectory() as folder, atomic_path(path) as temporary:
        exact = Path(folder) / "float32.onnx"
        facts = write_graph(_uncalibrated(model), exact, "onnx", roi)
        nodes = block_layers(exact, model)
        with quiet():
            quantise(exact, temporary, nodes, _batches(model, given.calibrating))
        models = [_run_by_graph(model, file, heeds=roi is not None) for file in (exact, temporary)]
        size = exact.stat().st_size, temporary.stat().st_size
        change = measure(models[0], models[1], given, model.thresholds[0], len(nodes), size, int8.progress)
        if beyond := change.beyond(int8.tolerance):
            raise UserError(
                f"{shown(path)} was not written: INT8 changes {' and '.join(beyond)} by a share above --tolerance "
                f"{int8.tolerance:g}.\n{indented(change.table())}\nGive more images of what the camera sees "
                "(--calibration_images), a larger --tolerance, or export without --int8."
            )
        int8.say(change.table())
        del facts["largest_difference"]  # it describes the float32 file
        report = change.to_dict() | {"quantiser": int8.quantiser, "tolerance": int8.tolerance}
        facts |= {PRECISION: INT8, "int8": report}
        _write_facts(temporary, facts)
    return facts


def card_of_int8(card: BundleCard, model: Predictor, graph: Path, report: dict[str, Any]) -> BundleCard:
    """Returns the card of a bundle whose graph is INT8.

    Its self-test holds the results of the INT8 graph for synthetic images. Engines may differ from them by twice the
    difference between INT8 and float32 there; their different rounding causes about half of that difference. Other
    images or another quantiser give another graph with other scores, so a calibration is bound to the graph.

    Args:
        card: Card of the model in float32.
        model: The model.
        graph: The INT8 graph.
        report: Changes by INT8, as plain values.
    """
    engine = open_graph("onnx", graph, card.facts)
    differs = card.self_test.difference(engine)
    return msgspec.structs.replace(
        card,
        precision=INT8,
        settings=card.settings | {PRECISION: INT8, GRAPH_DIGEST: fingerprint(graph)},
        calibration=None,
        self_test=record(engine.score, card.frame.shape, max(2 * differs, FLOAT_TOLERANCE)),
        int8=report,
    )


def block_matrices(model: Predictor) -> set[str]:
    """Returns the digests of the weight matrices of the backbone's blocks, plain and transposed.

    The layers are found by their weights and not by name: the exporter renames folded weights, and names differ between
    towers.
    """
    weights = [p.detach().cpu().numpy() for p in model.method.backbone.vision.blocks.parameters() if p.ndim == 2]
    return {_digest(matrix) for weight in weights for matrix in (weight, weight.T)}


def linear_nodes(graph: "onnx.GraphProto", matrices: Collection[str]) -> list[str]:
    """Returns the names of the nodes that multiply with one of these matrices.

    Args:
        graph: Graph of an ONNX file.
        matrices: Digests from `block_matrices`.
    """
    from onnx import numpy_helper

    known = {
        tensor.name
        for tensor in graph.initializer
        if len(tensor.dims) == 2 and _digest(numpy_helper.to_array(tensor)) in matrices
    }
    return [node.name for node in graph.node if node.op_type in LINEAR and known.intersection(node.input)]


def block_layers(source: Path, model: Predictor) -> list[str]:
    """Returns the names of the nodes of an ONNX file that are linear layers of the backbone's blocks.

    Raises:
        UserError: The file has no such node.
    """
    import onnx

    if not (nodes := linear_nodes(onnx.load(source).graph, block_matrices(model))):
        raise UserError(
            "--int8 finds no linear layer of the backbone's blocks in the graph, so INT8 would not make it faster. "
            "Export without --int8."
        )
    return nodes


def _by_onnxruntime(source: Path, target: Path, nodes: list[str], batches: Iterator[np.ndarray]) -> None:
    """Writes a copy of an ONNX file with some linear layers in INT8.

    Weights have 7 bits and one scale per output channel. Activations have 8 bits and one scale, from the lowest to the
    highest value that the images gave. Processors without VNNI add two 8-bit products in 16 bits, and clip the sum
    silently. With 7-bit weights the sum always fits, so all processors give the same numbers up to rounding.

    Args:
        source: File in float32.
        target: New file.
        nodes: Names of the layers.
        batches: Views `[B, H, W, 3]`, uint8, that give the ranges of activations.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        source,
        target,
        _Reader(batches),
        quant_format=QuantFormat.QDQ,
        nodes_to_quantize=nodes,
        op_types_to_quantize=LINEAR,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"OpTypesToExcludeOutputQuantization": LINEAR},  # the layers after them are float32 anyway
    )


def _by_nncf() -> Callable[[Path, Path, list[str], Iterator[np.ndarray]], None]:
    """Returns the counterpart of `_by_onnxruntime` with NNCF, without SmoothQuant.

    Raises:
        UserError: NNCF is not installed.
    """
    try:
        import nncf
    except ImportError as error:
        raise UserError("--quantiser nncf needs NNCF: pip install 'afclip_lightning[nncf]'.") from error
    import onnx

    def quantise(source: Path, target: Path, nodes: list[str], batches: Iterator[np.ndarray]) -> None:
        model = onnx.load(source)
        others = [node.name for node in model.graph.node if node.name not in nodes]
        views = list(batches)
        quantised = nncf.quantize(
            model,
            nncf.Dataset(views, lambda batch: {IMAGE: batch}),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(views),
            fast_bias_correction=True,
            ignored_scope=nncf.IgnoredScope(names=others),
            # SmoothQuant also changes ignored layers: findings/nncf_smooths_ignored_layers.sh
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE,  # 7-bit weights, see `_by_onnxruntime`
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
            ),
        )
        onnx.save(quantised, target)

    return quantise


class _Reader:
    """Batches in the form that ONNX Runtime's quantiser reads."""

    def __init__(self, batches: Iterator[np.ndarray]) -> None:
        self.batches = batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {IMAGE: batch}


def _digest(matrix: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(matrix).tobytes() + str(matrix.shape).encode()).hexdigest()


def _batches(model: Predictor, images: Sequence[Path]) -> Iterator[np.ndarray]:
    """Yields the views of images as the model sees them, in batches."""
    size = model.batch_size
    for image in images:
        views = model.views(image)
        yield from (np.stack(views[start : start + size]) for start in range(0, len(views), size))


def _uncalibrated(model: Predictor) -> Predictor:
    """Returns the model without thresholds that were chosen for float32 scores."""
    other = copy.copy(model)
    other.use(None)
    other.threshold = other.pixel_threshold = None
    return other


def _run_by_graph(model: Predictor, path: Path, heeds: bool) -> Inspector:
    """Returns an inspector that runs a file with the model's tiling, or on whole images if the graph has a region."""
    facts = GraphFacts(model.engine.frame, model.engine.method, model.engine.backbone, {})
    tiling = Tiling() if heeds else model.tiling
    runs = Inspector(open_graph("onnx", path, facts), tiling, model.category, model.batch_size)
    runs.white, runs.roi = model.white, None if heeds else model.roi
    return runs


def _write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Replaces the metadata of an ONNX file."""
    import onnx

    file = onnx.load(path)
    onnx.helper.set_model_props(file, {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()})
    onnx.save(file, path)
