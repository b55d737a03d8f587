"""Common parts of the tests of all trained methods: images, a forward pass, a training step, a short run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from lightning import Trainer

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.store import FeatureStore
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.methods.adaptclip import AdaptCLIP
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.types import Batch, Sample
from afclip_runtime.types import ImageSize, height_and_width
from tests.support.layouts.mvtec import write_mvtec


def batch_of(count: int = 4, size: ImageSize = 112, seed: int = 0) -> Batch:
    """Returns images of two categories; every second one is anomalous."""
    generator = torch.Generator().manual_seed(seed)
    shape = height_and_width(size)
    mask = torch.zeros(count, *shape, dtype=torch.uint8)
    mask[1::2, 20:60, 30:90] = 1
    samples = [Sample("d", "ab"[i % 2], "test", Path(f"image_{i}.png"), i % 2) for i in range(count)]
    return Batch(
        image=torch.randn(count, 3, *shape, generator=generator),
        mask=mask,
        label=torch.tensor([s.label for s in samples]),
        mask_known=torch.ones(count, dtype=torch.bool),
        samples=samples,
    )


def take(batch: Batch, rows: list[int]) -> Batch:
    return Batch(
        batch.image[rows],
        batch.mask[rows],
        batch.label[rows],
        batch.mask_known[rows],
        [batch.samples[i] for i in rows],
    )


def with_masks(batch: Batch, known: list[bool]) -> Batch:
    """Returns the batch with the masks of these images known."""
    samples = [replace(sample, mask_known=one) for sample, one in zip(batch.samples, known, strict=True)]
    return replace(batch, samples=samples, mask_known=torch.tensor(known))


def score(model: AnomalyMethod, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        prediction = model.eval().score(model.extract(batch), batch)
    return prediction.pred_score, prediction.anomaly_map


def train_step(model: AnomalyMethod, optimizer: torch.optim.Optimizer, batch: Batch) -> dict[str, torch.Tensor]:
    losses = with_prompts(model).train().loss(model.extract(batch), batch)
    optimizer.zero_grad()
    losses["total"].backward()
    optimizer.step()
    return losses


def trainer_of(folder: Path, **arguments: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **arguments,
    )


def data_of(folder: Path, model: AnomalyMethod) -> MVTecLayout:
    data = MVTecLayout(write_mvtec(folder / "set", ["cap", "nut"]), name="set", batch_size=3, num_workers=0)
    data.connect(model.preprocess)
    return data


def saved(model: AnomalyMethod, folder: Path) -> dict[str, Any]:
    """Returns the checkpoint that a trainer writes after a short fit."""
    trainer = trainer_of(folder)
    trainer.fit(model, data_of(folder, model).train_dataloader())
    trainer.save_checkpoint(folder / "model.ckpt")
    checkpoint: dict[str, Any] = torch.load(folder / "model.ckpt", weights_only=True)
    return checkpoint


class TextCalls:
    """Counts the passes through a text tower."""

    def __init__(self, backbone: ClipBackbone) -> None:
        self.count = 0
        self.handle = backbone.text.register_forward_hook(self)

    def __call__(self, *args: object) -> None:
        self.count += 1


class NoisePrompts:
    """Prompt images for methods that train with normal reference images: noise per image, the same in any batch.

    Args:
        size: Size of the images.
    """

    def __init__(self, size: ImageSize) -> None:
        self.size = size

    def __call__(
        self, samples: Sequence[Sample], epoch: int, store: FeatureStore | None
    ) -> tuple[list[Batch], list[int]]:
        """See `PromptImages.read`."""
        seeds = [crc32(str(sample.image_path).encode()) for sample in samples]
        batch = batch_of(len(samples), self.size)
        noise = torch.cat([batch_of(1, self.size, seed).image for seed in seeds])
        return [replace(batch, image=noise)], list(range(len(samples)))


def with_prompts(model: AnomalyMethod) -> AnomalyMethod:
    """Returns the method, with normal reference images if it trains with them."""
    if isinstance(model, AdaptCLIP):
        model.prompts = NoisePrompts(model.backbone.image_size)
    return model


def fit_noise(model: Any, shots: int = 2) -> None:
    """Gives a few-shot method random images for the memory of both categories of `batch_of`."""
    for seed, category in enumerate("ab", 1):
        model.fit_memory(("d", category), batch_of(shots, model.backbone.image_size, seed).image)
