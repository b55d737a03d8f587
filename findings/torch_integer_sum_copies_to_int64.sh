#!/bin/sh
# torch's sum of a bool, int8, int16 or int32 tensor on the CPU first makes an int64 copy of the whole tensor. For a moment, `mask.sum()`
# needs eight times the memory of the mask. torch.count_nonzero, a sum with the tensor's own dtype=, and numpy's sum need almost none.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" torch==2.15.0 numpy==2.4.6
cd "$work"
cat > measure.py <<'PYTHON'
import resource
import sys

import torch


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB; Linux counts in KiB


torch.set_num_threads(1)
kind, operation = sys.argv[1:]
tensor = torch.ones(2**26, dtype=getattr(torch, kind))
array, little = tensor.numpy(), tensor[:8]
for one, other in ((little, array[:8]), (tensor, array)):  # a few elements first: what is loaded once is loaded then
    before = peak()
    if operation == "sum":
        result = one.sum()
    elif operation == "own dtype":
        result = one.sum(dtype=one.dtype)
    elif operation == "count_nonzero":
        result = one.count_nonzero()
    else:
        result = other.sum()
assert int(result) == 2**26, result
print(int(peak() - before), tensor.numel() * tensor.element_size() // 2**20)
PYTHON
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import subprocess
import sys

import torch

print("torch", torch.__version__)
for kind, operation in (
    ("bool", "sum"),
    ("int32", "sum"),
    ("int64", "sum"),
    ("int32", "own dtype"),
    ("bool", "count_nonzero"),
    ("bool", "numpy"),
    ("int32", "numpy"),
):
    out = subprocess.run([sys.executable, "measure.py", kind, operation], check=True, capture_output=True, text=True)
    extra, size = map(int, out.stdout.split())
    print(f"{kind:6} {operation:14} of {size:4} MiB: {extra:4} MiB more")
    copied = operation == "sum" and kind != "int64"
    assert (extra >= 500) == copied, "it has changed"
PYTHON
echo "torch copies a narrow integer tensor to int64 before it sums it: shown."
