#!/bin/sh
# torchrun on two nodes, with --max-restarts: if a process dies on the second node, the processes of both nodes are restarted. But
# TORCHELASTIC_RESTART_COUNT, which would tell a script that it was restarted, is 1 on the second node and 0 on the first, as at the
# first start. Rank 0, which usually reads the checkpoint, therefore cannot know of the restart.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" torch==2.15.0 numpy
cd "$work"
cat >worker.py <<'PYTHON'
import os
import sys
import time
from pathlib import Path

node, died = os.environ["NODE"], Path("died")
with open(f"{node}.txt", "a") as file:
    print(os.environ["TORCHELASTIC_RESTART_COUNT"], file=file)
if not died.exists():
    if node == "2":
        while not Path("1.txt").exists():
            time.sleep(0.1)
        died.touch()
        sys.exit(1)
    time.sleep(60)
PYTHON
export PYTHONPATH="$work/packages"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
for node in 1 2; do
    NODE=$node timeout 300 python3 -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --max-restarts 2 --rdzv-backend c10d \
        --rdzv-endpoint "127.0.0.1:$port" --rdzv-id job worker.py >"$node.log" 2>&1 &
done
wait
python3 - <<'PYTHON'
from importlib.metadata import version
from pathlib import Path

print("torch", version("torch"))
counts = {node: Path(f"{node}.txt").read_text().split() for node in "12"}
for node, found in counts.items():
    print(f"node {node}: begun {len(found)} times, TORCHELASTIC_RESTART_COUNT {', '.join(found)}")
assert counts == {"1": ["0", "0"], "2": ["0", "1"]}
PYTHON
