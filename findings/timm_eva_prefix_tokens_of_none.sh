#!/bin/sh
# timm's Eva.forward_intermediates(return_prefix_tokens=True) raises UnboundLocalError for a model without prefix tokens, such as
# the vision towers of PE-Core bigG and PE-Spatial G. VisionTransformer's method of the same name works for such a model.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" timm==1.0.31
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import timm
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

small = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
image = torch.zeros(1, 3, 32, 32)
asked = {"return_prefix_tokens": True, "intermediates_only": True}
plain = VisionTransformer(**small, class_token=False, global_pool="avg").eval()
print("timm", timm.__version__, "torch", torch.__version__)
print("VisionTransformer", [type(one).__name__ for one in plain.forward_intermediates(image, **asked)])
with_token = Eva(**small).eval().forward_intermediates(image, **asked)
print("Eva with a class token", [[tuple(part.shape) for part in one] for one in with_token])
try:
    Eva(**small, class_token=False, global_pool="avg").eval().forward_intermediates(image, **asked)
    raised = ""
except UnboundLocalError as error:
    raised = str(error)
print("Eva without:", raised)
assert "prefix_tokens" in raised
PYTHON
