"""Cost of inspection on a factory PC: the runtime without torch compared with `afclip inspect`, in one run.

    git worktree add --detach ../before c3a0384        # the last version that had only torch
    python -m experiments.deployment.measure WORK --before ../before

WORK gets the model (random weights), its bundles, an environment with what a bundle requires, and the numbers:
experiments/deployment/results.json, which `python -m experiments.deployment.table` prints. A second run measures again
with what is there. What is compared takes turns, so that other load on the machine hits all alike; commands run with
as many threads as --threads says.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from afclip_runtime.files import write_json
from experiments.deployment.model import write_model

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
# A process of its own that is small: Linux counts the memory of the process that starts a command as the command's.
LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
seconds, processor = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
print(json.dumps([seconds, processor, usage.ru_maxrss * 1024, process.returncode]))
"""
ENGINES = {"onnx": "onnxruntime", "openvino": "openvino"}


@dataclass(frozen=True)
class Command:
    """A command that inspects one image.

    Attributes:
        arguments: Arguments of the command line, without the output folder.
        folder: Where it runs: what it imports lies there.
        has_out: Whether it is told where its output goes, by --out.
    """

    arguments: list[str]
    folder: Path
    has_out: bool = True

    def cost(self, out: Path, threads: int) -> dict[str, float]:
        """Returns seconds by the clock and of the processor, and the highest memory in bytes."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(self.folder)}
        arguments = [*self.arguments, "--out", str(out)] if self.has_out else self.arguments
        done = subprocess.run(
            [sys.executable, "-S", "-c", LAUNCHER, *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        seconds, processor_seconds, memory, code = json.loads(done.stdout.splitlines()[-1])
        if code:
            raise RuntimeError(f"{' '.join(self.arguments)} ended with {code}")
        return {"seconds": seconds, "processor_seconds": processor_seconds, "memory_bytes": memory}


def costs(commands: Mapping[str, Command], work: Path, threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """Returns the median costs of each command over rounds in which each runs once, without the first round.

    Ratios are to the first command, round by round.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            cost = command.cost(work / "out" / f"{name}-{time.time_ns()}", threads)
            if number:
                found[name].append(cost)
    first = found[next(iter(commands))]
    return {
        name: {
            **{key: statistics.median(cost[key] for cost in mine) for key in mine[0]},
            **{
                f"{key}_ratio": statistics.median(a[key] / b[key] for a, b in zip(mine, first, strict=True))
                for key in mine[0]
            },
        }
        for name, mine in found.items()
    }


def environment(folder: Path, requirements: Path, package: str) -> Path:
    """Returns the Python of an environment with a bundle's requirements and one engine."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        names = [line for line in requirements.read_text("utf-8").splitlines() if line and not line.startswith("#")]
        names = [*(name for name in names if not name.startswith(tuple(ENGINES.values()))), package]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *names], check=True)
        (folder / "ready").touch()
    return python


def installed(python: Path | str, names: Sequence[str]) -> int:
    """Returns the bytes of packages in the environment of a Python, with all their requirements."""
    output = subprocess.run([python, HERE / "installed_size.py", *names], check=True, capture_output=True, text=True)
    return sum(json.loads(output.stdout).values())


def runtime_names(requirements: Path, package: str) -> list[str]:
    """Returns the names of the packages that a bundle requires, with one engine."""
    lines = [line for line in requirements.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    return [package, *(line.partition(">=")[0] for line in lines if not line.startswith(tuple(ENGINES.values())))]


def folder_size(folder: Path) -> int:
    """Returns the bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def photo(path: Path) -> Path:
    """Writes a drawn image of 2 megapixels."""
    if not path.exists():
        coarse = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((1600, 1200), Image.Resampling.BICUBIC).save(path, quality=92)
    return path


def export(head: Path, out: Path, *options: str) -> Path:
    """Returns a bundle of a head, which is written if it is missing."""
    if not out.exists():
        subprocess.run(
            [sys.executable, "-m", "afclip_lightning", "export", "--checkpoint", head, "--to", "bundle", "--out", out]
            + [str(option) for option in options],
            check=True,
        )
    return out


def processor() -> str:
    """Returns the processor's name and its instructions for low-precision numbers."""
    text = Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in text.replace("\t", "").splitlines() if ":" in line)
    flags = [
        flag
        for flag in fields.get("flags", "").split()
        if flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16", "amx_bf16")
    ]
    return f"{fields.get('model name', platform.processor()).strip()} ({', '.join(flags)})"


def main() -> None:
    """Measures everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the model, bundles and environments")
    parser.add_argument("--before", type=Path, required=True, help="worktree of c3a0384")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--speed_threads",
        type=int,
        default=2,
        help="threads of images per second; with several, torch's wait for each other on a busy machine (%(default)s)",
    )
    parser.add_argument("--int8", type=Path, metavar="DIR", help="images to calibrate INT8 on; without, it is left out")
    parser.add_argument("--peer", type=Path, metavar="PYTHON", help="of an environment with anomalib; see winclip.py")
    options = parser.parse_args()
    work, here, threads = options.work.absolute(), Path.cwd(), str(options.threads)
    head = write_model(work)
    bundles = {"float32": export(head, work / "bundle")}
    if options.int8:
        bundles["int8"] = export(
            head, work / "bundle-int8", "--int8", "--calibration_images", str(options.int8.absolute())
        )
    requirements = bundles["float32"] / "requirements.txt"
    pythons = {engine: environment(work / engine, requirements, package) for engine, package in ENGINES.items()}

    image = photo(work / "photo.jpg")
    afclip = [sys.executable, "-m", "afclip_lightning", "inspect", "--checkpoint", str(head), str(image)]
    commands = {
        "before": Command(afclip, options.before.absolute()),
        "torch": Command(afclip, here),
        **{
            f"{engine} {precision}": Command(
                [
                    str(python),
                    *["-m", "afclip_runtime", "inspect", "--engine"],
                    engine,
                    "--threads",
                    threads,
                    str(image),
                ],
                bundle,
            )
            for precision, bundle in bundles.items()
            for engine, python in pythons.items()
        },
    }
    peer = [str(options.peer), str(HERE / "winclip.py")]
    if options.peer:
        if not (work / "winclip").exists():
            subprocess.run([*peer, "export", str(work / "winclip")], check=True)
        commands["anomalib WinCLIP, openvino"] = Command(
            [*peer, "judge", str(work / "winclip"), str(image)], work, False
        )
    results: dict[str, Any] = {
        "processor": processor(),
        "threads": options.threads,
        "installed_bytes": {
            "training": installed(sys.executable, ["afclip_lightning"]),
            **{
                engine: installed(python, runtime_names(requirements, ENGINES[engine]))
                + folder_size(bundles["float32"] / "afclip_runtime")
                for engine, python in pythons.items()
            },
        },
        "bundle_bytes": {precision: folder_size(bundle) for precision, bundle in bundles.items()},
        "one_image": costs(commands, work, options.threads, options.rounds),
    }
    write_json(RESULTS, results)  # each of the two takes minutes
    speed = [sys.executable, "-m", "experiments.deployment.throughput", head, *bundles.values()]
    throughput = subprocess.run(
        [*speed, "--threads", str(options.speed_threads)],
        check=True,
        capture_output=True,
        text=True,
    )
    results["speed_threads"] = options.speed_threads
    results["throughput"] = json.loads(throughput.stdout.splitlines()[-1])
    if options.peer:
        results["installed_bytes"]["anomalib"] = installed(options.peer, ["anomalib", "openvino"])
        said = subprocess.run(
            [*peer, "speed", str(work / "winclip"), "--threads", threads], check=True, capture_output=True, text=True
        )
        results["winclip_seconds"] = json.loads(said.stdout.splitlines()[-1])
    write_json(RESULTS, results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
