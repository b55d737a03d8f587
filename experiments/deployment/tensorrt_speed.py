"""Images per second of a bundle's graph on an NVIDIA GPU, through TensorRT in ONNX Runtime. It was never run on one.

    pip install onnxruntime-gpu tensorrt
    python -m experiments.deployment.tensorrt_speed BUNDLE --batches 1 8 32

The engine that TensorRT builds (minutes, once per GPU) lies in BUNDLE/tensorrt. Scores and maps are compared with those
of the processor: float32 has to keep to 1e-3, and what float16 changes is printed, since a calibration in float32 may
no longer hold.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from afclip_runtime.inspection.bundle import GRAPH, read_card

LIMIT = 1e-3


def refuse(reason: str) -> int:
    """Prints why nothing was measured, and returns the exit code of a mistake."""
    print(f"error: {reason}", file=sys.stderr)
    return 2


def open_session(path: Path, provider: str, options: dict[str, Any]) -> Any:
    """Returns a session whose first choice is a provider.

    Raises:
        RuntimeError: ONNX Runtime went to another one, as it does without a word where a library is missing.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=[(provider, options), "CPUExecutionProvider"])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"{provider} could not be opened: a library of CUDA or TensorRT is missing.")
    return session


def measure(session: Any, views: np.ndarray, rounds: int) -> tuple[float, list[np.ndarray]]:
    """Returns the median seconds per image and the outputs, after two passes that are not counted."""
    taken = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        outputs = session.run(["score", "map"], {"image": views})
        taken.append((time.perf_counter() - start) / len(views))
    return statistics.median(taken[2:]), outputs


def main() -> int:
    """Measures and prints a line per provider and batch; exit code 1 if float32 differs by more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    import onnxruntime

    there = onnxruntime.get_available_providers()
    if "TensorrtExecutionProvider" not in there:
        return refuse(
            f"this ONNX Runtime has {', '.join(there)} and not TensorRT: pip install onnxruntime-gpu tensorrt, on a "
            "machine with an NVIDIA GPU. Nothing was measured."
        )
    path, shape = options.bundle / GRAPH, read_card(options.bundle).frame.shape
    cache = {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(options.bundle / "tensorrt")}
    cpu = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    height, width = shape
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "CUDA float32": ("CUDAExecutionProvider", {"use_tf32": False}),
        "TensorRT float32": ("TensorrtExecutionProvider", cache),
        "TensorRT float16": ("TensorrtExecutionProvider", {**cache, "trt_fp16_enable": True}),
    }
    worst = 0.0
    for name, (provider, settings) in kinds.items():
        if provider.startswith("Tensorrt"):  # one engine for all batches
            sides = f"{height}x{width}x3"
            least, most = min(options.batches), max(options.batches)
            settings = {
                **settings,
                "trt_profile_min_shapes": f"image:{least}x{sides}",
                "trt_profile_opt_shapes": f"image:{most}x{sides}",
                "trt_profile_max_shapes": f"image:{most}x{sides}",
            }
        try:
            session = open_session(path, provider, settings)
        except RuntimeError as error:
            return refuse(f"{error} Nothing was measured with it.")
        for batch in options.batches:
            views = np.random.default_rng(batch).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
            seconds, outputs = measure(session, views, options.rounds)
            wanted = cpu.run(["score", "map"], {"image": views})
            difference = max(float(np.abs(got - want).max()) for got, want in zip(outputs, wanted, strict=True))
            if name.endswith("float32"):
                worst = max(worst, difference)
            print(f"{name}, batch {batch}: {1 / seconds:.1f} images per second, largest difference {difference:.1e}")
    return 1 if not worst <= LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
