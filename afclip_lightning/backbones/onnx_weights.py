"""Tensors of an ONNX file by their names in PyTorch. The graph is read and never run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afclip_runtime.errors import WeightsError


def parse_onnx(content: bytes, source: str) -> Any:
    """Returns the `ModelProto` of a file's bytes. It copies the tensors, so the caller can release the bytes.

    Args:
        content: The bytes of the file.
        source: Name of the file for messages.

    Raises:
        WeightsError: The package `onnx` is missing, or the content is not ONNX.
    """
    try:
        import onnx
    except ImportError as problem:
        raise WeightsError(
            f"{source}: the package onnx reads it and is not installed: pip install 'afclip_lightning[real]'"
        ) from problem
    try:
        return onnx.load_model_from_string(content)
    except Exception as problem:  # the module of protobuf's error class differs between versions
        raise WeightsError(f"{source}: is not an ONNX file ({type(problem).__name__}). Restore it.") from problem


def tensors_of(model: Any, source: str, joined: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """Returns the tensors that `torch.onnx.export` wrote, by their names in the module's state dict.

    The exporter keeps the names of parameters, except the weights of linear layers. It transposes and numbers these
    (`onnx::MatMul_1966`). The name of the node that multiplies by them tells the layer (`/a/b/MatMul`: `a.b.weight`).

    Args:
        model: Result of `parse_onnx`.
        source: Name of the file for messages.
        joined: Tensors that the exporter split: name in the state dict → names in the file. The parts are concatenated
            along the second axis. Other parts that have only a number are left out.

    Raises:
        WeightsError: A part is missing.
    """
    graph = model.graph
    layers = {
        node.input[1]: ".".join(node.name.strip("/").split("/")[:-1])
        for node in graph.node
        if node.op_type == "MatMul" and len(node.input) == 2
    }
    wanted = {part for parts in joined.values() for part in parts}
    tensors: dict[str, Tensor] = {}
    for initializer in graph.initializer:
        name = initializer.name
        if name in layers and name.startswith("onnx::"):
            tensors[f"{layers[name]}.weight"] = _tensor(initializer).T.contiguous()
        elif name in wanted or not name.startswith("onnx::"):
            tensors[name] = _tensor(initializer)
    if missing := sorted(wanted - tensors.keys()):
        raise WeightsError(f"{source}: has no tensor {missing[0]}. Is it the right file?")
    for name, parts in joined.items():
        tensors[name] = torch.cat([tensors.pop(part) for part in parts], dim=1)
    return tensors


def _tensor(initializer: Any) -> Tensor:
    from onnx import numpy_helper

    return torch.from_numpy(np.array(numpy_helper.to_array(initializer)))  # a writable copy
