"""The engine that runs a model with torch."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.types import UNKNOWN, Batch, Sample
from afclip_runtime.errors import UserError
from afclip_runtime.views.decoding import NAMELESS
from afclip_runtime.views.frame import Frame

DATASET = "inspection"


class TorchEngine:
    """A method on a device; see `afclip_runtime.engines.base.Engine`.

    Args:
        method: The method. It is moved to the device and set to eval mode.
        device: Device of the method.
        category: Name of the product in prompts.

    Attributes:
        anomaly_method: The method.
        few_shot: Digest of the few-shot images; `None` without few-shot images.
    """

    name = "torch"

    def __init__(self, method: AnomalyMethod, device: torch.device, category: str) -> None:
        method.to(device)
        with torch.inference_mode():
            method.on_evaluation_start()
        self.anomaly_method = method
        self.device = device
        self.category = category
        self.few_shot: str | None = None
        self.references: Tensor | None = None

    @property
    def frame(self) -> Frame:
        """The input of the backbone."""
        return self.anomaly_method.preprocess.frame

    @property
    def method(self) -> str:
        """Name of the method."""
        return type(self.anomaly_method).__name__

    @property
    def backbone(self) -> str:
        """The backbone in words."""
        return str(self.anomaly_method.backbone.description)

    @property
    def settings(self) -> dict[str, Any]:
        """Few-shot images and features. Weights appear as their hash, independent of their location."""
        features = self.anomaly_method.spec.to_dict()
        return {
            "shots": self.few_shot,
            "features": {name: value for name, value in features.items() if name != "weights"},
        }

    def with_references(self, images: Sequence[np.ndarray], known_by: str) -> "TorchEngine":
        """Returns an engine that compares each image with reference images.

        Args:
            images: Reference images `[h, w, 3]`, uint8, each of the frame's shape.
            known_by: Digest of the reference images.
        """
        other = copy.copy(self)
        other.references = self.anomaly_method.preprocess.to_tensors(images).to(self.device)
        other.few_shot = known_by
        return other

    def fill(self, pictures: Iterable[Sequence[np.ndarray]], size: int, known_by: str) -> None:
        """Fills the memory from the views of few-shot images.

        Args:
            pictures: Views of each image, `[h, w, 3]`, uint8.
            size: Views per batch.
            known_by: Digest of the images.
        """
        memory, preprocess = self.anomaly_method.memory, self.anomaly_method.preprocess
        assert memory is not None  # a method that takes few-shot images has one
        images = (
            (preprocess.to_tensors(views[start : start + size]) for start in range(0, len(views), size))
            for views in pictures
        )
        memory.clear()
        with torch.inference_mode():
            memory.fit_parts((DATASET, self.category), images, self.anomaly_method.fit_memory)
        self.few_shot = known_by

    def check_ready(self) -> None:
        """Raises if the method needs few-shot images and has none.

        Raises:
            UserError: There are no few-shot images.
        """
        method, memory = self.anomaly_method, self.anomaly_method.memory
        has_none = self.few_shot is None and not (memory and memory.is_kept)
        if has_none and (method.needs_references or method.k_shot > 0):
            raise UserError(
                f"{self.method} compares an image with few-shot images, and has none: give some (--few_shot_dir DIR; "
                "in Python, `fit_few_shot`)."
            )

    def batch_of(self, views: Sequence[np.ndarray]) -> Batch:
        """Returns unlabelled views `[h, w, 3]`, uint8, as a batch on the device."""
        count, name, preprocess = len(views), self.category, self.anomaly_method.preprocess
        sample = Sample(DATASET, name, "test", NAMELESS, UNKNOWN, mask_known=False, class_name=name)
        return Batch(
            image=preprocess.to_tensors(views),
            mask=torch.zeros(count, *preprocess.shape, dtype=torch.uint8),
            label=torch.full((count,), UNKNOWN),
            mask_known=torch.zeros(count, dtype=torch.bool),
            samples=[sample] * count,
        ).to(self.device)

    @torch.inference_mode()
    def score(self, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores a batch of views; see `Engine.score`."""
        batch, count = self.batch_of(list(views)), len(views)
        if self.references is not None:
            batch.reference = self.references
            batch.reference_rows = (count + torch.arange(len(self.references))).expand(count, -1).to(self.device)
        method = self.anomaly_method
        prediction = method.score(method.extract(batch), batch)
        return prediction.pred_score.cpu().numpy(), prediction.anomaly_map.cpu().numpy()
