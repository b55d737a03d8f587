"""Engines that run a model. `afclip_lightning` has torch; the engines here run a graph that `export` wrote."""

from pathlib import Path

from afclip_runtime.engines.graph import GraphEngine, GraphFacts
from afclip_runtime.engines.onnx import OnnxEngine
from afclip_runtime.engines.openvino import OpenVinoEngine

GRAPH_ENGINES: dict[str, type[GraphEngine]] = {engine.name: engine for engine in (OnnxEngine, OpenVinoEngine)}


def open_graph(name: str, path: Path, facts: GraphFacts, threads: int | None = None) -> GraphEngine:
    """Returns an engine that runs a graph.

    Args:
        name: `onnx` or `openvino`.
        path: File of the graph.
        facts: Facts that the file does not contain.
        threads: See `GraphEngine`.

    Raises:
        UserError: See `GraphEngine`.
    """
    return GRAPH_ENGINES[name](path, facts, threads)
