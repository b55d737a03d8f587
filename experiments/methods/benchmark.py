"""Cost of each method relative to the pass of its frozen backbone, in tests and training steps.

    python -m experiments.methods.benchmark                                            # ViT-B/16 at 224 px on a CPU
    python -m experiments.methods.benchmark --model ViT-L-14-336 --image_size 518 --device cuda --precision bf16
    python -m experiments.methods.benchmark --model ViT-L-14-336 --image_size 518 --methods AF-CLIP --batch 1 --rounds 1

Each method and batch size runs in a process of its own, which tells its memory, on random weights and images. Every
call comes right after a pass of the backbone alone (the class token's embedding, nothing tapped); reported is the
median of the ratios, on a CPU of seconds of the processor, so that other work counts less: set OMP_NUM_THREADS to 1. A
test is taken apart: `forward` is the backbone's pass with what the method taps and encodes beside, `head` what it makes
of it, `maps` its upsampling and smoothing, `metrics` what the scores cost then. A training step is the head's, without
the backbone's pass: losses, backward pass and optimiser. Text that does not depend on the image is embedded before.
`over batch 1` is the test of a batch over those of as many single images, in turns.

Operations are counted for one image's test, a multiplication and an addition being two. On a GPU the rate of the pass
is also given as a share of what the device reaches in a plain product of large matrices of the same type.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.methods.aaclip import AACLIP
from afclip_lightning.methods.adaclip import AdaCLIP
from afclip_lightning.methods.adaptclip import AdaptCLIP
from afclip_lightning.methods.afclip import AFCLIP
from afclip_lightning.methods.anomalyclip import AnomalyCLIP
from afclip_lightning.methods.anomalydino import AnomalyDINO
from afclip_lightning.methods.anovl import AnoVL
from afclip_lightning.methods.aprilgan import APRILGAN
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.methods.clip import CLIP
from afclip_lightning.methods.cocoop import CoCoOp
from afclip_lightning.methods.coop import CoOp
from afclip_lightning.methods.dual_image import DualImageCLIP
from afclip_lightning.methods.faprompt import FAPrompt
from afclip_lightning.methods.fusion import Fusion
from afclip_lightning.methods.glocalclip import GlocalCLIP
from afclip_lightning.methods.head_with_memory import HeadWithMemory
from afclip_lightning.methods.kanoclip import KAnoCLIP
from afclip_lightning.methods.mrad import MEMORY, MRAD, Variant
from afclip_lightning.methods.nearest_neighbours import NearestNeighbours
from afclip_lightning.methods.patch_logit import PatchLogit
from afclip_lightning.methods.patch_rarity import PatchRarity
from afclip_lightning.methods.subspacead import SubspaceAD
from afclip_lightning.methods.uniadet import UniADet
from afclip_lightning.methods.winclip import WinCLIP
from afclip_lightning.metrics import AnomalyMetrics
from afclip_lightning.types import Batch, Sample
from afclip_runtime.files import write_json
from experiments.methods import table as cost_table


def quarters(backbone: ClipBackbone) -> list[int]:
    """Returns the blocks at the quarters of the depth, which correspond to 6, 12, 18 and 24 of ViT-L/14."""
    return [backbone.vision.depth * i // 4 for i in (1, 2, 3, 4)]


KEYS_OF_VISA = (962, 1200, 2162, 1200)  # of MRAD's memory, by their kind: no image of VisA lacks a mask


def mrad(backbone: ClipBackbone, variant: Variant) -> MRAD:
    """Returns MRAD with a memory as large as that of VisA's test split, of random keys."""
    method = MRAD(backbone, variant=variant, layer=backbone.vision.depth)
    for name, rows in zip(MEMORY, KEYS_OF_VISA, strict=True):
        keys = getattr(method, name)
        setattr(method, name, torch.nn.functional.normalize(torch.randn(rows, keys.shape[1]), dim=-1))
    return method


def fusion(backbone: ClipBackbone) -> Fusion:
    """Returns the fusion of AF-CLIP and patch rarity on the same blocks."""
    arguments = {"layers": quarters(backbone)}
    return Fusion(backbone, [{"method": name, "arguments": arguments} for name in ("AFCLIP", "PatchRarity")])


METHODS: dict[str, Callable[[ClipBackbone], AnomalyMethod]] = {
    "CLIP": CLIP,
    "AF-CLIP": lambda b: AFCLIP(b, layers=quarters(b)),
    "AnomalyCLIP": lambda b: AnomalyCLIP(b, layers=[b.vision.depth], vv_from=quarters(b)[0]),
    "GlocalCLIP": lambda b: GlocalCLIP(b, layers=[b.vision.depth], vv_from=quarters(b)[0]),
    "FAPrompt": lambda b: FAPrompt(b, layer=b.vision.depth, vv_from=quarters(b)[0]),
    "CoOp": CoOp,
    "CoCoOp": CoCoOp,
    "APRIL-GAN": lambda b: APRILGAN(b, layers=quarters(b)),
    "AdaCLIP": lambda b: AdaCLIP(b, layers=quarters(b)),
    "AA-CLIP, text stage": lambda b: AACLIP(b, layers=quarters(b), vv_from=quarters(b)[0]),
    "AA-CLIP, visual stage": lambda b: AACLIP(b, layers=quarters(b), vv_from=quarters(b)[0], text_epochs=0),
    "AdaptCLIP": lambda b: AdaptCLIP(b, layers=quarters(b), vv_from=quarters(b)[0]),
    "KAnoCLIP": lambda b: KAnoCLIP(b, layers=quarters(b), vv_from=quarters(b)[0]),
    "Dual-Image CLIP without adaptation": lambda b: DualImageCLIP(b, steps=0),
    "AnoVL without adaptation and views": lambda b: AnoVL(b, steps=0, augment=False),
    "WinCLIP": WinCLIP,
    "UniADet": lambda b: UniADet(b, layers=quarters(b)),
    "MRAD-TF": lambda b: mrad(b, "TF"),
    "MRAD-FT": lambda b: mrad(b, "FT"),
    "Patch logit": lambda b: PatchLogit(b, layers=quarters(b)),
    "Patch rarity": lambda b: PatchRarity(b, layers=quarters(b)),
    "Nearest neighbours, 1 shot": lambda b: NearestNeighbours(b, layers=quarters(b), k_shot=1),
    "AnomalyDINO, 1 shot": lambda b: AnomalyDINO(b, k_shot=1),
    "SubspaceAD, 1 shot": lambda b: SubspaceAD(b, layers=quarters(b), k_shot=1),
    "Head with memory, 1 shot": lambda b: HeadWithMemory(b, layers=quarters(b), k_shot=1),
    "Fusion of AF-CLIP and patch rarity": fusion,
}
WITHOUT_COST = {  # by their classes
    "MuSc": "an image has no cost of its own: it is compared with all test images of its category",
    "MuSc2": "an image has no cost of its own: it is compared with all test images of its category",
}


def images(count: int, size: int, device: str) -> Batch:
    """Returns noise, half of it anomalous, in pairs that are each other's reference, as from a loader."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(count, size, size, dtype=torch.uint8)
    mask[::2, : size // 4, : size // 3] = 1
    samples = [
        Sample("mvtec", "bottle", "test", Path(f"{i}.png"), 1 - i % 2, class_name="bottle") for i in range(count)
    ]
    batch = Batch(
        torch.randn(count, 3, size, size, generator=generator),
        mask,
        torch.tensor([sample.label for sample in samples]),
        torch.ones(count, dtype=torch.bool),
        samples,
        reference=torch.randn(count % 2, 3, size, size, generator=generator),  # of the one that is left over
        reference_rows=torch.arange(count)[:, None] ^ 1,
    )
    return batch.to(torch.device(device))


UPSAMPLING = ("upsample_and_smooth", "pool_and_upsample", "upsample")


def seconds(call: Callable[[], Any], device: str) -> float:
    """Returns the time of a call: processor time, or including the GPU's work."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def operations(call: Callable[[], Any]) -> int:
    """Returns the floating-point operations of a call, including attention, which its fused form would hide."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with FlopCounterMode(display=False) as counter:
        call()
    torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


def matrix_rate(device: str, dtype: torch.dtype, side: int = 8192) -> float:
    """Returns the operations per second of products of large matrices, the best of ten."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: a @ b, device) for _ in range(10))


def peak_mb(device: str) -> float:
    """Returns the highest memory so far: of the process, or on the GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


@contextmanager
def timed(method: AnomalyMethod, names: Sequence[str], device: str) -> Iterator[list[float]]:
    """Collects the seconds of each call of these functions of the method's module."""
    module, taken = sys.modules[type(method).__module__], list[float]()

    def timing(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            result: list[Any] = []
            taken.append(seconds(lambda: result.append(function(*args, **kwargs)), device))
            return result[0]

        return run

    with ExitStack() as stack:
        for name in set(names) & vars(module).keys():
            stack.enter_context(patch.object(module, name, timing(getattr(module, name))))
        yield taken


def measure(method: AnomalyMethod, batch: Batch, rounds: int, device: str, precision: str) -> dict[str, float]:
    """Returns the costs of the method by name: see `COLUMNS`; times as medians of ratios to the backbone's pass."""
    backbone, count = method.backbone, len(batch.samples)
    alone = backbone.spec(image_embedding=True)
    keys = [str(sample.image_path) for sample in batch.samples]
    ratios: dict[str, list[float]] = {}
    rates: list[float] = []
    passes: list[float] = []

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(device, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()

    def reference() -> float:
        with torch.inference_mode(), autocast():
            return seconds(lambda: backbone.encode_image(batch.image, alone), device)

    def test() -> dict[str, float]:
        with timed(method, UPSAMPLING, device) as maps:
            features, predictions = [], []
            forward = seconds(lambda: features.append(method.extract(batch)), device)
            score = seconds(lambda: predictions.append(method.score(features[0], batch)), device)
        metrics = AnomalyMetrics().to(batch.image.device)
        found = predictions[0].anomaly_map, batch.mask, predictions[0].pred_score, batch.label, batch.mask_known
        update = seconds(lambda: metrics.update(*found, names=keys), device)
        taken = {"forward": forward, "head": score - sum(maps), "maps": sum(maps), "metrics": update}
        return {**taken, "test": forward + score}

    with torch.no_grad(), autocast():
        if method.k_shot:  # what few-shot images cost is paid once, and not by a test image
            for key in set(batch.keys):
                method.fit_memory(key, images(method.k_shot, backbone.image_size, "cpu").image)
        method.on_evaluation_start()
        test()
        with torch.enable_grad():  # the counter follows gradients of what has any
            flops = operations(lambda: method.score(method.extract(batch), batch)) / count
        method.on_evaluation_end()
    single = images(1, backbone.image_size, device)

    def one_by_one() -> None:
        for _ in range(count):
            method.score(method.extract(single), single)

    with torch.inference_mode(), autocast():
        method.on_evaluation_start()
        test()
        for _ in range(rounds):
            passes.append(reference())
            taken = test()
            if count > 1:
                ratios.setdefault("over_single", []).append(taken["test"] / seconds(one_by_one, device))
            rates.append(count / (taken["test"] + taken["metrics"]))
            for name, time_ in taken.items():
                ratios.setdefault(name, []).append(time_ / passes[-1])
        method.on_evaluation_end()
    result = {"images_a_second": statistics.median(rates), "gflops": flops / 1e9, "test_mb": peak_mb(device)}
    if device == "cuda":
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        with torch.inference_mode(), autocast():
            of_pass = operations(lambda: backbone.encode_image(batch.image, alone))
        result["share"] = of_pass / statistics.median(passes) / matrix_rate(device, dtype)
        torch.cuda.reset_peak_memory_stats()
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
        ratios["step"] = []
        for _ in range(rounds):
            before = reference()
            ratios["step"].append(seconds(step, device) / before)
        result["step_mb"] = peak_mb(device)
    result |= {name: statistics.median(values) for name, values in ratios.items()}
    trained = method.parameters() if optimizer is not None else []
    result["parameters"] = sum(p.numel() for p in trained if p.requires_grad)
    return result


COLUMNS = {  # of a table: title, name, form
    "trainable": ("parameters", "{:,.0f}"),
    "GFLOP, test": ("gflops", "{:.1f}"),
    "forward": ("forward", "{:.2f}"),
    "head": ("head", "{:.2f}"),
    "maps": ("maps", "{:.3f}"),
    "**test**": ("test", "**{:.2f}**"),
    "over batch 1": ("over_single", "{:.2f}"),
    "metrics": ("metrics", "{:.2f}"),
    "images/s": ("images_a_second", "{:.2f}"),
    "peak MB, test": ("test_mb", "{:.0f}"),
    "step": ("step", "{:.2f}"),
    "peak MB, step": ("step_mb", "{:.0f}"),
    "share of matrix rate": ("share", "{:.2f}"),
}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Returns the methods as a Markdown table; a column that none of them has is left out."""
    columns = {title: column for title, column in COLUMNS.items() if any(column[0] in row for row in rows.values())}
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name, row in rows.items():
        cells = [form.format(row[key]) if key in row else "" for key, form in columns.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, measures each method in a separate process and prints a table per batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16", help="open_clip's name (%(default)s)")
    parser.add_argument("--image_size", type=int, help="the model's own by default")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="NAME")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    parser.add_argument(
        "--csv", action="store_true", help="put the rows into cost.csv, which README's table is made of"
    )
    parser.add_argument("--one", action="store_true", help="the first method and batch size, here; prints JSON")
    options = parser.parse_args()
    if options.one:
        backbone = ClipBackbone(options.model, "random", image_size=options.image_size)
        method = METHODS[options.methods[0]](backbone).to(options.device)
        batch = images(options.batch[0], backbone.image_size, options.device)
        row = measure(method, batch, options.rounds, options.device, options.precision)
        print(json.dumps(row))
        return
    shared = [f"--model={options.model}", f"--device={options.device}", f"--precision={options.precision}"]
    shared += [f"--rounds={options.rounds}", *([f"--image_size={options.image_size}"] if options.image_size else [])]
    results: dict[str, dict[str, dict[str, float]]] = {}
    for count in options.batch:
        for name in options.methods:
            command = [sys.executable, "-m", "experiments.methods.benchmark", "--one", *shared]
            done = subprocess.run(
                [*command, "--methods", name, "--batch", str(count)], stdout=subprocess.PIPE, text=True, check=True
            )
            results.setdefault(str(count), {})[name] = json.loads(done.stdout.splitlines()[-1])
            print(name, count, results[str(count)][name], file=sys.stderr, flush=True)
    if options.csv:
        cost_table.update(results)
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{options.model}, {options.image_size or 'its own'} px, {options.precision}, {where}; times over the pass")
    for count, rows in results.items():
        print(f"\nBatch {count}\n\n{table(rows)}")
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
