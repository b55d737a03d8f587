"""A sharded `inspect` whose processes are killed at random moments, until the same command has finished."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from afclip_runtime.inspection.bundle import open_bundle
from afclip_runtime.inspection.inspector import Inspector
from tests.support import REPOSITORY
from tests.support.small_head import picture

PATIENCE = 120  # seconds until the next part
WORKERS = {"local": b"spawn_main", "ray": b"ray::MapWorker"}  # what tells a worker from other child processes


def write_slow_images(folder: Path, count: int, side: int = 900) -> list[Path]:
    """Writes images that take about 20 ms each to decode: some pictures, each under many names."""
    folder.mkdir()
    first = []
    paths = [folder / f"{number:04d}.png" for number in range(count)]
    for number, path in enumerate(paths):
        if number < 5:
            Image.fromarray(picture(side, side, number)).save(path)
            first.append(path)
        else:
            os.link(first[number % 5], path)
    return paths


def start(bundle: Path, images: Path, out: Path, *options: str) -> "subprocess.Popen[str]":
    """Starts the command that inspects images by shards of 3, with one thread."""
    command = [sys.executable, "-m", "afclip_runtime", "inspect", str(images), "--bundle", str(bundle)]
    command += ["--out", str(out), "--shard_images", "3", "--engine", "onnx", "--threads", "1", "--num_workers", "0"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([*command, *options], env=environment, text=True, **streams)  # type: ignore[call-overload]


def table_of(out: Path) -> pa.Table:
    """Returns the rows of all parts, in the order of the shards."""
    return pa.concat_tables([parquet.read_table(path) for path in _parts(out)])


def inspect_with_kills(command: Sequence[object], launcher: str, kills: int, of_drivers: int, seed: int) -> list[str]:
    """Kills workers and drivers at random moments, continues with the same command, and returns the killed processes.

    Parts that were there at a kill are the same files at the end: no image was judged twice.

    Args:
        command: Arguments of `start`: bundle, images, out, options.
        launcher: `local` or `ray`.
        kills: How many processes are killed.
        of_drivers: How many of them are drivers.
        seed: Seed of the moments.
    """
    rng = random.Random(seed)
    out = command[2]
    assert isinstance(out, Path)
    shards = len(list(Path(str(command[1])).iterdir())) // 3
    moments = sorted(rng.sample(range(1, shards * 3 // 4), kills))  # parts that are there
    drivers = set(rng.sample(moments, of_drivers))
    kept: dict[Path, tuple[int, int]] = {}
    killed = []
    driver = start(*command)  # type: ignore[arg-type]
    try:
        for moment in moments:
            victims: list[int] = []
            end = time.monotonic() + PATIENCE
            while len(_parts(out)) < moment or not victims:
                assert driver.poll() is None, driver.communicate()[0]
                assert time.monotonic() < end
                victims = workers_of(driver.pid, launcher)
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.05))
            kept |= {part: file_of(part) for part in _parts(out)}
            victim = driver.pid if moment in drivers else rng.choice(victims)
            with suppress(ProcessLookupError):  # it has ended by itself
                os.kill(victim, signal.SIGKILL)
            killed.append("driver" if victim == driver.pid else "worker")
            if victim == driver.pid:
                driver.communicate()
                driver = start(*command)  # type: ignore[arg-type]
        for _ in range(3):  # a shard that a worker of a driver held that was killed just now is left out
            text = driver.communicate(timeout=PATIENCE)[0]
            if driver.returncode != 75:
                break
            driver = start(*command)  # type: ignore[arg-type]
        assert driver.returncode == 0, text
    finally:
        driver.kill()
    assert {part: file_of(part) for part in kept} == kept
    return killed


def load_deadly(bundle: Path, deadly: Path, threads: int | None = None) -> dict[str, Inspector]:
    """Returns the model of a bundle by its name. It ends the process that inspects a certain image.

    Args:
        bundle: The bundle.
        deadly: The image at which the process ends.
        threads: See `Job`.
    """
    model = open_bundle(bundle, engine="onnx", threads=threads, calibration=None)
    stream = model.stream

    def watched(images: Iterable[object], *options: object) -> Iterator[object]:
        for index, image in enumerate(images):
            if image == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            yield from ((index, outcome) for _, outcome in stream([image], *options))

    model.stream = watched
    return {model.engine.method: model}


def _parts(out: Path) -> list[Path]:
    return sorted(out.glob("parts/*/*.parquet"))


def file_of(path: Path) -> tuple[int, int]:
    """Returns which file stands at a path: another one after it was written again."""
    facts = path.stat()
    return facts.st_ino, facts.st_mtime_ns


def workers_of(parent: int, launcher: str) -> list[int]:
    """Returns the worker processes of a driver."""
    return [pid for pid in descendants(parent) if WORKERS[launcher] in text_of(f"/proc/{pid}/cmdline")]


def descendants(parent: int) -> list[int]:
    """Returns the child processes of a process, and theirs."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (text := text_of(f"/proc/{entry}/stat")):
            children.setdefault(int(text.rpartition(b")")[2].split()[1]), []).append(int(entry))
    return list(_below(parent, children))


def _below(parent: int, children: dict[int, list[int]]) -> Iterator[int]:
    for child in children.get(parent, ()):
        yield child
        yield from _below(child, children)


def text_of(path: str) -> bytes:
    """Returns the content of a file; empty if it cannot be read, as one of a process that has ended."""
    with suppress(OSError):
        return Path(path).read_bytes()
    return b""
