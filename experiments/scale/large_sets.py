"""Time and peak memory of work on a large set, on simulated trees (docs/scale.md).

    python -m experiments.scale.large_sets --images 100000 230000
    python -m experiments.scale.large_sets --layouts kaputt --parts list check --images 20000

Each part runs in a process of its own, once, on a tree that was written just before, so that its files are in the
system's cache. Memory is the most that the process had beyond what it had when its imports were done.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.scale.trees import LAYOUTS

CLASSES = {"mvtec": "MVTecLayout", "one_category": "MVTecLayout", "real_iad": "RealIAD", "kaputt": "Kaputt"}
MIB = 2**20


@dataclass(frozen=True)
class Measured:
    """The costs of one part.

    Attributes:
        layout: Layout of the tree.
        images: Number of images in the tree.
        files: Number of files in the tree: images, masks and lists.
        part: See `PARTS`.
        seconds: Time.
        cpu_seconds: Time of the processor, in all threads: what a busy machine changes little.
        peak: Memory, in MiB.
    """

    layout: str
    images: int
    files: int
    part: str
    seconds: float
    cpu_seconds: float
    peak: float


def _dataset(layout: str, root: Path):
    from afclip_lightning.datasets.catalogue import find_dataset

    return find_dataset(CLASSES[layout], [], root)


def _list(layout: str, root: Path) -> None:
    data = _dataset(layout, root)
    kept = [data.samples("train"), data.samples("test")]
    assert all(kept)


def _setup(layout: str, root: Path) -> None:
    _dataset(layout, root).setup("fit")


def _few_shot(layout: str, root: Path) -> None:
    _dataset(layout, root).few_shot(4, 0)


def _check(layout: str, root: Path) -> None:
    from afclip_lightning.data.doctor import examine

    examine(_dataset(layout, root), threads=os.cpu_count() or 1)


def _show(layout: str, root: Path) -> None:
    from afclip_lightning.data.overview import look_over

    look_over(_dataset(layout, root), threads=os.cpu_count() or 1)


def _copies(layout: str, root: Path) -> None:
    from afclip_lightning.data.copies import near_copies, same_files

    data = _dataset(layout, root)
    first, second = data.samples("train"), data.samples("test")
    os.environ["AFCLIP_CACHE"] = str(root / "cache")  # so that nothing is known
    same_files(first, second)
    near_copies(first, second)


def _test(layout: str, root: Path) -> None:
    from experiments.scale.stub import test

    test(_dataset(layout, root), root / "run")


def _test_with_counts(layout: str, root: Path) -> None:
    from experiments.scale.stub import test

    test(_dataset(layout, root), root / "run", aupimo=True)


def _intervals(layout: str, root: Path) -> None:
    from experiments.scale.stub import test

    test(_dataset(layout, root), root / "run", intervals=1000)


PARTS: dict[str, Callable[[str, Path], None]] = {
    "list": _list,
    "setup": _setup,
    "few_shot": _few_shot,
    "check": _check,
    "show": _show,
    "copies": _copies,
    "test": _test,
    "test_with_counts": _test_with_counts,
    "intervals": _intervals,
}
WITH_TORCH = ("test", "test_with_counts", "intervals")


def peak() -> float:
    """Returns the peak memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def _measure(part: str, layout: str, root: Path, answer) -> None:
    from afclip_lightning.data import copies, doctor, lightning_base, overview  # noqa: F401
    from afclip_lightning.datasets.catalogue import list_datasets

    if part in WITH_TORCH:
        from experiments.scale import stub  # noqa: F401
    else:
        lightning_base.look_at_files_only()
    list_datasets()
    before, start, used = peak(), time.perf_counter(), time.process_time()
    PARTS[part](layout, root)
    answer.send((time.perf_counter() - start, time.process_time() - used, peak() - before))


def measure(part: str, layout: str, root: Path) -> tuple[float, float, float]:
    """Returns wall-clock seconds, processor seconds and MiB of a part, in a separate process."""
    spawn = multiprocessing.get_context("spawn")
    receive, send = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_measure, args=(part, layout, root, send))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        raise SystemExit(f"{part} of {layout} failed") from None
    finally:
        process.join()


def main() -> None:
    """Prints a row for each part, and writes all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 230_000])
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[part for part in PARTS if part not in WITH_TORCH])
    parser.add_argument("--folder", type=Path, help="where trees are written, and removed; by default a temporary one")
    parser.add_argument("--keep", type=Path, help="folder of trees that stay, and are taken again")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = []
    for layout in options.layouts:
        for images in options.images:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                root = (options.keep or Path(folder)) / f"{layout}_{images}"
                if not root.is_dir():
                    root.mkdir(parents=True)
                    LAYOUTS[layout](root, images, 0)
                files = sum(len(names) for _, _, names in os.walk(root))
                for part in options.parts:
                    row = Measured(layout, images, files, part, *measure(part, layout, root))
                    found.append(row)
                    times = f"{row.seconds:.1f} | {row.cpu_seconds:.1f}"
                    print(f"| {layout} | {files:,} | {part} | {times} | {row.peak:.0f} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in found], indent=1))


if __name__ == "__main__":
    sys.exit(main())
