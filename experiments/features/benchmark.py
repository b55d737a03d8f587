"""Savings of stored features: epochs, sweeps and shared passes with `--features.cache`, relative to those without.

    python -m experiments.features.benchmark                    # ViT-B/16 at 224 px, random weights, on a CPU
    python -m experiments.features.benchmark --images 40 --trials 4 --methods AnomalyCLIP
    python -m experiments.features.benchmark --model ViT-L-14-336 --image_size 518 --device cuda \
        --precision bf16-mixed --num_workers 8 --images 1725 --trials 0 --methods AF-CLIP

Three questions, each answered with ratios of times of one process:

- epochs: a second one with features that are there, over one without a store. Both contain the head's own steps,
  which no store can save: beside the ratio stands the lowest that they leave, and what the store makes of the rest.
  Also how many images a second two epochs on kept features take in;
- a sweep: all trials of AF-CLIP with a store that was empty before, less the heads' own work, over one trial without;
- a shared pass: of the backbone with the taps of all methods, over that of the slowest method alone.
"""

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.spec import union
from afclip_lightning.backbones.store import FeatureStore
from afclip_lightning.datasets.synthetic import Synthetic
from afclip_lightning.methods.base import AnomalyMethod
from afclip_runtime.files import write_json
from experiments.methods.benchmark import METHODS


def now() -> float:
    """Returns the time in seconds after the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock(Callback):
    """Records the time of each epoch and of its training steps."""

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self.steps: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the epoch."""
        self.start, self.inside = now(), 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts the step."""
        self.step_start = now()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends the step."""
        self.inside += now() - self.step_start

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the epoch."""
        self.epochs.append(now() - self.start)
        self.steps.append(self.inside)


@dataclass(frozen=True)
class Setting:
    """The training data of a method.

    Attributes:
        data: Training images.
        device: `cpu` or `cuda`.
        precision: As the trainer takes it.
    """

    data: Synthetic
    device: str
    precision: str

    def train(self, method: AnomalyMethod, epochs: int, cache: Path | None) -> Clock:
        """Trains a method from its current state, and returns the times of its epochs."""
        seed_everything(0, verbose=False)
        method.store = FeatureStore(cache, method.spec, method.backbone.grid) if cache else None
        self.data.connect(method.preprocess, store=method.store)
        clock = Clock()
        trainer = Trainer(
            accelerator=self.device,
            precision=self.precision,  # type: ignore[arg-type]
            max_epochs=epochs,
            limit_val_batches=0,  # as `fit` has it
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(method, datamodule=self.data)
        return clock


def measure_epochs(method: AnomalyMethod, setting: Setting, rounds: int, images: int) -> dict[str, float]:
    """Returns the ratio of a second epoch with stored features to one without, and the head's share of the latter."""
    plain, kept, heads, both = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        setting.train(method, 1, Path(folder))
        for _ in range(rounds):
            plain += setting.train(method, 2, None).epochs[1:]  # the first one also embeds the fixed prompts
            clock = setting.train(method, 2, Path(folder))
            kept += clock.epochs[1:]
            heads += clock.steps[1:]
            both.append(sum(clock.epochs))
    whole, rest, head = (statistics.median(times) for times in (plain, kept, heads))
    return {
        "with_features": rest / whole,
        "head_alone": head / whole,
        "head_aside": (rest - head) / (whole - head),
        "images_a_second": 2 * images / statistics.median(both),
    }


def measure_sweep(method: AnomalyMethod, setting: Setting, trials: int) -> float:
    """Returns the time of a sweep with a store, without the heads' work, relative to one trial without a store."""
    plain = sum(setting.train(method, 1, None).epochs)
    with tempfile.TemporaryDirectory() as folder:
        clocks = [setting.train(method, 1, Path(folder)) for _ in range(trials)]
    head = statistics.median(sum(clock.steps) for clock in clocks[1:])  # the first one's steps hold the backbone's pass
    return (sum(sum(clock.epochs) for clock in clocks) - trials * head) / plain


def measure_pass(methods: Mapping[str, AnomalyMethod], batch_size: int, rounds: int) -> tuple[float, str]:
    """Returns the time of the shared pass relative to the longest pass of one method, and that method."""
    backbone = next(iter(methods.values())).backbone
    device = next(backbone.parameters()).device
    image = torch.randn(batch_size, 3, backbone.image_size, backbone.image_size, device=device)
    specs = {name: method.spec for name, method in methods.items()}
    specs["all"] = union(list(specs.values()))
    times: dict[str, list[float]] = {name: [] for name in specs}
    for _ in range(rounds):
        for name, spec in specs.items():
            start = now()
            backbone.encode_image(image, spec)
            times[name].append(now() - start)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    together = medians.pop("all")
    slowest = max(medians, key=lambda name: medians[name])
    return together / medians[slowest], slowest


def main() -> None:
    """Measures, prints and, on demand, writes the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--images", type=int, default=200, help="training images")
    parser.add_argument("--trials", type=int, default=20, help="trials of the sweep; fewer than 2 leave it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed", "16-mixed"])
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read")
    parser.add_argument("--methods", nargs="+", default=["AF-CLIP", "AnomalyCLIP", "FAPrompt", "APRIL-GAN", "KAnoCLIP"])
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    backbone = ClipBackbone(args.model, "random", args.image_size)
    methods = {name: METHODS[name](backbone) for name in args.methods}
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    results: dict[str, Any] = {"model": args.model, "images": args.images, "device": where}
    with tempfile.TemporaryDirectory() as folder:
        half = args.images // 2
        data = Synthetic(
            folder, ["wood"], test_normal=half, test_anomalous=args.images - half, batch_size=args.batch_size
        )
        data.num_workers = args.num_workers
        data.prepare_data()
        setting = Setting(data, args.device, args.precision)
        results["epochs"] = {}
        for name, method in methods.items():
            results["epochs"][name] = measure_epochs(method, setting, args.rounds, args.images)
            print(name, results["epochs"][name], file=sys.stderr, flush=True)
        if "AF-CLIP" in methods and args.trials > 1:
            results["sweep"] = measure_sweep(methods["AF-CLIP"], setting, args.trials)
    backbone.to(args.device)
    results["pass"], results["slowest"] = measure_pass(methods, args.batch_size, args.rounds + 2)
    print(json.dumps(results, indent=2))
    if args.out:
        write_json(args.out, results)


if __name__ == "__main__":
    main()
