"""Sharded inspections with a model that costs microseconds, and images of every kind in every kind of source.

`python -m tests.support.sharded IMAGES …` is the command with that model, as a process that tests can kill.
"""

import argparse
import io
import os
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tifffile
from PIL import Image
from pyarrow import parquet

from afclip_runtime.bulk.judging import Job, Judge
from afclip_runtime.bulk.parts import part_path
from afclip_runtime.bulk.plan import Plan, make_plan
from afclip_runtime.bulk.sources import Listing
from afclip_runtime.bulk.summary import Manifest, finish
from afclip_runtime.cli.bulk import add_bulk_options, inspect_by_shards, is_by_shards
from afclip_runtime.cli.inspect import (
    SAVES,
    add_inspect_options,
    add_threshold_options,
    give_thresholds,
    inspected,
    saves_of,
    set_thresholds,
)
from afclip_runtime.cli.parser import CommandParser, command
from afclip_runtime.inspection.calibration import Calibration
from afclip_runtime.inspection.inputs import find_inputs
from afclip_runtime.inspection.inspector import Inspector
from afclip_runtime.types import Tiling
from tests.support.watcher import Blue, save_image

SHARD = 4  # images


def load(calibration: Calibration | None = None) -> dict[str, Inspector]:
    """Returns the model as workers load it."""
    model = Inspector(Blue(), Tiling(), "object", 4)
    if calibration is None:
        model.threshold = model.pixel_threshold = 0.5
    model.use(calibration)
    return {"Blue": model}


def plan_of(out: Path, patterns: Sequence[str], column: str | None = None, shard_images: int = SHARD) -> Plan:
    listing = Listing(patterns, out, ["*.ignored"], column, shard_images)
    return make_plan(out, listing, "settings", shard_images)


def job_of(out: Path, saves: tuple[str, ...] = (), calibration: Calibration | None = None) -> Job:
    return Job(out, partial(load, calibration), saves, 2)


def inspect(
    out: Path,
    *patterns: str | Path,
    column: str | None = None,
    saves: tuple[str, ...] = (),
    shard_images: int = SHARD,
    calibration: Calibration | None = None,
) -> Manifest:
    """Inspects by shards in this process, as `inspect` does, and returns the manifest."""
    plan = plan_of(out, list(map(str, patterns)), column, shard_images)
    judge = Judge(job_of(out, saves, calibration))
    for number in plan.todo(out):
        judge(number)
    return finish(out, {None: calibration.good if calibration else None})


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Returns the rows of all parts, in the order of the shards."""
    shards = range(len(Plan.read(out).shards))
    return [row for number in shards for row in parquet.read_table(part_path(out, number)).to_pylist()]


def write_numbered(folder: Path, count: int, begin: int = 0) -> None:
    """Writes tiny images 00000.png …; every third one is anomalous."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(begin, begin + count):
        save_image(folder / f"{number:05d}.png", number)


def write_images(folder: Path) -> None:
    """Writes images that only our own reader reads correctly, and two that are unreadable."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    (folder / "deep").mkdir()
    pixels = rng.integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "colour.png")
    Image.fromarray(pixels[..., 0]).save(folder / "grey.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(folder / "turned.jpg", exif=turned, quality=95)
    Image.fromarray(rng.integers(0, 65536, (8, 8), np.uint16)).save(folder / "deep" / "grey16.png")
    tifffile.imwrite(folder / "deep" / "colour16.tif", rng.integers(0, 65536, (6, 5, 3), np.uint16), photometric="rgb")
    planes = rng.integers(0, 65536, (3, 6, 5), np.uint16)
    tifffile.imwrite(folder / "deep" / "planes.tif", planes, planarconfig="separate", photometric="rgb")
    (folder / "cut.png").write_bytes((folder / "colour.png").read_bytes()[:60])
    (folder / "empty.png").write_bytes(b"")


def images_in(folder: Path) -> list[Path]:
    """Returns the images of a folder in the order in which they are inspected."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def write_tar(path: Path, folder: Path, mode: str = "w", form: int = tarfile.PAX_FORMAT) -> None:
    """Writes the images of a folder, and a label beside each, as in WebDataset."""
    with tarfile.open(path, mode, format=form) as archive:  # type: ignore[call-overload]
        for image in images_in(folder):
            archive.add(image, image.relative_to(folder).as_posix())
            add_member(archive, image.relative_to(folder).with_suffix(".cls").as_posix(), b"1")


def add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    archive.addfile(header, io.BytesIO(data))


def write_table(path: Path, columns: Mapping[str, list[Any]], group: int = 3) -> None:
    parquet.write_table(pa.table(dict(columns)), path, row_group_size=group)


class _Handler(SimpleHTTPRequestHandler):
    broken: dict[str, int] = {}  # noqa: RUF012  # how often a path still answers with an error

    def do_GET(self) -> None:
        if self.broken.get(self.path, 0):
            self.broken[self.path] -= 1
            self.send_error(503)
            return
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def web_server(folder: Path, broken: dict[str, int] | None = None) -> Iterator[str]:
    """Yields the address of a server that gives the files of a folder, without ranges; `broken` paths fail at first."""
    handler = type("Handler", (_Handler,), {"broken": broken or {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Slow(Blue):
    def score(self, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        time.sleep(0.1)
        return super().score(views)


def load_of_options(options: argparse.Namespace, silent: bool) -> dict[str, Inspector]:
    """Returns the model as the command loads it, in its own process and in workers."""
    found = load()
    if options.slow:
        found["Blue"].engine = _Slow()
    if options.deadly:
        found["Blue"].stream = partial(_dying, found["Blue"].stream)  # type: ignore[method-assign]
    give_thresholds(found.values(), options)
    return found


def _dying(stream: Any, images: Any, *args: Any) -> Any:
    """Inspects images until one is called `kill.png`. Then the process dies, as after a fault of a decoder."""

    def watched() -> Iterator[Any]:
        for image in images:
            if getattr(image, "name", "") == "kill.png":
                os._exit(9)
            yield image

    return stream(watched(), *args)


@command("Stopped. The same command goes on from here.")
def main(args: Sequence[str]) -> int:
    parser = CommandParser("sharded")
    add_inspect_options(parser, SAVES)
    add_threshold_options(parser)
    add_bulk_options(parser)
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--deadly", action="store_true")
    given = ["--out", "out", "--threshold", "0.5", *args]
    options = parser.parse_args(given, argparse.Namespace(num_workers=0, threads=None))
    saves = saves_of(options, SAVES)
    if not is_by_shards(options, options.paths, saves):
        models = load_of_options(options, False)
        with inspected(models, find_inputs(options.paths, options.out), options, saves):
            return 0
    prepare = partial(set_thresholds, options=options, saves=saves)
    return inspect_by_shards(
        options, given, "python -m tests.support.sharded", options.paths, saves, load_of_options, prepare
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
