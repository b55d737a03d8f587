#!/bin/sh
# OpenVINO ignores antialias=1 of an ONNX Resize: an image that is shrunk differs from that of ONNX Runtime.
# There is no error and no warning. A model that resizes inside its graph gives other scores on this engine.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper

image = np.zeros((1, 1, 16, 16), np.float32)
image[..., ::4, :] = 1  # every fourth row
print("openvino", openvino.__version__, "; onnxruntime", onnxruntime.__version__)
found = {}
for antialias in (0, 1):
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear", antialias=antialias)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 16, 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 4, 4])
    sizes = helper.make_tensor("sizes", TensorProto.INT64, [4], [1, 1, 4, 4])
    graph = helper.make_graph([node], "shrink", [x], [y], [sizes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    text = model.SerializeToString()
    core = openvino.Core()
    here = core.compile_model(core.read_model(text, b""), "CPU")([image])[0]
    there = onnxruntime.InferenceSession(text).run(None, {"x": image})[0]
    found[antialias] = here, there
    print(f"antialias={antialias}: openvino {here[0, 0, :, 1].tolist()}, onnxruntime {there[0, 0, :, 1].tolist()}")
assert np.allclose(*found[0], atol=1e-6)
assert np.array_equal(found[1][0], found[0][0])
assert np.abs(found[1][0] - found[1][1]).max() > 0.1
PYTHON
