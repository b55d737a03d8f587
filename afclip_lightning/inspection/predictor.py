"""Inspects your own images with a trained head or a training-free method: `load`, then `predict`."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afclip_lightning.backbones.sources import EMBEDDED
from afclip_lightning.engine import factory
from afclip_lightning.heads.card import Card
from afclip_lightning.inspection.device import device_of
from afclip_lightning.inspection.named_model import (
    WHERE,
    build_model,
    calibration_path,
    card_of,
    find_model,
    known_by,
)
from afclip_lightning.inspection.torch_engine import DATASET, TorchEngine
from afclip_lightning.methods.base import AnomalyMethod
from afclip_runtime.errors import UserError
from afclip_runtime.images.white import White, white_value
from afclip_runtime.inspection.calibration import Calibration, find
from afclip_runtime.inspection.inspector import Inspector
from afclip_runtime.inspection.verdict import Inspection, Region
from afclip_runtime.thresholds import DefaultThresholds
from afclip_runtime.types import Tiling
from afclip_runtime.views.decoding import Source, check_sources, read_pixels
from afclip_runtime.views.roi import Roi, read_roi

__all__ = ["DATASET", "Inspection", "Predictor", "Region", "load"]

Build = Callable[[Mapping[str, Any]], AnomalyMethod]
Progress = Callable[[Iterable[Any], int], Iterable[Any]]


def load(
    path: str | Path,
    *,
    arguments: Mapping[str, Any] | None = None,
    device: str = "auto",
    tiling: Tiling | None = None,
    category: str = "object",
    few_shot: Sequence[Source] = (),
    threshold: float | None = None,
    pixel_threshold: float | None = None,
    calibration: str | Path | None = "auto",
    white: White | None = None,
    roi: Roi | str | Path | None = None,
    batch_size: int = 8,
    backbones: factory.Backbones | None = None,
) -> "Predictor":
    """Returns a model for the inspection of images.

    Args:
        path: A checkpoint or a head file, or its folder, the name of a ready model, or a config or the name of a
            method that trains nothing.
        arguments: Constructor arguments that replace the file's. A dot leads into a group (`backbone.weights`).
        device: `cpu`, `cuda`, `cuda:1` …, or `auto`: a GPU if there is one.
        tiling: How images are cut into views. By default they are squashed into a square.
        category: Name of the product in prompts, for methods whose prompts name it.
        few_shot: Few-shot images, all normal. See `Predictor.fit_few_shot`.
        threshold: Scores above it are anomalous. It replaces that of the calibration.
        pixel_threshold: Values of the map above it are anomalous. It replaces that of the calibration.
        calibration: Name of a product, or a file that `calibrate` wrote. `auto` takes the calibration of the category,
            or the only one beside the checkpoint, if any. `None` takes none. Those of a ready model lie in the working
            directory. Without a calibration, the thresholds that come with the head are used, if any.
        white: White value of images of more than 8 bits: `bits`, the largest value of the file's depth; or a number. Up
            to 16 it counts bits (12 for a 12-bit camera), above 16 it is the value itself. By default it is that of the
            calibration, or `bits` without one.
        roi: Part of the images that is inspected, or its file; see `read_roi`. By default it is that of the
            calibration, or the whole image without one.
        batch_size: Views per batch. A view is an image or a tile.
        backbones: Backbones that are loaded already. New ones are added.

    Raises:
        UserError: A file cannot be read, an argument is wrong, or the calibration belongs to another checkpoint or to
            other settings.
    """
    known: factory.Backbones = {} if backbones is None else backbones
    given, named = dict(arguments or {}), find_model(path)
    model = Predictor(
        lambda more: build_model(named, {**given, **more}, known), tiling or Tiling(), category, device, batch_size
    )
    model.checkpoint, model.arguments, model.card = known_by(named, given), given, card_of(named)
    if model.card:
        model.title, model.head_thresholds = model.card.title, model.card.thresholds
    for name, value in (("threshold", threshold), ("pixel_threshold", pixel_threshold)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    if white == "auto":
        raise ValueError("white must be bits or a number, got auto (a value that needs a set of images)")
    place, beside = None if calibration is None else Path(calibration), calibration_path(path)
    if isinstance(calibration, str) and (beside or calibration == "auto"):
        place = find(beside, calibration, category) if beside else None
    found = Calibration.read(place) if place else None
    if white is not None:
        model.white = white_value(white, ())
    elif found:
        model.white = found.settings.get("white")
    if roi is not None:
        model.roi = roi if isinstance(roi, Roi) else read_roi(Path(roi))
    elif found:
        model.roi = found.roi
    if few_shot:
        model.fit_few_shot(few_shot)
    if found and place:
        found.check(place, model.checkpoint, model.settings)
        model.use(found, place)
    model.threshold, model.pixel_threshold = threshold, pixel_threshold
    return model


class Predictor(Inspector):
    """A model that inspects your own images with torch. `load` makes one.

    Args:
        build: Makes the method, with constructor arguments that replace its own.
        tiling: How images are cut into views.
        category: Name of the product in prompts.
        device: See `load`.
        batch_size: Views per batch.

    Attributes:
        card: Card of the head, or `None`.
        arguments: Constructor arguments that replace the file's.

    Raises:
        UserError: The method compares all images of a test set, or the device is not available.
    """

    engine: TorchEngine

    def __init__(self, build: Build, tiling: Tiling, category: str, device: str, batch_size: int) -> None:
        self.build = build
        self.card: Card | None = None
        self.arguments: dict[str, Any] = {}
        self.device = device_of(device)
        super().__init__(self._engine(build({}), category), tiling, category, batch_size)

    @property
    def method(self) -> AnomalyMethod:
        """The method, in eval mode on its device."""
        return self.engine.anomaly_method

    @property
    def few_shot(self) -> str | None:
        """Digest of the few-shot images; `None` without few-shot images."""
        return self.engine.few_shot

    def fit_few_shot(self, images: Sequence[Source], progress: Progress | None = None) -> None:
        """Fits the memory bank of a few-shot method on few-shot images, in place of earlier ones.

        They are cut into views as all images are, tiles included. Methods that compare an image with reference images
        (Dual-Image CLIP, MuSc-2) use them as references, uncut. Thresholds of a calibration no longer hold, and are
        dropped.

        Args:
            images: See `predict`.
            progress: Wraps the loop over the images, given its items and their number, and shows its progress.

        Raises:
            UserError: The method has no memory, or an image cannot be read.
        """
        check_sources(images)
        if not len(images):
            raise ValueError("there is no few-shot image")
        if not self.takes_few_shot:
            raise _takes_none(type(self.method))
        pictures = []
        digest = hashlib.sha256()
        for image in images:
            pixels = read_pixels(image, self.white)
            digest.update(np.ascontiguousarray(pixels).tobytes())
            pictures.append(self.views(pixels))
        known = digest.hexdigest()[:16]
        if self.method.needs_references:
            self.engine = self.engine.with_references([views[0] for views in pictures], known)
        else:
            engine = self._engine(self.build({"k_shot": len(images)}), self.category)
            engine.fill(progress(pictures, len(pictures)) if progress else pictures, self.batch_size, known)
            self.engine = engine
        self.use(None)

    @property
    def takes_few_shot(self) -> bool:  # type: ignore[override]
        """Whether the method compares an image with few-shot images. See `fit_few_shot`."""
        return _takes_few_shot(type(self.method))

    @property
    def is_toy(self) -> bool:  # type: ignore[override]
        """Whether the backbone is the tiny one of this package, trained on synthetic pictures only."""
        return self.method.spec.weights == EMBEDDED

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that scores depend on, apart from the checkpoint, as plain values."""
        return {**super().settings, "arguments": self.arguments}

    @property
    def defaults(self) -> DefaultThresholds | None:
        """The head's own thresholds if they are in use; see the base class.

        They do not hold with few-shot images, nor for a head with other arguments than its own.
        """
        as_it_was = self.few_shot is None and not self.arguments.keys() - set(WHERE)
        return super().defaults if as_it_was else None

    def _engine(self, method: AnomalyMethod, category: str) -> TorchEngine:
        if method.needs_test_set:
            raise _needs_test_set(type(method))
        return TorchEngine(method, self.device, category)


def _takes_few_shot(method: type[AnomalyMethod]) -> bool:
    """Returns whether a method compares an image with few-shot images, and needs no other test image."""
    return method.needs_references or method.judges_with_few_shot()


def _takes_none(method: type[AnomalyMethod]) -> UserError:
    """Returns the error for a method that takes no few-shot images."""
    if method.takes_few_shot:
        return _needs_test_set(method)
    names = [name for name, cls in factory.methods().items() if _takes_few_shot(cls)]
    return UserError(f"{method.__name__} takes no few-shot images. {', '.join(names[:-1])} and {names[-1]} take them.")


def _needs_test_set(method: type[AnomalyMethod]) -> UserError:
    when = "" if method.uses_test_set == "always" else f" {method.uses_test_set}"
    return UserError(
        f"{method.__name__}{when} scores an image in relation to all test images of its category, so it has no verdict "
        "on one alone. Use `python -m afclip_lightning predict --config …` with the data Folder."
    )
