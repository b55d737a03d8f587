#!/bin/sh
# torch.onnx.export changes a resize with both antialias=True and align_corners=True: the ONNX model gives other values, up to 0.2 apart for an
# image in [0, 1]. Nothing warns of it. With only one of the two options, the values are equal. ONNX Runtime and ONNX's own reference agree.
# The exported Resize has both options, so the two libraries define their combination differently.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    torch==2.15.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 numpy==2.4.6
cd "$work"
PYTHONPATH="$work/packages" python3 -W ignore - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
import torch
from onnx.reference import ReferenceEvaluator
from torch.nn.functional import interpolate


class Resize(torch.nn.Module):
    """Resizes a picture to 20 x 20 pixels."""

    def __init__(self, mode, **options):
        super().__init__()
        self.options = {"mode": mode, "size": (20, 20), **options}

    def forward(self, x):
        return interpolate(x, **self.options)


image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
print("torch", torch.__version__, "onnxruntime", onnxruntime.__version__)
for mode in ("bilinear", "bicubic"):
    for antialias, align_corners in ((True, False), (False, True), (True, True)):
        model = Resize(mode, antialias=antialias, align_corners=align_corners)
        torch.onnx.export(model, (image,), "resize.onnx", dynamo=True, verbose=False)
        feed = {"x": image.numpy()}
        expected = model(image).numpy()
        found = onnxruntime.InferenceSession("resize.onnx").run(None, feed)[0]
        apart = np.abs(found - expected).max()
        print(f"{mode}, antialias={antialias}, align_corners={align_corners}: {apart:.2g} apart")
        assert apart > 0.1 if antialias and align_corners else apart < 1e-4
    [reference] = ReferenceEvaluator(onnx.load("resize.onnx")).run(None, feed)
    assert np.abs(reference - found).max() < 1e-4
PYTHON
