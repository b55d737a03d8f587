"""One's own images through a trained head or a training-free method: `load`, then `predict`."""

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
    """Returns a model that images can be given to.

    Args:
        path: A checkpoint or a head file, the folder of one, the name of a ready model, or a config or the name of a
            method that trains nothing.
        arguments: Constructor arguments in place of the file's; a dot leads into a group (`backbone.weights`).
        device: `cpu`, `cuda`, `cuda:1` …, or `auto`: a GPU if there is one.
        tiling: How images are seen; squashed into a square by default.
        category: What prompts call the product, for methods whose prompts name it.
        few_shot: Few-shot images, all normal; see `Predictor.fit_few_shot`.
        threshold: Scores above it are anomalous, in place of the calibration's.
        pixel_threshold: Values of the map above it are anomalous, in place of the calibration's.
        calibration: A product's name, or a file that `calibrate` wrote; `auto` takes that of the category, or the only
            one beside the checkpoint if there is one; `None` takes none. Those of a ready model lie in the working
            directory. Without one, the thresholds that come with the head are taken, if any do.
        white: What is white in images of more than 8 bits: `bits`, the largest value that the file's depth holds, or a
            number: up to 16 of bits (12 for a 12-bit camera), above of the value itself. That of the calibration by
            default, and `bits` without one.
        roi: Which part of the images is inspected, or a file of it, see `read_roi`. That of the calibration by default,
            and the whole image without one.
        batch_size: Views per batch, a view being an image or a tile of it.
        backbones: Those that are there already; what is built is added.

    Raises:
        UserError: A file cannot be read, an argument is wrong, or the calibration is of another checkpoint or of other
            settings.
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
        raise ValueError("white is auto, which is looked up in a set of images: give bits or a number")
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
    """A model for one's own images that torch runs. `load` makes one.

    Args:
        build: Makes the method, with these constructor arguments in place of its own.
        tiling: How images are seen.
        category: What prompts call the product.
        device: See `load`.
        batch_size: Views per batch.

    Attributes:
        card: What the head says of itself, or `None`.
        arguments: Constructor arguments that were given in place of the file's.

    Raises:
        UserError: The method compares all images of a test set, or the device is not there.
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
        """Digest of the few-shot images; `None` without."""
        return self.engine.few_shot

    def fit_few_shot(self, images: Sequence[Source], progress: Progress | None = None) -> None:
        """Fits the memory bank of a few-shot method on few-shot images, in place of those before.

        They are seen as all images are, tiles included. Methods that compare an image with reference images (Dual-Image
        CLIP, MuSc-2) take them for these, each as a whole. Thresholds of a calibration no longer hold, and are dropped.

        Args:
            images: See `predict`.
            progress: Is given what the loop over the images goes over and its length, and shows how far it is.

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
        """Whether the method judges an image beside few-shot images: see `fit_few_shot`."""
        return _takes_few_shot(type(self.method))

    @property
    def is_toy(self) -> bool:  # type: ignore[override]
        """Whether the backbone is the tiny one of this package, which has seen drawn pictures only."""
        return self.method.spec.weights == EMBEDDED

    @property
    def settings(self) -> dict[str, Any]:
        """What scores depend on beside the checkpoint, as plain values."""
        return {**super().settings, "arguments": self.arguments}

    @property
    def defaults(self) -> DefaultThresholds | None:
        """The head's own thresholds where they are in use; see the base class.

        They do not hold with few-shot images, nor of a head with other arguments than its own.
        """
        as_it_was = self.few_shot is None and not self.arguments.keys() - set(WHERE)
        return super().defaults if as_it_was else None

    def _engine(self, method: AnomalyMethod, category: str) -> TorchEngine:
        if method.needs_test_set:
            raise _needs_test_set(type(method))
        return TorchEngine(method, self.device, category)


def _takes_few_shot(method: type[AnomalyMethod]) -> bool:
    """Returns whether a method judges an image beside few-shot images, and needs no other test image for it."""
    return method.needs_references or method.judges_with_few_shot()


def _takes_none(method: type[AnomalyMethod]) -> UserError:
    """Returns why a method is not given few-shot images."""
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
