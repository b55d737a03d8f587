"""ONNX Runtime as the engine that runs a graph, on the CPU."""

import numpy as np

from afclip_runtime.engines.graph import IMAGE, MAP, SCORE, GraphEngine, Port

ONE_THREAD_VIEWS = 2
"""Views per call of a session with one thread. The activations of more views do not fit in the core's own cache: with 8
views, an image took 9 % more processor time (embedded backbone; 12 % with ViT-B/16), and two processes slowed each
other."""
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
        step = ONE_THREAD_VIEWS if self.threads == 1 else len(views)
        parts = [
            self.session.run([SCORE, MAP], {IMAGE: views[start : start + step]}) for start in range(0, len(views), step)
        ]
        scores, maps = (np.concatenate(outputs) for outputs in zip(*parts, strict=True))
        return scores, maps
