#!/bin/sh
# transformers and open_clip give the same CLIP weights other position embeddings for another image size. `interpolate_pos_encoding=True`
# resizes them without a filter against aliasing, and open_clip's `force_image_size` and timm with one, which for bicubic also changes the
# kernel's coefficient. For positions with a standard deviation of 1, they lie up to 0.40 apart for half the size, and 0.26 for 1.75 times.
# The features of the "same" model at the same size therefore differ, without a warning.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    transformers==5.24.0 open_clip_torch==3.3.0 timm==1.0.31 torch==2.15.0 torchvision==0.29.2 numpy==2.4.6
cd "$work"
HF_HUB_OFFLINE=1 PYTHONPATH="$work/packages" python3 -W ignore - <<'PYTHON'
from types import SimpleNamespace

import open_clip
import timm
import torch
import transformers
from open_clip.model import resize_pos_embed
from timm.layers import resample_abs_pos_embed
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

config = transformers.CLIPVisionConfig(image_size=32, patch_size=8, hidden_size=12)  # a grid of 4 x 4
embeddings = CLIPVisionEmbeddings(config)
stored = torch.randn(17, 12, generator=torch.Generator().manual_seed(0))
embeddings.position_embedding.weight.data.copy_(stored)
print("transformers", transformers.__version__, "open_clip", open_clip.__version__, "timm", timm.__version__)
for side in (2, 4, 7):
    with torch.no_grad():
        here = embeddings.interpolate_pos_encoding(torch.zeros(1, side**2 + 1, 12), side * 8, side * 8)[0]
    weights = {"visual.positional_embedding": stored.clone()}
    resize_pos_embed(weights, SimpleNamespace(visual=SimpleNamespace(grid_size=(side, side))))
    there = weights["visual.positional_embedding"]
    other = resample_abs_pos_embed(stored[None], [side, side], num_prefix_tokens=1)[0]
    apart = float((here - there).abs().max())
    print(f"grid of {side} x {side}: transformers and open_clip up to {apart:.2f} apart")
    assert torch.allclose(there, other, atol=1e-5)
    assert apart == 0 if side == 4 else apart > 0.1
PYTHON
