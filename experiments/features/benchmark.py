"""What keeping features saves: epochs, sweeps and shared passes with `--features.cache`, over the same without.

    python -m experiments.features.benchmark                    # ViT-B/16 at 224 px, random weights, on a CPU
    python -m experiments.features.benchmark --images 40 --trials 4 --methods AnomalyCLIP

Three questions, each answered with ratios of times of one process:

- epochs: one with features that are there, over one without a store. Both contain the head's own work, which no store
  can save: beside the ratio stands the lowest that it leaves;
- a sweep: all trials of AF-CLIP with a store that was empty before, less the heads' own work, over one trial without;
- a shared pass: of the backbone with the taps of all methods, over that of the slowest method alone.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.spec import union
from afclip_lightning.backbones.store import FeatureStore
from afclip_lightning.data.synthetic import Synthetic
from afclip_lightning.files import write_json
from afclip_lightning.methods.base import AnomalyMethod
from experiments.methods.benchmark import METHODS


class Clock(Callback):
    """Notes how long each epoch takes, and of it how long the training steps take."""

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self.steps: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the epoch."""
        self.start, self.inside = time.perf_counter(), 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts the step."""
        self.step_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends the step."""
        self.inside += time.perf_counter() - self.step_start

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the epoch."""
        self.epochs.append(time.perf_counter() - self.start)
        self.steps.append(self.inside)


def train(method: AnomalyMethod, data: Synthetic, epochs: int, cache: Path | None) -> Clock:
    """Trains a method as it is now, and returns the times of its epochs."""
    seed_everything(0, verbose=False)
    method.store = data.store = FeatureStore(cache, method.spec, method.backbone.grid) if cache else None
    data.preprocess = method.preprocess
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, datamodule=data)
    return clock


def measure_epochs(method: AnomalyMethod, data: Synthetic, rounds: int) -> dict[str, float]:
    """Returns an epoch with kept features over one without a store, and the head's own share of the latter."""
    plain, kept, heads = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        train(method, data, 1, Path(folder))
        for _ in range(rounds):
            plain += train(method, data, 1, None).epochs
            clock = train(method, data, 1, Path(folder))
            kept += clock.epochs
            heads += clock.steps
    whole = statistics.median(plain)
    return {"with_features": statistics.median(kept) / whole, "head_alone": statistics.median(heads) / whole}


def measure_sweep(method: AnomalyMethod, data: Synthetic, trials: int) -> float:
    """Returns a sweep with a store, without the heads' own work, over one trial without a store."""
    plain = sum(train(method, data, 1, None).epochs)
    with tempfile.TemporaryDirectory() as folder:
        clocks = [train(method, data, 1, Path(folder)) for _ in range(trials)]
    head = statistics.median(sum(clock.steps) for clock in clocks[1:])  # the first one's steps hold the backbone's pass
    return (sum(sum(clock.epochs) for clock in clocks) - trials * head) / plain


def measure_pass(methods: Mapping[str, AnomalyMethod], batch_size: int, rounds: int) -> tuple[float, str]:
    """Returns the backbone's pass that serves all methods over the longest that one needs, and whose that is."""
    backbone = next(iter(methods.values())).backbone
    image = torch.randn(batch_size, 3, backbone.image_size, backbone.image_size)
    specs = {name: method.spec for name, method in methods.items()}
    specs["all"] = union(list(specs.values()))
    times: dict[str, list[float]] = {name: [] for name in specs}
    for _ in range(rounds):
        for name, spec in specs.items():
            start = time.perf_counter()
            backbone.encode_image(image, spec)
            times[name].append(time.perf_counter() - start)
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
    parser.add_argument("--trials", type=int, default=20, help="trials of the sweep")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=["AF-CLIP", "AnomalyCLIP", "FAPrompt", "APRIL-GAN", "KAnoCLIP"])
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    backbone = ClipBackbone(args.model, "random", args.image_size)
    methods = {name: METHODS[name](backbone) for name in args.methods}
    results: dict[str, Any] = {"model": args.model, "images": args.images, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        half = args.images // 2
        data = Synthetic(folder, ["wood"], test_normal=half, test_anomalous=half, batch_size=args.batch_size)
        data.num_workers = 0
        data.prepare_data()
        results["epochs"] = {name: measure_epochs(method, data, args.rounds) for name, method in methods.items()}
        if "AF-CLIP" in methods:
            results["sweep"] = measure_sweep(methods["AF-CLIP"], data, args.trials)
    results["pass"], results["slowest"] = measure_pass(methods, args.batch_size, args.rounds + 2)
    print(json.dumps(results, indent=2))
    if args.out:
        write_json(args.out, results)


if __name__ == "__main__":
    main()
