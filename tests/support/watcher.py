"""`inspect --watch` with a model that costs microseconds, as a process that tests can kill: python -m …watcher DIR."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from afclip_runtime.cli.inspect import add_inspect_options, add_threshold_options, inspected, report, set_thresholds
from afclip_runtime.cli.parser import CommandParser, command
from afclip_runtime.cli.watch_options import check_watch_options
from afclip_runtime.inspection.inspector import Inspector
from afclip_runtime.types import Tiling
from afclip_runtime.views.frame import Frame
from tests.support import REPOSITORY

SIDE = 4  # pixels of an image


class Blue:
    """An engine whose score and map are the blue of an image."""

    name = "onnx"
    method = "Blue"
    backbone = "none"
    settings: ClassVar[dict[str, Any]] = {}
    frame = Frame(SIDE)

    def check_ready(self) -> None:
        pass

    def score(self, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps = views[..., 2].astype(np.float32) / 255
        return maps.mean((1, 2)), maps


def is_anomalous(number: int) -> bool:
    return number % 3 == 0


def save_image(path: Path, number: int) -> None:
    """Writes an image whose pixels encode its number."""
    colour = number & 255, number >> 8, 255 if is_anomalous(number) else 0
    Image.new("RGB", (SIDE, SIDE), colour).save(path, "PNG")


def number_in(path: Path) -> int:
    with Image.open(path) as image:
        red, green, _ = image.convert("RGB").getpixel((0, 0))  # type: ignore[misc]
    return int(red) | int(green) << 8


@command()
def main(args: list[str]) -> int:
    parser = CommandParser("watcher")
    add_inspect_options(parser, [])
    add_threshold_options(parser)
    options = parser.parse_args(["--out", "out", *args], argparse.Namespace(num_workers=0))
    check_watch_options(options, [], several=False)
    models = {"Blue": Inspector(Blue(), Tiling(), "object", 32)}
    set_thresholds(models, options, [])
    with inspected(models, [], options, []) as done:
        pass
    return report(models, [], done, options.out)


def start(folder: Path, *args: str) -> "subprocess.Popen[str]":
    """Starts a watcher in a folder; `stop` ends it."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.watcher", *args],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop(process: "subprocess.Popen[str]", number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
    """Sends a signal to a watcher, and returns its exit code, its output and its errors."""
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
