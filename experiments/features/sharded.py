"""Peak memory and processor time of `features build --launcher` with few and many images, and with one and two workers.

    python -m experiments.features.sharded
    python -m experiments.features.sharded --images 1000 10000 --jobs 1 2 --launcher ray

The backbone is very small, so that what is measured is the build itself: listing, decoding, digests, writing of files.
Images per processor second are those between the two numbers of images: start-up, which both contain, is taken away.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.scale.material import run, working_folder

SIDE = 32  # pixels of the images
CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def write_images(folder: Path, count: int) -> Path:
    """Writes different images, since a build computes each content once, and returns their folder."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06d}.png", compress_level=1)
    return folder


def write_config(folder: Path) -> Path:
    """Writes a config whose method needs one tap of the small backbone, and returns its path."""
    (folder / "small.json").write_text(json.dumps(CLIP))
    backbone = {"model": str(folder / "small.json"), "weights": "random", "image_size": SIDE}
    model = {"class_path": "AFCLIP", "init_args": {"backbone": backbone, "layers": [2], "adapter_heads": 1}}
    path = folder / "config.yaml"
    path.write_text(json.dumps({"model": model}))  # JSON is YAML
    return path


def main() -> None:
    """Measures, and prints a line of JSON per build and per number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs=2, default=[1000, 10000])
    parser.add_argument("--jobs", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--launcher", choices=["local", "ray"], default="local")
    options = parser.parse_args()
    with working_folder(None) as place:
        config = write_config(place)
        folders = {count: write_images(place / str(count), count) for count in options.images}
        for jobs in options.jobs:
            processor = {}
            for count, images in folders.items():
                command = [sys.executable, "-m", "afclip_lightning", "features", "build", f"--config={config}"]
                command += [f"--features.cache={place}/store-{jobs}-{count}", "--trainer.accelerator=cpu"]
                command += [f"--images={images}", "--num_workers=1", "--batch_size=32"]
                done = run([*command, f"--launcher={options.launcher}", f"--jobs={jobs}"], memory=True)
                processor[count] = done.processor
                peaks = {f"{name}_MB": round(held / 1e6) for name, held in done.peaks.items()}
                facts = {"processor_s": round(done.processor, 1), "clock_s": round(done.clock, 1)}
                print(json.dumps({"jobs": jobs, "images": count, **peaks, **facts}), flush=True)
            few, many = options.images
            rate = (many - few) / (processor[many] - processor[few])
            print(json.dumps({"jobs": jobs, "images_per_processor_second": round(rate, 1)}), flush=True)


if __name__ == "__main__":
    main()
