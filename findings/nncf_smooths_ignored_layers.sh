#!/bin/sh
# NNCF's SmoothQuant (on by default for model_type TRANSFORMER) rewrites layers that ignored_scope names. The layer keeps
# float32, but its weights change and a Multiply is inserted before it, without a warning. The scope applies only to the
# quantisers. `smooth_quant_alphas` of -1 turns SmoothQuant off for all layers.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    nncf==3.4.0 openvino==2026.4.1 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import logging

import nncf
import numpy as np
import openvino
from openvino import opset13 as op

nncf.set_log_level(logging.ERROR)
draws = np.random.default_rng(0)


def linear(values, name):
    weight = op.constant(draws.normal(size=(32, 32)).astype(np.float32))
    return op.matmul(values, weight, False, True, name=name)


x = op.parameter([-1, 16, 32], np.float32, name="x")
model = openvino.Model([linear(op.gelu(linear(x, "first"), "erf"), "head")], [x], "two_layers")
head = next(node for node in model.get_ops() if node.get_friendly_name() == "head")
before = head.input_value(1).get_node().data.copy()
images = [draws.normal(size=(1, 16, 32)).astype(np.float32) for _ in range(8)]
scope = nncf.IgnoredScope(names=["head"])
quantised = nncf.quantize(model, nncf.Dataset(images), model_type=nncf.ModelType.TRANSFORMER, ignored_scope=scope)
head = next(node for node in quantised.get_ops() if node.get_friendly_name() == "head")
weight, above = head.input_value(1).get_node(), head.input_value(0).get_node()
moved = float(np.abs(weight.data - before).max())
print("nncf", nncf.__version__, ": the ignored layer has", weight.get_type_name(), "weights that moved by", round(moved, 2),
      "and before it stands", above.get_type_name(), above.get_friendly_name())
assert weight.get_type_name() == "Constant" and moved > 0.01  # float32, and others
assert above.get_type_name() == "Multiply" and above.get_friendly_name().endswith("nncf_smooth_quant")
PYTHON
