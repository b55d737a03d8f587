"""OpenVINO as the engine that runs a graph, on the CPU."""

from threading import Lock
from typing import Any

import numpy as np

from afclip_runtime.engines.graph import IMAGE, MAP, SCORE, GraphEngine, Port


class OpenVinoEngine(GraphEngine):
    """A graph that OpenVINO runs; see `GraphEngine`.

    It computes in float32. By default, OpenVINO uses bfloat16 on processors that support it. This changed maps by up to
    0.02, so that a calibration would not hold on another processor.
    """

    name = "openvino"
    package = "openvino"

    def _open(self) -> dict[str, Port]:
        import openvino

        core = openvino.Core()
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if self.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = self.threads
        self.compiled = core.compile_model(core.read_model(self.path), "CPU", settings)
        self.lock = Lock()  # a compiled model has one input buffer
        return {
            port.get_any_name(): Port(
                port.get_element_type().to_dtype().name,
                tuple(side.get_length() if side.is_static else None for side in port.get_partial_shape()),
            )
            for port in (*self.compiled.inputs, *self.compiled.outputs)
        }

    def _run(self, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with self.lock:
            outputs = self.compiled({IMAGE: views})
            return outputs[SCORE], outputs[MAP]
