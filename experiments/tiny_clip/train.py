"""Pretrains the tiny CLIP on drawn pairs, and exports its weights.

Usage: `python -m experiments.tiny_clip.train --config experiments/tiny_clip/config.yaml`; add `--ckpt_path last.ckpt`
to resume, `--export last.ckpt` to write the weights of a checkpoint without training.
"""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from timm.optim import Muon
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from afclip_lightning.backbones.weights import expand_vocabulary
from experiments.tiny_clip import generator
from experiments.tiny_clip.generator import HELD_OUT, TRAINED, Caption, draw_caption, draw_pair, draw_state_prompts

MODEL = "tiny-8-112"
VOCABULARY_SIZE = 49408  # rows of open_clip's own table
AFCLIP_STATES = ("without defect.", "with defect.")
FIXED_PROMPTS = (
    ("a photo of an object without defect.", "a photo of a flawless object.", "a photo of a perfect object."),
    ("a photo of an object with defect.", "a photo of a damaged object.", "a photo of a scratched object."),
)


@dataclass(frozen=True)
class Settings:
    """The settings of a run.

    Attributes:
        output: Folder of checkpoints, log, curves and weights.
        cache: Folder that the pairs are drawn into; reused if complete.
        seed: Seed of data, initial weights and order.
        scenes: Pairs drawn for training.
        held_out_scenes: Pairs of `HELD_OUT` families to validate on.
        image_size: Side of the drawn pictures and of the model's input.
        steps: Optimiser steps.
        steps_per_epoch: Steps between checkpoints.
        validate_every: Epochs between validations.
        batch_pairs: Pairs a step at full size.
        crop_size: Side of the crops in the first part of training, a multiple of 8.
        crop_pairs: Pairs a step in that part.
        crop_share: Share of the steps in that part; 0 leaves it out.
        learning_rate: Peak rate of the embeddings, gains and biases (AdamW).
        matrix_learning_rate: Peak rate of the blocks' matrices (Muon).
        weight_decay: Weight decay of the blocks' matrices.
        warmup: Steps of linear warm-up.
        ema: Decay of the averaged weights, which are validated and exported.
        layers: Tapped blocks, counted from 1.
        temperature: Divides the cosines of the dense loss.
        caption_weight: Weight of the contrastive loss over captions.
        image_weight: Weight of the image-level state loss.
        dense_weight: Weight of the dense state loss of the patch tokens.
        workers: Processes that draw.
        precision: Lightning's precision.
    """

    output: str = "runs/tiny_clip"
    cache: str = "runs/tiny_clip/pairs"
    seed: int = 0
    scenes: int = 40000
    held_out_scenes: int = 200
    image_size: int = 112
    steps: int = 6500
    steps_per_epoch: int = 100
    validate_every: int = 3
    batch_pairs: int = 12
    crop_size: int = 72
    crop_pairs: int = 16
    crop_share: float = 0.65
    learning_rate: float = 1e-3
    matrix_learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 200
    ema: float = 0.998
    layers: tuple[int, ...] = (2, 4, 6, 8)
    temperature: float = 0.2
    caption_weight: float = 0.3
    image_weight: float = 0.5
    dense_weight: float = 1.0
    workers: int = 2
    precision: str = "bf16-mixed"


# ----------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Pairs:
    """Drawn pairs, mapped from disk.

    Attributes:
        images: `[S, 2, n, n, 3]`, uint8: flawless, defective.
        masks: `[S, n, n]`, uint8, 1 = anomalous.
        attributes: `[S, 3]`, int64: family, colour, kind.
    """

    images: NDArray[Any]
    masks: NDArray[Any]
    attributes: NDArray[Any]


def _draw_range(folder: str, seed: int, families: Sequence[str], size: int, start: int, stop: int) -> NDArray[Any]:
    cv2.setNumThreads(1)
    images = np.load(Path(folder) / "images.npy", mmap_mode="r+")
    masks = np.load(Path(folder) / "masks.npy", mmap_mode="r+")
    attributes = np.zeros((stop - start, 3), np.int64)
    for index in range(start, stop):
        pair = draw_pair(seed, index, families, size)
        images[index, 0], images[index, 1], masks[index] = pair.normal, pair.defective, pair.mask
        attributes[index - start] = pair.family, pair.colour, pair.kind
    return attributes


def draw_pairs(folder: Path, seed: int, families: Sequence[str], count: int, size: int, workers: int) -> Pairs:
    """Returns `count` pairs, drawn into `folder` unless the same ones exist.

    Args:
        folder: Where they are kept.
        seed: Seed of the series.
        families: Families in turn.
        count: Pairs.
        size: Side in pixels.
        workers: Processes; 0 draws in this one.
    """
    record = {"version": generator.VERSION, "seed": seed, "families": list(families), "count": count, "size": size}
    done = folder / "record.json"
    if not done.is_file() or json.loads(done.read_text(encoding="utf-8")) != record:
        folder.mkdir(parents=True, exist_ok=True)
        done.unlink(missing_ok=True)
        for name, shape in (("images", (count, 2, size, size, 3)), ("masks", (count, size, size))):
            np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=shape).flush()
        starts = list(range(0, count, 250))
        jobs = [(str(folder), seed, families, size, start, min(start + 250, count)) for start in starts]
        if workers:
            with ProcessPoolExecutor(workers) as pool:
                parts = list(pool.map(_draw_range, *zip(*jobs, strict=True)))
        else:
            parts = [_draw_range(*job) for job in jobs]
        np.save(folder / "attributes.npy", np.concatenate(parts))
        done.write_text(json.dumps(record), encoding="utf-8")
    return Pairs(
        np.load(folder / "images.npy", mmap_mode="r"),
        np.load(folder / "masks.npy", mmap_mode="r"),
        np.load(folder / "attributes.npy"),
    )


@dataclass(frozen=True)
class PairBatch:
    """A batch: flawless pictures first, then their twins in the same order.

    Attributes:
        image: `[2P, 3, s, s]`, in [0, 1].
        mask: `[2P, s, s]`, 1 = anomalous.
        captions: One a picture.
        facts: `[2P, 4]`, int64: state, kind, family, colour of each picture; kind -1 = flawless.
    """

    image: Tensor
    mask: Tensor
    captions: list[Caption]
    facts: Tensor


def make_batch(pairs: Pairs, step: int, settings: Settings) -> PairBatch:
    """Returns the batch of a step, a function of the step alone, so that a resumed run equals an uninterrupted one."""
    crop = step < settings.crop_share * settings.steps
    count = settings.crop_pairs if crop else settings.batch_pairs
    rng = np.random.default_rng([settings.seed, 1, step])
    first = step * count
    epoch, total = first // len(pairs.masks), len(pairs.masks)
    chosen: list[int] = []
    for position in range(first, first + count):
        if position // total != epoch or not chosen:
            epoch = position // total
            order = np.random.default_rng([settings.seed, 2, epoch]).permutation(total)
        chosen.append(int(order[position % total]))
    n = pairs.masks.shape[1]
    side = settings.crop_size if crop else n
    images, masks = np.empty((2, count, side, side, 3), np.uint8), np.zeros((2, count, side, side), np.uint8)
    for k, index in enumerate(chosen):
        image, mask = pairs.images[index], pairs.masks[index]
        y, x = divmod(int(rng.choice(np.flatnonzero(mask))), n)
        top = int(rng.integers(max(0, y - side + 1), min(y, n - side) + 1))
        left = int(rng.integers(max(0, x - side + 1), min(x, n - side) + 1))
        image, mask = image[:, top : top + side, left : left + side], mask[top : top + side, left : left + side]
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        image, mask = np.rot90(image, turns, (1, 2)), np.rot90(mask, turns)
        images[:, k] = image[:, :, ::-1] if flip else image
        masks[1, k] = mask[:, ::-1] if flip else mask
    image = torch.from_numpy(images.reshape(2 * count, side, side, 3)).permute(0, 3, 1, 2).float() / 255
    # one colour change for both twins: it must not tell them apart
    gain = torch.from_numpy(rng.uniform(0.8, 1.25, (count, 1)) * rng.uniform(0.9, 1.1, (count, 3))).float()
    offset = torch.from_numpy(rng.uniform(-0.06, 0.06, (count, 1))).float()
    image = (image * gain.repeat(2, 1)[..., None, None] + offset.repeat(2, 1)[..., None, None]).clamp(0, 1)
    captions, facts = [], []
    for defective in (0, 1):
        for index in chosen:
            family, colour, kind = (int(v) for v in pairs.attributes[index])
            kind = kind if defective else -1
            captions.append(draw_caption(family, colour, kind, rng))
            facts.append((defective, kind, family, colour))
    mask_tensor = torch.from_numpy(masks.reshape(2 * count, side, side)).float()
    return PairBatch(image, mask_tensor, captions, torch.tensor(facts))


# --------------------------------------------------------------------------------------------------------- losses


def true_of(captions: Sequence[Caption], facts: Tensor) -> Tensor:
    """Returns whether each caption is true of each picture, bool `[pictures, captions]`."""
    said = torch.tensor([(c.state, c.kind, c.family, c.colour) for c in captions], device=facts.device)
    return ((said[None] < 0) | (said[None] == facts[:, None])).all(dim=2)


def caption_loss(image: Tensor, text: Tensor, truth: Tensor, scale: Tensor) -> Tensor:
    """Returns the symmetric contrastive loss; all captions that are true of a picture are its positives.

    Args:
        image: `[B, D]`, L2-normalised.
        text: `[K, D]`, L2-normalised.
        truth: `[B, K]`, bool.
        scale: Multiplies the similarities.
    """
    logits, target = scale * image @ text.T, truth.float()
    rows = -(target / target.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    columns = -(target / target.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (rows + columns) / 2


def patch_state(mask: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Returns target and weight of every patch, `[B, h, w]` each.

    A patch is anomalous if the mask covers a tenth of it, or if none is covered more; other touched patches are not
    counted.

    Args:
        mask: `[B, H, W]`, 1 = anomalous.
        patch: Side of a patch in pixels.
    """
    area = F.avg_pool2d(mask[:, None], patch)[:, 0]
    most = area.amax(dim=(1, 2), keepdim=True)
    target = ((area >= 0.1) | ((area == most) & (most > 0))).float()
    return target, (target.bool() | (area == 0)).float()


def dense_loss(logit: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Returns focal plus Dice loss of patch logits.

    Args:
        logit: `[B, N]`, of the anomalous state.
        target: `[B, N]`, 0 or 1.
        weight: `[B, N]`, 0 leaves a patch out.
    """
    entropy = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    balance = torch.where(target > 0, 0.75, 0.25)
    focal = (balance * (1 - torch.exp(-entropy)) ** 2 * entropy * weight).sum() / target.sum().clamp(min=1)
    probability = logit.sigmoid() * weight
    dice = 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + (target * weight).sum() + 1)
    return focal + dice


def auroc(score: NDArray[Any], label: NDArray[Any]) -> float:
    """Returns the area under the ROC curve; ties count half."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive = int(label.sum())
    negative = len(label) - positive
    return float((rank[label > 0].sum() - positive * (positive + 1) / 2) / max(positive * negative, 1))


# ---------------------------------------------------------------------------------------------------------- model


def caption_token_ids() -> list[int]:
    """Returns the sorted ids of all tokens that captions can hold, with start and end."""
    ids = open_clip.get_tokenizer("ViT-B-32")([*generator.vocabulary(), *AFCLIP_STATES, ".", ","])
    return sorted(set(ids.unique().tolist()) | {0})


class TinyClip(nn.Module):
    """open_clip's CLIP with its token table cut to the vocabulary; the last row stands for all other tokens.

    Args:
        token_ids: Sorted ids of the vocabulary.
        model: open_clip's name of the architecture.
    """

    lookup: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, token_ids: Sequence[int], model: str = MODEL) -> None:
        super().__init__()
        open_clip.add_model_config(Path(__file__).parents[2] / "afclip_lightning" / "backbones" / "models")
        self.clip = open_clip.create_model(model, pretrained=None, pretrained_image=False, pretrained_text=False)
        rows = len(token_ids)
        self.clip.token_embedding = nn.Embedding(rows + 1, self.clip.token_embedding.embedding_dim)
        nn.init.normal_(self.clip.token_embedding.weight, std=0.02)
        start_vision_tower(self.clip.visual)
        lookup = torch.full((VOCABULARY_SIZE,), rows)
        lookup[torch.tensor(token_ids)] = torch.arange(rows)
        self.register_buffer("lookup", lookup, persistent=False)
        self.tokenizer = open_clip.get_tokenizer(model)
        self.known: dict[str, Tensor] = {}
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Returns text embeddings `[K, D]`, L2-normalised; equals open_clip's, without the padding."""
        for prompt in prompts:
            if prompt not in self.known:
                self.known[prompt] = self.tokenizer([prompt])[0]
        ids = torch.stack([self.known[prompt] for prompt in prompts])
        if len(self.known) > 100_000:
            self.known.clear()
        end = ids.argmax(dim=1)
        length = int(end.max()) + 1
        clip = self.clip
        hidden = clip.token_embedding(self.lookup[ids[:, :length].to(self.lookup.device)])
        hidden = hidden + clip.positional_embedding[:length]
        hidden = clip.transformer(hidden, attn_mask=clip.attn_mask[:length, :length])
        hidden = clip.ln_final(hidden[torch.arange(len(ids)), end])
        return F.normalize((hidden @ clip.text_projection).float(), dim=-1)

    def encode_image(
        self, image: Tensor, layers: Sequence[int], window: tuple[int, int] = (0, 0)
    ) -> tuple[Tensor, list[Tensor]]:
        """Returns the image embedding `[B, D]`, L2-normalised, and the tapped tokens `[B, 1 + N, C]`.

        Args:
            image: `[B, 3, s, s]`, in [0, 1], s at most the model's size.
            layers: Tapped blocks, counted from 1.
            window: Row and column of the positional table where a smaller image begins.
        """
        visual = self.clip.visual
        hidden = visual.conv1((image - self.mean) / self.std)
        h, w = hidden.shape[-2:]
        hidden = hidden.flatten(2).transpose(1, 2)
        token = visual.class_embedding.to(hidden.dtype).expand(len(hidden), 1, -1)
        table = visual.positional_embedding
        places = table[1:].unflatten(0, visual.grid_size)[window[0] : window[0] + h, window[1] : window[1] + w]
        hidden = torch.cat([token, hidden], dim=1) + torch.cat([table[:1], places.flatten(0, 1)])
        hidden = visual.ln_pre(hidden)
        taps = []
        for number, block in enumerate(visual.transformer.resblocks, 1):
            hidden = block(hidden)
            if number in layers:
                taps.append(hidden)
        return self.project(hidden[:, 0]), taps

    def project(self, tokens: Tensor) -> Tensor:
        """Returns tokens in the joint space `[..., D]`, L2-normalised, as AF-CLIP projects them."""
        visual = self.clip.visual
        return F.normalize((visual.ln_post(tokens) @ visual.proj).float(), dim=-1)


class StateProbe(nn.Module):
    """Reads the state of a patch from the cosine between its normalised token and one learned direction.

    A linear layer would be content with a direction of hardly any variance. Because a cosine is bounded, a clear answer
    needs a state that is a large share of the token, which is what heads find that see a few hundred pictures.

    Args:
        width: C, channels of a token.
        temperature: Divides the cosine.
    """

    def __init__(self, width: int, temperature: float) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(width))
        self.bias = nn.Parameter(torch.zeros(()))
        self.temperature = temperature

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the logits `[B, N]` of the anomalous state, float32, of tokens `[B, N, C]`."""
        width = tokens.shape[-1]
        normed = F.layer_norm(tokens.float(), (width,)) / width**0.5
        return normed @ F.normalize(self.direction, dim=0) / self.temperature + self.bias


def start_vision_tower(visual: nn.Module) -> None:
    """Gives a vision tower initial weights from which a small one learns far faster than from independent noise.

    Queries meet their own keys (`W_q^T W_k` near the identity) and a block subtracts what it attends to (`W_o W_v` near
    its negative), so that a patch is first compared with those that look like it; positions are sines and cosines, and
    the patch embedding is orthogonal.

    Args:
        visual: open_clip's VisionTransformer.

    Reference: Trockman and Kolter, Mimetic Initialization of Self-Attention Layers, 2023; theirs are the shares of
    noise and identity.
    """
    width = visual.conv1.out_channels
    for block in visual.transformer.resblocks:
        attention = block.attn
        head = width // attention.num_heads
        query, key, value = attention.in_proj_weight.data.chunk(3)
        for rows in range(0, width, head):
            left, sizes, right = torch.linalg.svd(0.7 * torch.eye(width) + 0.7 * torch.randn(width, width) / width**0.5)
            query[rows : rows + head] = (left * sizes.sqrt()).T[:head]
            key[rows : rows + head] = right[:head] * sizes[:head, None].sqrt()
        left, sizes, right = torch.linalg.svd(0.4 * torch.randn(width, width) / width**0.5 - 0.4 * torch.eye(width))
        value[:] = right * sizes[:, None].sqrt()
        attention.out_proj.weight.data = left * sizes.sqrt()
    h, w = visual.grid_size
    y, x = torch.meshgrid(torch.arange(h).float(), torch.arange(w).float(), indexing="ij")
    rates = 1000 ** -(torch.arange(width // 4) / (width // 4))
    waves = [wave(axis.flatten()[:, None] * rates) for axis in (x, y) for wave in (torch.sin, torch.cos)]
    visual.positional_embedding.data[1:] = 0.5 * torch.cat(waves, dim=1)
    visual.positional_embedding.data[0] = 0
    nn.init.orthogonal_(visual.conv1.weight.data.view(width, -1))


class Pretraining(L.LightningModule):
    """The losses and the schedule.

    Args:
        settings: See there.
        train_pairs: Pairs to train on.
        held_out: Pairs of unseen families to validate on.
        model: open_clip's name of the architecture.
    """

    def __init__(self, settings: Settings, train_pairs: Pairs, held_out: Pairs, model: str = MODEL) -> None:
        super().__init__()
        self.settings, self.train_pairs, self.held_out = settings, train_pairs, held_out
        self.token_ids = caption_token_ids()
        self.net = TinyClip(self.token_ids, model)
        self.average = AveragedModel(self.net.clip, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
        self.average.requires_grad_(False)
        width = self.net.clip.visual.transformer.width
        self.probe = StateProbe(width, settings.temperature)  # one for all taps, as AF-CLIP's adapter is; not exported

    def train_dataloader(self) -> Iterable[int]:
        """Returns empty steps: a batch depends on the step's number alone."""
        return DataLoader(list(range(self.settings.steps_per_epoch)), batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> Iterable[int]:
        """Returns the starts of the validation batches."""
        return DataLoader(list(range(0, len(self.held_out.masks), 25)), batch_size=None)  # type: ignore[arg-type]

    def training_step(self, _: int, __: int) -> Tensor:
        """Returns the weighted sum of the losses."""
        terms = self.losses(make_batch(self.train_pairs, self.global_step, self.settings), self.global_step)
        self.log_dict({f"train/{key}": value.detach() for key, value in terms.items()}, prog_bar=True)
        return terms["total"]

    def losses(self, batch: PairBatch, step: int) -> dict[str, Tensor]:
        """Returns the loss terms of a batch, and `total`."""
        s, device = self.settings, self.device
        rng = np.random.default_rng([s.seed, 3, step])
        patch = self.net.clip.visual.patch_size[0]
        room = self.net.clip.visual.grid_size[0] - batch.image.shape[-1] // patch
        window = tuple(int(v) for v in rng.integers(0, room + 1, 2))
        embedding, taps = self.net.encode_image(batch.image.to(device), s.layers, (window[0], window[1]))
        prompts = [AFCLIP_STATES, *(draw_state_prompts(rng) for _ in range(4))]
        texts = [c.text for c in batch.captions] + [word for pair in prompts for word in pair]
        text = self.net.encode_text(texts)
        captions, states = text[: len(batch.captions)], text[len(batch.captions) :].unflatten(0, (-1, 2))
        # anchors: AF-CLIP's own words, one drawn pair, and the mean of all drawn pairs
        anchors = F.normalize(torch.stack([states[0], states[1], states[1:].mean(0)]), dim=-1)
        direction = anchors[:, 1] - anchors[:, 0]  # [3, D]
        target, weight = (t.to(device).flatten(1) for t in patch_state(batch.mask, patch))
        facts = batch.facts.to(device)
        label = facts[:, 0].float()

        terms = {}
        scale = self.net.clip.logit_scale.exp().clamp(max=50)
        terms["caption"] = caption_loss(embedding, captions, true_of(batch.captions, facts), scale)
        logits = embedding @ direction.T / 0.07  # [2P, 3]
        twins = logits[len(label) // 2 :] - logits[: len(label) // 2]
        wanted = label[:, None].expand_as(logits)
        terms["image"] = F.binary_cross_entropy_with_logits(logits, wanted) + 0.5 * F.softplus(-twins).mean()
        guesses = [self.probe(tap[:, 1:]) for tap in taps]
        terms["dense"] = torch.stack([dense_loss(guess, target, weight) for guess in guesses]).mean()
        terms["total"] = (
            s.caption_weight * terms["caption"] + s.image_weight * terms["image"] + s.dense_weight * terms["dense"]
        )
        return terms

    def on_train_batch_end(self, *_: Any) -> None:
        """Moves the averaged weights."""
        self.average.update_parameters(self.net.clip)

    def on_validation_epoch_start(self) -> None:
        """Puts the averaged weights in place."""
        self.live, self.net.clip = self.net.clip, self.average.module
        self.seen: list[tuple[Tensor, ...]] = []
        text = self.net.encode_text([*AFCLIP_STATES, *FIXED_PROMPTS[0], *FIXED_PROMPTS[1]])
        k = len(FIXED_PROMPTS[0])
        fixed = F.normalize(torch.stack([text[2 : 2 + k].mean(0), text[2 + k :].mean(0)]), dim=-1)
        self.directions = torch.stack([text[1] - text[0], fixed[1] - fixed[0]])

    def validation_step(self, start: int, _: int) -> None:
        """Scores a slice of the held-out pairs."""
        images = torch.from_numpy(np.array(self.held_out.images[start : start + 25])).flatten(0, 1)
        masks = torch.from_numpy(np.array(self.held_out.masks[start : start + 25]))
        masks = torch.stack([torch.zeros_like(masks), masks], dim=1).flatten(0, 1)
        image = images.permute(0, 3, 1, 2).float().to(self.device) / 255
        embedding, taps = self.net.encode_image(image, self.settings.layers)
        state = torch.stack([self.probe(tap[:, 1:]) for tap in taps]).sum(0)
        maps = state[:, None].unflatten(2, self.net.clip.visual.grid_size)
        maps = F.interpolate(maps, size=image.shape[-2:], mode="bilinear")[:, 0, 1::3, 1::3]
        label = torch.tensor([0, 1]).repeat(len(images) // 2)
        self.seen.append((maps.cpu(), masks[:, 1::3, 1::3], (embedding @ self.directions.T).cpu(), label))

    def on_validation_epoch_end(self) -> None:
        """Logs AUROCs on the held-out families."""
        self.net.clip = self.live
        maps, masks, scores, label = (torch.cat(part).float().numpy() for part in zip(*self.seen, strict=True))
        if self.trainer.sanity_checking:
            return
        self.log_dict(
            {
                "held_out/pixel_auroc": auroc(maps.ravel(), masks.ravel()),
                "held_out/image_auroc_afclip_words": auroc(scores[:, 0], label),
                "held_out/image_auroc_fixed_prompts": auroc(scores[:, 1], label),
                "held_out/image_auroc_map_maximum": auroc(maps.max(axis=(1, 2)), label),
            },
            prog_bar=True,
        )

    def configure_optimizers(self) -> Any:
        """Returns Muon for the blocks' matrices and AdamW for the rest, with warm-up and a cosine to 0."""
        s = self.settings
        named = [*self.net.named_parameters(), *self.probe.named_parameters()]
        matrices = [p for name, p in named if "resblocks" in name and p.ndim == 2]
        rest = [p for name, p in named if not ("resblocks" in name and p.ndim == 2)]
        optimizer = Muon(
            [
                {"params": matrices, "lr": s.matrix_learning_rate, "weight_decay": s.weight_decay},
                {"params": rest, "lr": s.learning_rate, "weight_decay": 0.0, "use_fallback": True},
            ],
            nesterov=True,
            betas=(0.9, 0.98),
        )

        def rate(step: int) -> float:
            rise = (step + 1) / max(s.warmup, 1)
            fall = 0.5 * (1 + np.cos(np.pi * min(step / s.steps, 1.0)))
            return float(min(rise, 1.0) * fall)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


# --------------------------------------------------------------------------------------------------------- export


def export(state_dict: dict[str, Tensor], token_ids: Sequence[int], path: Path, metadata: dict[str, str]) -> None:
    """Writes the weights in half precision with a cut token table.

    Args:
        state_dict: State of open_clip's CLIP; its token table has a row for each of `token_ids` and one for all other
            tokens.
        token_ids: Sorted ids.
        path: A safetensors file.
        metadata: Facts on the training of the weights.

    Raises:
        ValueError: The table and the ids do not fit.
    """
    table = state_dict["token_embedding.weight"]
    if len(table) != len(token_ids) + 1:
        raise ValueError(f"the token table must have {len(token_ids) + 1} rows, got {len(table)}")
    tensors = {k: v.detach().cpu().half() if v.is_floating_point() else v.cpu() for k, v in state_dict.items()}
    tensors["token_embedding.weight"] = table[:-1].detach().cpu().half()
    tensors["token_embedding.unknown"] = table[-1].detach().cpu().half()
    tensors["token_ids"] = torch.tensor(list(token_ids), dtype=torch.int32)
    tensors.pop("attn_mask", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, metadata=metadata)
    temporary.replace(path)


def load_exported(path: Path, model: str = MODEL) -> nn.Module:
    """Returns open_clip's CLIP with the weights of an exported file, in eval mode."""
    open_clip.add_model_config(Path(__file__).parents[2] / "afclip_lightning" / "backbones" / "models")
    clip = open_clip.create_model(model, pretrained=None, pretrained_image=False, pretrained_text=False)
    clip.load_state_dict(expand_vocabulary(load_file(path), VOCABULARY_SIZE))
    evaluated: nn.Module = clip.eval()
    return evaluated


def export_checkpoint(checkpoint: Path, path: Path) -> None:
    """Exports the averaged weights of a training checkpoint."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    prefix = "average.module."
    state = {k.removeprefix(prefix): v for k, v in saved["state_dict"].items() if k.startswith(prefix)}
    made = {**saved["settings"], "step": saved["global_step"], "generator_version": generator.VERSION}
    metadata = {key: json.dumps(value) for key, value in made.items() if key not in ("output", "cache")}
    export(state, caption_token_ids(), path, {**metadata, "model": MODEL, "made_by": "experiments.tiny_clip.train"})


def draw_curves(logs: Sequence[Path], picture: Path) -> None:
    """Draws every column of Lightning's CSV logs, one per start of a run, over the steps: a panel per column."""
    rows = []
    for log in filter(Path.is_file, logs):  # a short run may not have logged
        with log.open(encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
    names = sorted({name for row in rows for name in row if re.match(r"(train|held_out)/", name)})
    panels = []
    for name in names:
        points = np.array([(float(r["step"]), float(r[name])) for r in rows if r.get(name)])
        panel = np.full((160, 320, 3), 255, np.uint8)
        if len(points):
            low, high = points.min(0), points.max(0)
            scaled = (points - low) / np.maximum(high - low, 1e-9)
            line = np.stack([8 + scaled[:, 0] * 304, 150 - scaled[:, 1] * 115], 1).astype(np.int32)
            cv2.polylines(panel, [line], False, (160, 80, 20), 1, cv2.LINE_AA)
            words = f"{name}: {points[-1, 1]:.3f} ({low[1]:.3f} to {high[1]:.3f})"
            cv2.putText(panel, words, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA)
        panels.append(panel)
    if panels:
        panels += [np.full_like(panels[0], 255)] * (-len(panels) % 3)
        rows_of_panels = [np.concatenate(panels[i : i + 3], 1) for i in range(0, len(panels), 3)]
        cv2.imwrite(str(picture), np.concatenate(rows_of_panels))


class _KeepsSettings(L.Callback):
    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["settings"] = asdict(self.settings)


def train(settings: Settings, ckpt_path: str | None = None) -> Path:
    """Draws the data, trains, draws the curves and returns the path of the exported weights."""
    output, cache = Path(settings.output), Path(settings.cache)
    size = settings.image_size
    train_pairs = draw_pairs(cache / "train", settings.seed, TRAINED, settings.scenes, size, settings.workers)
    held_out = draw_pairs(
        cache / "held_out", settings.seed + 1, HELD_OUT, settings.held_out_scenes, size, settings.workers
    )
    L.seed_everything(settings.seed)
    module = Pretraining(settings, train_pairs, held_out)
    starts = len(list(output.glob("log-*"))) if ckpt_path else 0  # Lightning would overwrite a log of the same name
    logger = CSVLogger(output, name="", version=f"log-{starts}", flush_logs_every_n_steps=20)
    trainer = L.Trainer(
        max_steps=settings.steps,
        precision=settings.precision,  # type: ignore[arg-type]
        accelerator="auto",
        devices=1,
        logger=logger,
        log_every_n_steps=20,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=settings.validate_every,
        callbacks=[
            ModelCheckpoint(output, filename="last", enable_version_counter=False, every_n_epochs=1),
            _KeepsSettings(settings),
        ],
        enable_model_summary=False,
    )
    trainer.fit(module, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    logger.save()
    trainer.save_checkpoint(output / "last.ckpt")
    draw_curves([output / f"log-{i}" / "metrics.csv" for i in range(starts + 1)], output / "curves.png")
    export_checkpoint(output / "last.ckpt", output / "tiny_clip.safetensors")
    return output / "tiny_clip.safetensors"


def main() -> None:
    """Reads the command line and trains or exports."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Settings, as_group=False)
    parser.add_argument("--ckpt_path", type=str, default=None, help="checkpoint to resume from")
    parser.add_argument("--export", type=str, default=None, help="checkpoint to export, instead of training")
    found = parser.parse_args().as_dict()
    found.pop("config")
    ckpt_path, checkpoint = found.pop("ckpt_path"), found.pop("export")
    settings = Settings(**found)
    if checkpoint:
        path = Path(settings.output) / "tiny_clip.safetensors"
        export_checkpoint(Path(checkpoint), path)
    else:
        path = train(settings, ckpt_path)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
