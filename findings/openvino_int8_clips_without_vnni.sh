#!/bin/sh
# OpenVINO gives different numbers for the same INT8 file on processors without VNNI. Products of 8-bit activations and
# 8-bit weights are added in pairs in 16 bits, and the sum is clipped without a warning. A layer of ones that gives 64 gives
# 32.4. With 7-bit weights (ONNX Runtime's quantiser: reduce_range) the sum always fits. This script tells oneDNN not to use
# VNNI, which has the same effect as a processor without it.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6
cd "$work"
cat > run.py <<'PYTHON'
import sys

import numpy as np
import openvino
from onnx import TensorProto, helper, numpy_helper


def output(largest: int) -> float:
    """Returns what a layer of 64 ones gives of 64 ones, in INT8 with weights of -largest to largest."""
    constants = {
        "x_scale": np.float32(1 / 255),
        "x_zero": np.uint8(0),
        "w": np.full((64, 16), largest, np.int8),
        "w_scale": np.float32(1 / largest),
        "w_zero": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 16])
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "layer", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString(), b""), "CPU")
    return float(compiled([np.ones((8, 64), np.float32)])[0].max())


eight, seven = output(127), output(64)
print("openvino", openvino.__version__, sys.argv[1], "; 8-bit weights:", round(eight, 2), "; 7-bit weights:", round(seven, 2))
assert abs(seven - 64) < 0.01
if sys.argv[1] == "without VNNI":
    assert abs(eight - 64 * 32767 / (2 * 255 * 127)) < 0.1
PYTHON
PYTHONPATH="$work/packages" python3 run.py "this processor"
ONEDNN_MAX_CPU_ISA=AVX2 PYTHONPATH="$work/packages" python3 run.py "without VNNI"
