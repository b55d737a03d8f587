"""Images per second of the project's loaders, as ratios to a plain Pillow loop over the same files.

    python experiments/loading/benchmark.py --workers 2 --json result.json
    python experiments/loading/benchmark.py --size 2048 --format jpg
    python experiments/loading/benchmark.py --images DIR        # one's own images instead of drawn ones

The plain loop opens, decodes, resizes and normalises one image after the other in one process, as a script would. The
loaders do the same work in batches, with regions labelled as for evaluation. A round times every one of them once, in
turn, so that all meet the same state of the machine; reported is the median of the ratios within the rounds.
Starting the processes counts, as it does in a run. With a cache the pass is timed that finds every image in it.

Plain loops in as many processes, each with its share of the files, send nothing anywhere: what the cores allow.
A draft can only help with JPEG files of at least twice the side of the input: at the default size there are none.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import SequentialSampler

from afclip_lightning.backbones.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from afclip_lightning.data.dataloader import make_loader
from afclip_lightning.data.dataset import AnomalyDataset
from afclip_lightning.data.loading_options import Loading
from afclip_lightning.types import Sample
from afclip_runtime.files import write_json
from afclip_runtime.images.find import walk_images

FORMATS = {"jpg": ("jpg",), "png": ("png",), "mixed": ("png", "jpg")}
Pass = Callable[[], int]  # walks all images once and returns how many there were


def draw_images(folder: Path, count: int, side: int, suffixes: Sequence[str]) -> None:
    """Writes smooth pictures with fine noise, of `side` pixels, in these formats in turn."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16)
        pixels = np.clip(smooth + generator.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04}.{suffixes[i % len(suffixes)]}")


def plain_loop(paths: list[Path], side: int) -> int:
    """Reads every image with Pillow as the backbone's input, and returns their number."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    for path in paths:
        with Image.open(path) as image:
            resized = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        (torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255 - mean) / std
    return len(paths)


def plain_loops(paths: list[Path], side: int, processes: int) -> int:
    """Reads every image in several processes, which do not send the images; returns their number."""
    fork = multiprocessing.get_context("fork")
    loops = [fork.Process(target=plain_loop, args=(paths[i::processes], side)) for i in range(processes)]
    for loop in loops:
        loop.start()
    for loop in loops:
        loop.join()
        if loop.exitcode:
            raise RuntimeError("a process of the plain loop failed")
    return len(paths)


def loader_pass(paths: list[Path], side: int, batch_size: int, workers: int, loading: Loading) -> Pass:
    """Returns a pass over the images through the project's evaluation loader."""
    dataset = AnomalyDataset([Sample("d", "c", "test", path, 0) for path in paths], Preprocess(side), loading)
    loader = make_loader(dataset, batch_size, workers, SequentialSampler(dataset))
    return lambda: sum(len(batch.samples) for batch in loader)


def measure(passes: dict[str, Pass], rounds: int) -> dict[str, list[float]]:
    """Returns images per second of every pass and round; each runs once before, untimed, to fill caches."""
    for walk in passes.values():
        walk()
    speeds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, walk in passes.items():
            start = time.perf_counter()
            count = walk()
            speeds[name].append(count / (time.perf_counter() - start))
    return speeds


def ratios(speeds: dict[str, list[float]], reference: str) -> dict[str, float]:
    """Returns the median over the rounds of each speed relative to the reference in the same round."""
    return {
        name: statistics.median(one / other for one, other in zip(values, speeds[reference], strict=True))
        for name, values in speeds.items()
    }


def main(args: list[str]) -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of images; drawn ones by default")
    parser.add_argument("--count", type=int, default=192, help="images to draw (%(default)s)")
    parser.add_argument("--size", type=int, default=1024, help="side of drawn images (%(default)s)")
    parser.add_argument("--format", choices=FORMATS, default="mixed", help="of drawn images (%(default)s)")
    parser.add_argument("--input", type=int, default=518, help="side of the backbone's input (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all speeds there too")
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.images or Path(temporary) / "images"
        if options.images is None:
            draw_images(folder, options.count, options.size, FORMATS[options.format])
        paths = walk_images(folder)
        kinds = {
            "loader, 0 workers": (0, Loading()),
            "loader, 0 workers, cache": (0, Loading(cache_mb=4096)),
            f"loader, {options.workers} workers": (options.workers, Loading()),
            f"loader, {options.workers} workers, draft": (options.workers, Loading(draft=True)),
            f"loader, {options.workers} workers, cache": (options.workers, Loading(cache_mb=4096)),
        }
        passes: dict[str, Pass] = {
            "plain Pillow loop": lambda: plain_loop(paths, options.input),
            f"plain loops in {options.workers} processes": lambda: plain_loops(paths, options.input, options.workers),
        }
        for name, (workers, loading) in kinds.items():
            passes[name] = loader_pass(paths, options.input, options.batch_size, workers, loading)
        speeds = measure(passes, options.rounds)
    relative = ratios(speeds, "plain Pillow loop")
    print("| | images per second, relative |\n|---|---|")
    print("\n".join(f"| {name} | {ratio:.2f}× |" for name, ratio in relative.items()))
    if options.json:
        machine = {"cores": os.cpu_count(), "load": os.getloadavg(), "images": len(paths)}
        write_json(options.json, {"ratios": relative, "images_per_second": speeds, "machine": machine})


if __name__ == "__main__":
    main(sys.argv[1:])
