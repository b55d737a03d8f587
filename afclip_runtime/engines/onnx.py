"""ONNX Runtime as the engine that runs a graph, on the CPU."""

import numpy as np

from afclip_runtime.engines.graph import IMAGE, MAP, SCORE, GraphEngine, Port

TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class OnnxEngine(GraphEngine):
    """A graph that ONNX Runtime runs; see `GraphEngine`."""

    name = "onnx"
    package = "onnxruntime"

    def _open(self) -> dict[str, Port]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only: warnings are about internal optimisations
        options.intra_op_num_threads = self.threads or 0
        self.session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        return {
            port.name: Port(
                TYPES.get(port.type, port.type), tuple(side if isinstance(side, int) else None for side in port.shape)
            )
            for port in (*self.session.get_inputs(), *self.session.get_outputs())
        }

    def _run(self, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, maps = self.session.run([SCORE, MAP], {IMAGE: views})
        return scores, maps
