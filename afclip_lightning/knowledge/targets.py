"""Targets for the prompts of each training image: the mean embedding of its sentences in a knowledge base."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.data.dataset import pixels_of
from afclip_lightning.knowledge.base import image_sentence, load_image_sentences, load_knowledge
from afclip_lightning.knowledge.describe import defect_name, describe_anomaly
from afclip_lightning.types import Batch


class Knowledge:
    """The sentences of a knowledge base on training categories and on single training images.

    Args:
        source: Name of a base, or its file.

    Attributes:
        sentences: Sentences read so far, by category.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.sentences: dict[str, list[str]] = {}
        self.of_images: dict[str, str] = {}
        self.sums: dict[str, Tensor] = {}  # [D], over a category's sentences
        self.own: dict[Path, Tensor | None] = {}  # [D], embedding of the sentence on an image, if there is one

    def read(self, categories: Sequence[str]) -> None:
        """Reads the sentences of these categories, unless they were read before.

        Raises:
            UserError: The base does not exist, or lacks one of the categories. The message names the file.
        """
        if new := [category for category in dict.fromkeys(categories) if category not in self.sentences]:
            self.sentences |= load_knowledge(self.source, new)
            self.of_images = load_image_sentences(self.source)

    def reset(self) -> None:
        """Drops the embeddings: the backbone may move to another device."""
        self.sums.clear()
        self.own.clear()

    @torch.no_grad()
    def means(self, backbone: ClipBackbone, batch: Batch) -> Tensor:
        """Returns the mean embedding of each image's sentences, `[B, D]`: those of its category and its own.

        Args:
            backbone: Encodes the sentences. Those of a category are encoded once.
            batch: Training images.

        Reference: KAnoCLIP, Eq. (3).
        """
        categories = [sample.category for sample in batch.samples]
        self.read(categories)
        for category in set(categories) - self.sums.keys():
            self.sums[category] = backbone.encode_text(self.sentences[category]).sum(dim=0)
        anomalous = [row for row, sample in enumerate(batch.samples) if sample.label == 1]
        self._embed_images(backbone, batch, [r for r in anomalous if batch.samples[r].image_path not in self.own])
        means = []
        for sample in batch.samples:
            total, count = self.sums[sample.category], len(self.sentences[sample.category])
            own = self.own[sample.image_path] if sample.label == 1 else None
            means.append(total / count if own is None else (total + own) / (count + 1))
        return torch.stack(means)

    def _embed_images(self, backbone: ClipBackbone, batch: Batch, rows: Sequence[int]) -> None:
        """Embeds the sentences on these images, which stay the same over the epochs."""
        said = [self.describe(batch, row, backbone.preprocess) for row in rows]
        texts = [text for text in said if text is not None]
        embedded = iter(backbone.encode_text(texts) if texts else ())
        for row, text in zip(rows, said, strict=True):
            self.own[batch.samples[row].image_path] = None if text is None else next(embedded)

    def describe(self, batch: Batch, row: int, preprocess: Preprocess) -> str | None:
        """Returns a sentence on an anomalous image, from the base or from its mask; `None` if the mask is empty."""
        sample = batch.samples[row]
        if (known := image_sentence(self.of_images, sample.image_path)) is not None:
            return known
        pixels, mask = pixels_of(batch, row, preprocess), batch.mask[row].cpu().numpy()
        return describe_anomaly(pixels, mask, sample.class_name, defect_name(sample.image_path))
