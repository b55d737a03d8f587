#!/bin/sh
# OpenVINO accepts a float array for a uint8 input and truncates it without a warning: 300.5 becomes 44, 0.9 becomes 0.
# An image that was scaled to [0, 1] by mistake is black to the model, and the call succeeds. ONNX Runtime refuses it.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper

node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
x = helper.make_tensor_value_info("x", TensorProto.UINT8, [4])
y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
model = helper.make_model(
    helper.make_graph([node], "cast", [x], [y]), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
)
text = model.SerializeToString()
given = np.array([0.0, 0.9, 255.0, 300.5], np.float32)
core = openvino.Core()
read = core.compile_model(core.read_model(text, b""), "CPU")([given])[0].tolist()
print("openvino", openvino.__version__, "; given", given.tolist(), "read", read)
try:
    onnxruntime.InferenceSession(text).run(None, {"x": given})
    refused = ""
except Exception as error:
    refused = str(error)
print("onnxruntime", onnxruntime.__version__, ":", refused)
assert read == [0.0, 0.0, 255.0, 44.0]
assert "Unexpected input data type" in refused
PYTHON
