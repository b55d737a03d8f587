"""Common parts of measurements of sharded inspection: a bundle of the embedded model, images, runs of the command."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ONE_CORE = ["--engine", "onnx", "--threads", "1", "--num_workers", "0"]
BACKBONE = {"model": "tiny-8-112", "weights": "embedded", "image_size": 112}
DIFFERENT = 20  # pictures; the others are further names of their files, which cost no disk


@dataclass(frozen=True)
class Run:
    """The costs of a command.

    Attributes:
        clock: Seconds.
        processor: Seconds of processor time, of all its processes.
        others: Cores that other processes, or other guests of the host, have used meanwhile, on average.
        peaks: Most bytes of memory that were seen at once: of the `driver`, of the `others` together, of `all`.
    """

    clock: float
    processor: float
    others: float
    peaks: dict[str, int]


def write_bundle(folder: Path) -> Path:
    """Writes a bundle of AF-CLIP, untrained, on the embedded backbone, unless it exists; returns its folder."""
    bundle = folder / "bundle"
    if not bundle.exists():
        import torch  # it takes longer than what is measured with a bundle that is there

        from afclip_lightning import load
        from afclip_lightning.engine import factory
        from afclip_lightning.heads.card import Card
        from afclip_lightning.heads.pack import pack
        from afclip_lightning.inspection.bundle import export_bundle

        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        arguments = {"backbone": BACKBONE, "layers": [2, 4, 6, 8], "adapter_heads": 2}
        model = {"class_path": "AFCLIP", "init_args": arguments}
        method = factory.build(model)
        checkpoint = {"state_dict": method.state_dict(), method.CHECKPOINT_HYPER_PARAMS_KEY: dict(method.hparams)}
        method.on_save_checkpoint(checkpoint)
        checkpoint["model"] = model
        torch.save(checkpoint, folder / "head.ckpt")
        pack(folder / "head.ckpt", folder / "head.safetensors", Card(title="AF-CLIP, untrained"))
        export_bundle(load(folder / "head.safetensors", device="cpu", calibration=None), bundle)
    return bundle


def write_images(folder: Path, count: int, side: int, kind: str = "png") -> Path:
    """Writes square images of smooth patterns with noise, unless they exist, and returns their folder."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for number in range(count):
            path = folder / f"{number:06d}.{kind}"
            if number < DIFFERENT:
                _picture(side, number).save(path, quality=90)
            else:
                os.link(folder / f"{number % DIFFERENT:06d}.{kind}", path)
    return folder


def _picture(side: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
    noise = rng.integers(-4, 5, (side, side, 1), dtype=np.int16)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


@contextmanager
def working_folder(given: Path | None) -> Iterator[Path]:
    """Yields the given folder, which keeps its bundle and images, or a folder that is removed at the end."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def command(bundle: Path, images: Path, out: Path, options: Sequence[str]) -> list[str]:
    """Returns the command that inspects a folder with the bundle."""
    begin = [sys.executable, "-m", "afclip_runtime", "inspect", str(images), "--bundle", str(bundle), "--out", str(out)]
    return [*begin, *options]


def run(command: Sequence[str], look: float = 0.5, memory: bool = False) -> Run:
    """Runs a command to its end, and monitors all its processes.

    Args:
        command: The command.
        look: Seconds between two looks.
        memory: Whether their memory is looked at too, which costs them some time.
    """
    begin, busy, processor, peaks = time.perf_counter(), _busy_seconds(), dict[int, float](), dict[str, int]()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.returncode is None:
            held = dict.fromkeys(("driver", "others"), 0)
            for pid in tree(process.pid):
                with suppress(OSError):
                    processor[pid] = _processor_seconds(pid)
                    if memory:
                        held["driver" if pid == process.pid else "others"] += _memory(pid)
            held["all"] = sum(held.values())
            peaks = {name: max(bytes_held, peaks.get(name, 0)) for name, bytes_held in held.items()}
            with suppress(subprocess.TimeoutExpired):
                process.wait(look)  # and not a sleep, after which the command may have ended long before
    clock, used = time.perf_counter() - begin, sum(processor.values())
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return Run(clock, used, (_busy_seconds() - busy - used) / clock, peaks)


def tree(root: int) -> Iterator[int]:
    """Yields a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry))
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children.get(pid, [])


def _busy_seconds() -> float:
    """Returns the processor time that this machine has used, of all cores, with what its host took from it."""
    user, nice, system, _idle, _waiting, *interrupts_and_stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")


def _processor_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> int:
    """Returns the bytes of memory of a process; shared memory is divided among its users (PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
