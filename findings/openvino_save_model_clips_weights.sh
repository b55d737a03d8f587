#!/bin/sh
# OpenVINO's save_model clips weights above 65504 to that value and makes those of 1e-9 zero, without a warning: its default
# compress_to_fp16=True stores float32 weights in 16 bits. An inverse covariance with a variance of 1e-6 (PaDiM, Mahalanobis distance) has such
# weights: the distance of the saved model is 0.26 of that of the model in memory. compress_to_fp16=False keeps it.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    openvino==2026.4.1 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import numpy as np
import openvino
from openvino import opset13 as ops

precision = np.diag(1 / np.array([1e-6, 1.0, 1.0, 1e9], np.float32))  # an inverse covariance
difference = ops.parameter([1, 4], np.float32)
product = ops.matmul(difference, ops.constant(precision), False, False)
square = ops.reduce_sum(ops.multiply(product, difference), ops.constant([1]), keep_dims=False)
model = openvino.Model([ops.sqrt(square)], [difference], "mahalanobis")
core = openvino.Core()
exact = {"INFERENCE_PRECISION_HINT": "f32"}
distances = {}
for name, differences in (("small variance", [[1.0, 0, 0, 0]]), ("large variance", [[0, 0, 0, 1e5]])):
    x = np.array(differences, np.float32)
    found = [float(core.compile_model(model, "CPU", exact)(x)[0][0])]
    for compress in (True, False):
        openvino.save_model(model, "model.xml", **({} if compress else {"compress_to_fp16": False}))
        found.append(float(core.compile_model(core.read_model("model.xml"), "CPU", exact)(x)[0][0]))
    distances[name] = found
    print(f"{name}: in memory {found[0]:.4g}, saved {found[1]:.4g}, saved with compress_to_fp16=False {found[2]:.4g}")
print("openvino", openvino.__version__)
assert np.allclose(distances["small variance"], [1000, 65504**0.5, 1000], rtol=1e-5)
assert np.allclose(distances["large variance"], [1e5 * 1e-9**0.5, 0, 1e5 * 1e-9**0.5], rtol=1e-5)
PYTHON
