"""What each method costs over the pass of its frozen backbone, at test and in a training step.

    python -m experiments.methods.benchmark                                            # ViT-B/16 at 224 px on a CPU
    python -m experiments.methods.benchmark --model ViT-L-14-336 --image_size 518 --device cuda --precision bf16

All methods run in one process on the same random weights and images, each call right after a pass of the backbone alone
(the class token's embedding, nothing tapped); reported is the median of the ratios. A test is the backbone's pass, the
scores, and the maps at the input's size; a training step is the head's, without the backbone's pass: losses, backward
pass and optimiser. Text that does not depend on the image is embedded before.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.files import write_json
from afclip_lightning.methods.afclip import AFCLIP
from afclip_lightning.methods.anomalyclip import AnomalyCLIP
from afclip_lightning.methods.anovl import AnoVL
from afclip_lightning.methods.aprilgan import APRILGAN
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.methods.clip import CLIP
from afclip_lightning.methods.dual_image import DualImageCLIP
from afclip_lightning.methods.faprompt import FAPrompt
from afclip_lightning.methods.kanoclip import KAnoCLIP
from afclip_lightning.methods.winclip import WinCLIP
from afclip_lightning.types import Batch, Sample


def methods_on(backbone: ClipBackbone) -> dict[str, AnomalyMethod]:
    """Returns the methods, tapped at quarters of the depth where they tap several blocks."""
    depth = backbone.vision.depth
    quarters = [depth * i // 4 for i in (1, 2, 3, 4)]
    first = max(1, depth // 4)  # of the V-V path: blocks 6 to 24 of ViT-L/14
    return {
        "CLIP": CLIP(backbone),
        "AF-CLIP": AFCLIP(backbone, layers=quarters),
        "AnomalyCLIP": AnomalyCLIP(backbone, layers=[depth], vv_from=first),
        "FAPrompt": FAPrompt(backbone, layer=depth, vv_from=first),
        "APRIL-GAN": APRILGAN(backbone, layers=quarters),
        "KAnoCLIP": KAnoCLIP(backbone, layers=quarters, vv_from=first),
        "Dual-Image CLIP without adaptation": DualImageCLIP(backbone, steps=0),
        "AnoVL without adaptation and views": AnoVL(backbone, steps=0, augment=False),
        "WinCLIP": WinCLIP(backbone),
    }


def images(count: int, size: int, device: str) -> Batch:
    """Returns noise, half of it labelled anomalous, with a reference each."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(count, size, size, dtype=torch.uint8)
    mask[::2, : size // 4, : size // 3] = 1
    samples = [Sample("mvtec", "bottle", "test", Path(f"{i}.png"), 1 - i % 2, word="bottle") for i in range(count)]
    batch = Batch(
        torch.randn(count, 3, size, size, generator=generator),
        mask,
        torch.tensor([sample.label for sample in samples]),
        torch.ones(count, dtype=torch.bool),
        samples,
        reference=torch.randn(count, 1, 3, size, size, generator=generator),
    )
    return batch.to(torch.device(device))


def seconds(call: Callable[[], Any], device: str) -> float:
    """Returns how long a call takes, with the device's work."""
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(method: AnomalyMethod, batch: Batch, rounds: int, device: str, precision: str) -> dict[str, float]:
    """Returns parameters that train, and the medians of the ratios to the backbone's pass: `test`, `step`."""

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(device, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()

    backbone = method.backbone
    alone = backbone.spec(image_embedding=True)

    def test() -> None:
        method.score(method.extract(batch), batch)

    ratios: dict[str, list[float]] = {"test": [], "step": []}
    with torch.inference_mode(), autocast():
        method.on_evaluation_start()
        test()
        for _ in range(rounds):
            reference = seconds(lambda: backbone.encode_image(batch.image, alone), device)
            ratios["test"].append(seconds(test, device) / reference)
        method.on_evaluation_end()
    optimizer = method.configure_optimizers()
    if optimizer is not None:
        with autocast():
            features = method.extract(batch)

        def step() -> None:
            with autocast():
                total = method.loss(features, batch)["total"]
            optimizer.zero_grad()
            total.backward()
            optimizer.step()

        step()
        for _ in range(rounds):
            with torch.inference_mode(), autocast():
                reference = seconds(lambda: backbone.encode_image(batch.image, alone), device)
            ratios["step"].append(seconds(step, device) / reference)
    result = {name: statistics.median(values) for name, values in ratios.items() if values}
    result["parameters"] = sum(p.numel() for p in method.parameters() if p.requires_grad)
    if device == "cuda":
        result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    return result


def main() -> None:
    """Reads the command line, measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16", help="open_clip's name (%(default)s)")
    parser.add_argument("--image_size", type=int, help="the model's own by default")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", help="some of them; all by default")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    arguments = parser.parse_args()
    backbone = ClipBackbone(arguments.model, "random", image_size=arguments.image_size).to(arguments.device)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name, method in methods_on(backbone).items():
        if arguments.methods and name not in arguments.methods:
            continue
        method.to(arguments.device)
        for count in arguments.batch:
            batch = images(count, backbone.image_size, arguments.device)
            row = measure(method, batch, arguments.rounds, arguments.device, arguments.precision)
            results.setdefault(name, {})[str(count)] = row
            print(json.dumps({"method": name, "batch": count, **row}), flush=True)
    sizes = [str(count) for count in arguments.batch]
    print(f"\n{backbone.description}, {arguments.device}, {arguments.precision}, {torch.get_num_threads()} threads")
    print("| | parameters | " + " | ".join(f"test, batch {n} | step, batch {n}" for n in sizes) + " |")
    print("|---|---:|" + "---:|" * 2 * len(sizes))
    for name, rows in results.items():
        cells = [f"{rows[n][what]:.2f}" if what in rows[n] else "" for n in sizes for what in ("test", "step")]
        print(f"| {name} | {int(rows[sizes[0]]['parameters']):,} | " + " | ".join(cells) + " |")
    if arguments.json:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
