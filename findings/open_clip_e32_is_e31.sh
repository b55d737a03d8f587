#!/bin/sh
# open_clip's tag `laion400m_e32` of ViT-B-16-plus-240 loads the weights of epoch 31, because its hub repository is that of `laion400m_e31`.
# Its plain URL gives the right file. open_clip uses the hub if huggingface_hub is installed, which open_clip requires.
# Of all tags that differ only in the epoch of one training, this is the only pair that shares a repository.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps --target "$work/packages" \
    open_clip_torch==3.3.0 tqdm==4.67.1
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import module_from_spec

# the table of weights alone: the package itself would need torch
spec = ModuleSpec("open_clip", None, is_package=True)
spec.submodule_search_locations = [f"{sys.path[1]}/open_clip"]
sys.modules["open_clip"] = module_from_spec(spec)
from open_clip.pretrained import get_pretrained_cfg, list_pretrained

print("open_clip", version("open_clip_torch"))
shared = []
for model, tag in list_pretrained():
    if not tag.endswith("_e31"):
        continue
    other = tag.removesuffix("_e31") + "_e32"
    one, two = get_pretrained_cfg(model, tag), get_pretrained_cfg(model, other)
    if two and one["hf_hub"] == two["hf_hub"]:
        shared.append((model, tag, other))
        print(f"{model}: {tag} and {other} are both {one['hf_hub']}")
        for name, cfg in ((tag, one), (other, two)):
            print(f"  {name}: {cfg['url'].rpartition('/')[2]}")
        assert one["url"] != two["url"]
assert shared == [("ViT-B-16-plus-240", "laion400m_e31", "laion400m_e32")]
PYTHON
