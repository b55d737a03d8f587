"""Exports a model as one traced graph, from pixels to score and map."""

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

import afclip_lightning
from afclip_lightning.components.memory import Key, MemoryBank, most_alike
from afclip_lightning.components.subspace import residual
from afclip_lightning.inspection.predictor import DATASET, Predictor
from afclip_lightning.types import UNKNOWN, Batch, Sample
from afclip_runtime.engines.base import FLOAT32, PRECISION
from afclip_runtime.engines.graph import IMAGE, MAP, SCORE
from afclip_runtime.engines.self_test import drawn
from afclip_runtime.errors import UserError
from afclip_runtime.files import atomic_path, write_json
from afclip_runtime.inspection.verdict import only_inside
from afclip_runtime.views.decoding import NAMELESS
from afclip_runtime.views.frame import BLANK, Resize, place
from afclip_runtime.views.roi import Roi, clear_in_view

Target = Literal["onnx", "torch_export"]
Run = Callable[[np.ndarray], Sequence[np.ndarray]]  # from pixels to scores and maps

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_LIMIT = 2**31 - 2**22  # bytes of tensors in one ONNX file; the remainder of 2 GB holds the graph
BATCHES = (1, 3, 8)  # sizes on which a file is compared with the model
RESIZES: dict[Resize, str] = {
    "squash": "whatever the aspect ratio",
    "crop": "the aspect ratio kept and the middle cut out",
    "trim": "the aspect ratio kept, the right and the bottom cut off",
}
TOLERANCE = 1e-4  # absolute difference of scores and map values
FACTS = "afclip_lightning.json"  # metadata inside the archive of a torch program


class BatchMemory(MemoryBank):
    """The memory of one category, compared with a whole batch at once, because a graph has no loop over images."""

    def __init__(self, memory: MemoryBank) -> None:
        super().__init__()
        ((key, bank),) = memory.banks.items()
        self.key, self.memory, self.bank = key, memory, bank

    def fit_missing(self, *args: Any) -> None:
        """Does nothing: the memory is complete."""

    def distance(self, keys: Sequence[Key], set_index: int, tokens: Tensor, neighbours: int = 1) -> Tensor:
        """See the base class."""
        similarity = F.normalize(tokens[:, 1:].float(), dim=-1) @ self.bank[set_index].T
        return (1 - most_alike(similarity, neighbours)) / 2

    def residuals(self, keys: Iterable[Key], patches: Tensor) -> Tensor:
        """See `SubspaceBank`."""
        return residual(patches, *self.bank)

    def nearest(self, keys: Sequence[Key], set_index: int, tokens: Tensor) -> Tensor:
        """See the base class."""
        bank = self.bank[set_index]
        return bank[(F.normalize(tokens[:, 1:].float(), dim=-1) @ bank.T).argmax(dim=-1)]

    def spread(self, key: Key) -> Tensor:
        """See the base class."""
        return self.memory.spread(self.key)


class Graph(nn.Module):
    """The module that is traced: normalisation, backbone and head of a model that is ready to predict.

    Args:
        model: The model. It is not changed.
        roi: Region of interest that the graph applies itself. `None` for a graph of prepared views.

    Raises:
        UserError: The method compares images with each other, or trains on each test image.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    blank: Tensor
    clear: Tensor
    inside: Tensor

    def __init__(self, model: Predictor, roi: Roi | None = None) -> None:
        super().__init__()
        method = copy.copy(model.method)
        name = type(method).__name__
        if method.needs_references:
            raise UserError(f"{name} cannot be exported: it compares an image with others, which a graph is not given.")
        if method.adapts:
            raise UserError(f"{name} cannot be exported: it trains on each image that it tests (steps: 0 does not).")
        if method.memory is not None and method.memory.banks:
            method.memory = BatchMemory(method.memory)
        self.method = method
        # one row is enough: the text features of a category broadcast over the batch
        self.sample = Sample(
            DATASET, model.category, "test", NAMELESS, UNKNOWN, mask_known=False, class_name=model.category
        )
        self.register_buffer("pixel_mean", torch.tensor(method.preprocess.mean))
        self.register_buffer("pixel_std", torch.tensor(method.preprocess.std))
        self.heeds = roi is not None
        if roi is not None:
            self.register_buffer("blank", torch.tensor(BLANK, dtype=torch.uint8))
            self.register_buffer("clear", torch.tensor(clear_of(roi, model))[..., None])
            self.register_buffer("inside", torch.tensor(method.preprocess.inside(roi)).bool())

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Returns scores `[B]` and maps `[B, H, W]` for pixels `[B, H, W, 3]`, uint8."""
        if self.heeds:
            image = torch.where(self.clear, image, self.blank)
        pixels = ((image.float() / 255 - self.pixel_mean) / self.pixel_std).permute(0, 3, 1, 2)
        none = pixels.new_empty(0)
        batch = Batch(pixels, mask=none, label=none, mask_known=none, samples=[self.sample])
        prediction = self.method.score(self.method.extract(batch), batch)
        anomaly_map = prediction.anomaly_map
        if self.heeds:
            lowest = torch.where(self.inside, anomaly_map, torch.inf).amin(dim=(1, 2), keepdim=True)
            anomaly_map = torch.where(self.inside, anomaly_map, lowest)
        return prediction.pred_score, anomaly_map


def clear_of(roi: Roi, model: Predictor) -> np.ndarray:
    """Returns which pixels of the frame a graph does not mask, `[H, W]`, bool, for images of the region's size."""
    (width, height), frame = roi.size, model.engine.frame
    box = place(frame.rule, height, width, frame.image_size)
    return clear_in_view(roi, (height, width), (0, 0, width, height), box, frame)


def export(model: Predictor, path: Path, to: Target) -> dict[str, Any]:
    """Writes a model as a graph, writes its metadata to `PATH.json`, and returns the metadata.

    The graph applies the model's region of interest itself, for images of the size that the region was drawn on.

    Raises:
        UserError: See `write_graph`.
    """
    facts = write_graph(model, path, to, model.roi)
    write_json(path.with_name(path.name + ".json"), facts)
    return facts


def write_graph(model: Predictor, path: Path, to: Target, roi: Roi | None = None) -> dict[str, Any]:
    """Writes a model as a graph, compares the two, and returns the metadata of the file.

    Args:
        model: Model on the CPU. The graph includes its memory bank.
        path: File to write.
        to: `onnx`, or `torch_export` for `torch.export.load`.
        roi: See `Graph`.

    Raises:
        UserError: The method cannot be exported as a graph, the graph computes other numbers than the model, the format
            cannot hold it, a package is missing, or the file cannot be written. No file is left behind.
    """
    if to == "onnx":
        missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"{', '.join(missing)} not installed: pip install 'afclip_lightning[export]'.")
    program = trace(model, roi)
    facts = describe(model, to, roi)
    write, read = (_write_onnx, _read_onnx) if to == "onnx" else (_write_torch, _read_torch)
    with atomic_path(path) as temporary:
        with quiet():
            write(program, temporary, facts)
        facts["largest_difference"] = compare(model, read(temporary), roi)
        if not facts["largest_difference"] <= TOLERANCE:  # NaN too
            raise UserError(
                f"{path} was not written: its scores or maps differ from the model's by up to "
                f"{facts['largest_difference']:.1e}, more than {TOLERANCE}. Please report it, with the method's config."
            )
    return facts


def trace(model: Predictor, roi: Roi | None = None) -> ExportedProgram:
    """Returns the traced program of a model, for batches of any size.

    Raises:
        UserError: The method cannot be traced.
    """
    graph = Graph(model, roi).eval()
    shape = model.method.preprocess.shape
    model.engine.check_ready()
    model.engine.score(drawn(2, shape, seed=2))  # fills all caches now: they must not keep tensors of the trace
    try:
        with torch.no_grad(), quiet():
            batch = Dim("batch", min=1)
            program = torch.export.export(
                graph, (torch.from_numpy(drawn(2, shape, seed=2)),), dynamic_shapes=({0: batch},)
            )
    except Exception as error:  # any exception: all code of a method runs here
        name, reason = type(model.method).__name__, str(error).strip().partition("\n")[0]
        raise UserError(f"{name} cannot be exported: torch does not trace it ({reason}).") from error
    _drop_unused(program)
    return program


def describe(model: Predictor, to: Target, roi: Roi | None = None) -> dict[str, Any]:
    """Returns the metadata that a user of the file needs, as plain values."""
    preprocess, (image, pixel), sources = model.method.preprocess, model.thresholds, model.thresholds_from
    height, width = preprocess.shape
    return {
        "format": to,
        "method": type(model.method).__name__,
        "backbone": model.method.backbone.description,
        "checkpoint": model.checkpoint,
        "category": model.category,
        "shots": model.few_shot,
        PRECISION: FLOAT32,
        "image": {
            "shape": ["batch", height, width, 3],
            "type": "uint8",
            "channels": "RGB",
            "resize": f"to {height} x {width}, {RESIZES[preprocess.rule]}; {preprocess.interpolation} with "
            f"antialiasing as Pillow's {preprocess.interpolation.upper()}",
        },
        "normalisation": {"in_graph": True, "mean": list(preprocess.mean), "std": list(preprocess.std)},
        "score": {"shape": ["batch"], "type": "float32", "threshold": image, "threshold_from": sources[0]},
        "map": {
            "shape": ["batch", height, width],
            "type": "float32",
            "threshold": pixel,
            "threshold_from": sources[1],
        },
        **({} if roi is None else {"roi": _said_of(roi)}),
        "versions": {"afclip_lightning": afclip_lightning.__version__, "torch": torch.__version__},
    }


def _said_of(roi: Roi) -> dict[str, Any]:
    """Returns the metadata of a region of interest that a graph applies, as plain values."""
    width, height = roi.size
    return {
        "in_graph": True,
        "fingerprint": roi.fingerprint,
        "images": f"of {width} x {height} pixels, before they are resized, or of the same shape",
        "map": "has its lowest value outside",
    }


def compare(model: Predictor, run: Run, roi: Roi | None = None) -> float:
    """Returns the largest absolute difference of scores and maps from the model's, over batches of several sizes."""
    shape, largest = model.method.preprocess.shape, 0.0
    for count in BATCHES:
        image = drawn(count, shape, seed=count)
        seen = image if roi is None else np.where(clear_of(roi, model)[..., None], image, np.array(BLANK, np.uint8))
        scores, maps = model.engine.score(seen)
        if roi is not None:
            maps = np.stack([only_inside(one, model.method.preprocess.inside(roi).astype(bool)) for one in maps])
        pairs = zip(run(image), (scores, maps), strict=True)
        # NaN has no order, and must propagate
        largest = float(np.max([largest, *(np.abs(got - want).max() for got, want in pairs)]))
    return largest


def _drop_unused(program: ExportedProgram) -> None:
    """Drops the tensors that a program does not use, such as the text tower: often most of a backbone."""
    inputs = program.graph_signature.input_specs
    for node in [node for node in program.graph.nodes if node.op == "placeholder" and not node.users]:
        spec = next(spec for spec in inputs if spec.arg.name == node.name)  # type: ignore[union-attr]
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            inputs.remove(spec)
            program.graph.erase_node(node)
            for tensors in (program.state_dict, program.constants):
                tensors.pop(spec.target, None)  # type: ignore[arg-type]
    program.graph_module.recompile()


def _write_onnx(program: ExportedProgram, path: Path, facts: Mapping[str, Any]) -> None:
    """Writes a program as ONNX.

    Raises:
        UserError: Its tensors are larger than an ONNX file can hold.
    """
    size = sum(t.nbytes for t in (*program.state_dict.values(), *program.constants.values()) if isinstance(t, Tensor))
    if size > ONNX_LIMIT:
        raise UserError(
            f"The model has {size / 2**30:.1f} GB of tensors, and an ONNX file holds 2 GB. Use --to torch_export."
        )
    try:
        with torch.no_grad():
            converted = torch.onnx.export(
                program, input_names=[IMAGE], output_names=[SCORE, MAP], dynamo=True, verbose=False
            )
    except torch.onnx.OnnxExporterError as error:
        name, reason = facts["method"], str(error.__cause__ or error).strip().partition("\n")[0]
        raise UserError(f"{name} cannot be exported to ONNX ({reason}). Use --to torch_export.") from error
    assert converted is not None  # it is `None` only if the exporter writes the file itself
    for name, value in facts.items():
        converted.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    converted.save(path, external_data=False)


def _read_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: session.run([SCORE, MAP], {IMAGE: image})


def _write_torch(program: ExportedProgram, path: Path, facts: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={FACTS: json.dumps(facts)})


def _read_torch(path: Path) -> Run:
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    def run(image: np.ndarray) -> Sequence[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in module(torch.from_numpy(image))]

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses notes of torch and ONNX. Their failures are still errors."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
