"""Times WinCLIP and anomalib's: the same random weights, images and prompts, batch by batch.

    python -m venv /tmp/peer && /tmp/peer/bin/pip install -r experiments/methods/requirements_winclip.txt
    python experiments/methods/winclip_benchmark.py --peer /tmp/peer/bin/python --json result.json

anomalib needs another open_clip than this project, so each runs in an environment and in processes of its own, in
turns. A round is one turn of each: one call on one image, which is not counted, then one call on the batch. Reported
are the medians over the rounds, of the time by the clock and of the time that the process computed, which other load
on the machine changes less but which says nothing of a GPU. The maps of both are compared, and the forward hooks that
are left on the network are counted.

Both pass equally many tokens through equally many blocks, so that little but the size of a pass can differ: anomalib
2.7 takes the windows of a batch in one pass too, and removes its hook.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

MODEL, SIZE, CATEGORY = "ViT-B-16-plus-240", 240, "bottle"
Method = Callable[[Tensor], tuple[Tensor, Tensor]]  # [B, 3, H, W] to scores and maps


def write_weights(path: Path) -> None:
    """Writes random weights of the network that WinCLIP is published with."""
    import open_clip

    torch.manual_seed(0)
    torch.save(open_clip.create_model(MODEL, pretrained=None).state_dict(), path)


def make_ours(weights: Path, device: torch.device) -> tuple[torch.nn.Module, Method]:
    """Returns this project's network and WinCLIP."""
    from afclip_lightning.backbones.clip import ClipBackbone
    from afclip_lightning.methods.winclip import WinCLIP
    from afclip_lightning.types import Batch, Sample

    model = WinCLIP(ClipBackbone(MODEL, str(weights), image_size=SIZE), templates="code").to(device)

    def run(image: Tensor) -> tuple[Tensor, Tensor]:
        count = len(image)
        samples = [Sample("set", CATEGORY, "test", Path("image.png"), 0)] * count
        nothing = torch.zeros(count, dtype=torch.int64)
        batch = Batch(image, torch.zeros(count, SIZE, SIZE, dtype=torch.uint8), nothing, nothing.bool(), samples)
        prediction = model.score(model.extract(batch), batch)
        return prediction.pred_score, prediction.anomaly_map

    return model, run


def make_anomalib(weights: Path, device: torch.device) -> tuple[torch.nn.Module, Method]:
    """Returns anomalib's network and WinCLIP."""
    import anomalib.models.image.winclip.torch_model as anomalib

    anomalib.PRETRAINED = str(weights)  # open_clip takes a file for a tag
    model = anomalib.WinClipModel(CATEGORY).to(device).eval()

    def run(image: Tensor) -> tuple[Tensor, Tensor]:
        prediction = model(image)
        return prediction.pred_score, prediction.anomaly_map

    return model, run


METHODS = {"this project": make_ours, "anomalib": make_anomalib}


def measure(name: str, folder: Path, batch: int, threads: int, device: torch.device) -> dict[str, Any]:
    """Returns times of one call on a batch, and keeps its maps in `folder`; runs in its process."""
    torch.set_num_threads(threads)
    network, method = METHODS[name](folder / "weights.pt", device)
    image = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).to(device)
    with torch.inference_mode():
        method(image[:1])
        _wait(device)
        start, start_cpu = time.perf_counter(), time.process_time()
        scores, maps = method(image)
        _wait(device)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    np.save(folder / f"{name}.npy", np.concatenate([scores.cpu().numpy(), maps.cpu().numpy().ravel()]))
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "hooks": hooks, "torch": torch.__version__}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def in_process(python: str, name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Runs `measure` in a new process of an environment."""
    command = [python, __file__, "--measure", name, "--folder", str(folder)]
    command += ["--batch", str(options.batch), "--threads", str(options.threads), "--device", options.device]
    # spinning threads would make any other load on the machine count many times
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(runs: dict[str, list[dict[str, Any]]], batch: int, difference: float) -> str:
    """Returns the times per image as a table in Markdown, as multiples of ours, with notes."""
    medians = {
        name: {key: statistics.median(run[key] for run in found) / batch for key in ("seconds", "cpu_seconds")}
        for name, found in runs.items()
    }
    own = medians["this project"]
    lines = ["| method | time an image | computing time | hooks left |", "|---|---:|---:|---:|"]
    for name, found in runs.items():
        ratios = [f"{medians[name][key] / own[key]:.2f}×" for key in ("seconds", "cpu_seconds")]
        lines.append(f"| {name} | {' | '.join(ratios)} | {found[-1]['hooks']} |")
    lines += ["", f"Scores and maps differ by {difference:.0e} at most."]
    return "\n".join(lines)


def main() -> None:
    """Measures both and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="Python of an environment with anomalib")
    parser.add_argument("--batch", type=int, default=8, help="images a call (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each method (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each process (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--json", type=Path, help="write all measurements there")
    parser.add_argument("--measure", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        device = torch.device(options.device)
        print(json.dumps(measure(options.measure, options.folder, options.batch, options.threads, device)))
        return
    if options.peer is None:
        parser.error("--peer must name the Python of an environment with anomalib: see above")
    pythons = {"this project": sys.executable, "anomalib": options.peer}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    load = os.getloadavg()[0]
    print(f"load of the machine before: {load:.2f}; times mean something on an idle one only", file=sys.stderr)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_weights(folder / "weights.pt")
        for number in range(options.rounds):
            for name, found in runs.items():
                found.append(in_process(pythons[name], name, folder, options))
                print(f"round {number + 1}: {name}: {found[-1]}", file=sys.stderr)
        ours, theirs = (np.load(folder / f"{name}.npy") for name in METHODS)
    difference = float(np.abs(ours - theirs).max())
    print(table(runs, options.batch, difference))
    if options.json:
        record = {
            "arguments": {key: getattr(options, key) for key in ("batch", "rounds", "threads", "device")},
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_before": load,
            "difference": difference,
            "runs": runs,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
