"""Cost of Dual-Image CLIP's test-time adaptation, as ratios to the same batch without it.

    python experiments/methods/dual_image_benchmark.py --threads 2 --json result.json
    python experiments/methods/dual_image_benchmark.py --model tiny-8-112 --weights embedded
    python experiments/methods/dual_image_benchmark.py --device cuda --rounds 20

Timed is a whole step of a test, from the images in memory to scores and maps: the pass over the images and those of
their references that are not in the batch, and with adaptation the synthesis of the anomalies, the pass over them and
the steps of the adapters. That pass is also timed by itself, as a ratio can be without it. Texts are embedded before. A
round times each once, in turn, so that all meet the same state of the machine; reported are medians of the ratios
within the rounds. Weights are random by default: the cost does not depend on them.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.methods.dual_image import DualImageCLIP
from afclip_lightning.types import Batch, Sample
from afclip_runtime.files import write_json

Step = Callable[[], object]


def batch_of(count: int, references: int, size: int) -> Batch:
    """Returns images of noise, of one category, in groups that are each other's references, as from a loader.

    The last group is filled up with images that are no rows.
    """
    group = references + 1
    beside = -count % group
    rows = torch.arange(count + beside).view(-1, 1, group).expand(-1, group, group)
    others = rows[:, ~torch.eye(group, dtype=torch.bool)].view(-1, references)[:count]
    generator = torch.Generator().manual_seed(0)
    return Batch(
        image=torch.randn(count, 3, size, size, generator=generator),
        mask=torch.zeros(count, size, size, dtype=torch.uint8),
        label=torch.zeros(count, dtype=torch.long),
        mask_known=torch.ones(count, dtype=torch.bool),
        samples=[Sample("d", "c", "test", Path(f"{i}.png"), 0, class_name="bottle") for i in range(count)],
        reference=torch.randn(beside, 3, size, size, generator=generator),
        reference_rows=others,
    )


def steps_of(backbone: ClipBackbone, batch: Batch, adaptation: int) -> dict[str, Step]:
    """Returns the timed functions: the step without and with adaptation, the extra pass, the synthesis."""
    assert batch.reference_rows is not None
    references = batch.reference_rows.shape[1]
    plain, adapting = (DualImageCLIP(backbone, references, steps=n).to(batch.image.device) for n in (0, adaptation))
    adapting.text = plain.text
    return {
        "without": lambda: plain.score(plain.extract(batch), batch),
        "with": lambda: adapting.score(adapting.extract(batch), batch),
        "extra pass": lambda: plain.patches(batch.image),
        "synthesis": lambda: adapting.synthesise(batch),
    }


def measure(steps: dict[str, Step], rounds: int, cuda: bool) -> dict[str, list[float]]:
    """Returns the seconds of every step and round; each is run once before, untimed."""

    def seconds(step: Step) -> float:
        start = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    with torch.inference_mode():
        for step in steps.values():
            seconds(step)
        taken: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                taken[name].append(seconds(step))
    return taken


def ratios(taken: dict[str, list[float]]) -> dict[str, float]:
    """Returns medians over the rounds, each time relative to that without adaptation in the same round."""
    without = taken["without"]
    relative = {name: [t / w for t, w in zip(times, without, strict=True)] for name, times in taken.items()}
    relative["with, the extra pass aside"] = [
        (t - p) / w for t, p, w in zip(taken["with"], taken["extra pass"], without, strict=True)
    ]
    return {name: statistics.median(values) for name, values in relative.items()}


def main(args: list[str]) -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16-plus-240", help="open_clip's name (%(default)s)")
    parser.add_argument("--weights", default="random", help="%(default)s")
    parser.add_argument("--batch_size", type=int, default=8, help="%(default)s")
    parser.add_argument("--references", type=int, default=1, help="reference images of each image (%(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="steps of the adaptation (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="%(default)s")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU (%(default)s)")
    parser.add_argument("--device", default="cpu", help="%(default)s")
    parser.add_argument("--json", type=Path, help="write all times there too")
    options = parser.parse_args(args)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    backbone = ClipBackbone(options.model, options.weights, image_size=None).to(device)
    batch = batch_of(options.batch_size, options.references, backbone.image_size).to(device)
    taken = measure(steps_of(backbone, batch, options.steps), options.rounds, device.type == "cuda")
    relative = ratios(taken)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {options.threads} threads"
    print(f"{backbone.description}; {options.batch_size} images, {options.references} reference(s), {name}")
    print(f"without adaptation: {1e3 * statistics.median(taken['without']):.1f} ms a batch\n")
    print("| | time, relative |\n|---|---|")
    print("\n".join(f"| {name} | {ratio:.3f} |" for name, ratio in relative.items()))
    if options.json:
        machine = {"device": name, "cores": os.cpu_count(), "torch": torch.__version__}
        settings = {key: str(value) for key, value in vars(options).items()}
        write_json(options.json, {"ratios": relative, "seconds": taken, "settings": settings, "machine": machine})


if __name__ == "__main__":
    main(sys.argv[1:])
