"""One's own images through a trained head or a training-free method: `load`, then `predict`."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from afclip_lightning.backbones.sources import EMBEDDED
from afclip_lightning.data.dataloader import keep_memory, killed_loader
from afclip_lightning.data.tiles import Layout
from afclip_lightning.data.white import White, white_value
from afclip_lightning.engine import factory
from afclip_lightning.errors import DatasetError, UserError
from afclip_lightning.heads.card import Card, DefaultThreshold, DefaultThresholds
from afclip_lightning.inspection.calibration import Calibration, Threshold, find
from afclip_lightning.inspection.device import device_of
from afclip_lightning.inspection.named_model import (
    WHERE,
    build_model,
    calibration_path,
    card_of,
    find_model,
    known_by,
)
from afclip_lightning.inspection.verdict import Inspection, Region
from afclip_lightning.inspection.views import (
    Begun,
    Failure,
    Source,
    View,
    Views,
    check_sources,
    collate,
    name_of,
    read_pixels,
)
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.results import ThresholdFrom
from afclip_lightning.types import UNKNOWN, Batch, Sample, Tiling

__all__ = ["Inspection", "Predictor", "Region", "load"]

Build = Callable[[Mapping[str, Any]], AnomalyMethod]
Progress = Callable[[Iterable[Any], int], Iterable[Any]]
DATASET = "inspection"


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
    if few_shot:
        model.fit_few_shot(few_shot)
    if found and place:
        found.check(place, model.checkpoint, model.settings)
        model.calibration, model.calibrated_by = found, place
    model.threshold, model.pixel_threshold = threshold, pixel_threshold
    return model


class Predictor:
    """A model for one's own images. `load` makes one.

    What it says of an image depends on neither the batch that it is in nor on other images.

    Args:
        build: Makes the method, with these constructor arguments in place of its own.
        tiling: How images are seen.
        category: What prompts call the product.
        device: See `load`.
        batch_size: Views per batch.

    Attributes:
        method: The method, in eval mode on its device.
        calibration: Where thresholds come from, or `None`.
        calibrated_by: The file that it was read from, if any.
        card: What the head says of itself, or `None`; its thresholds are used as `defaults` says.
        threshold: Of image scores, in place of the calibration's or the head's own.
        pixel_threshold: Of the values of maps, likewise.
        checkpoint: What the checkpoint is known by in a calibration.
        arguments: Constructor arguments that were given in place of the file's.
        white: The value that becomes 255 in images of more than 8 bits; `None` for the largest that their bits hold.
        remarks: What was worth a word of the images so far, and of how many.

    Raises:
        UserError: The method compares all images of a test set, or the device is not there.
    """

    def __init__(self, build: Build, tiling: Tiling, category: str, device: str, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.build = build
        self.tiling = tiling
        self.category = category
        self.batch_size = batch_size
        self.device = device_of(device)
        self.calibration: Calibration | None = None
        self.calibrated_by: Path | None = None
        self.card: Card | None = None
        self.threshold: float | None = None
        self.pixel_threshold: float | None = None
        self.checkpoint = ""
        self.arguments: dict[str, Any] = {}
        self.white: int | None = None
        self.remarks: Counter[str] = Counter()
        self.few_shot: str | None = None  # digest of the few-shot images
        self.references: Tensor | None = None
        self.method = self._prepared(build({}))

    def predict(self, image: Source) -> Inspection:
        """Returns what the model says of an image.

        Args:
            image: A path, the bytes of a file, a Pillow image, or an array `[H, W, 3]`, uint8, RGB.

        Raises:
            UserError: The image cannot be read, its score is not finite, or the method needs few-shot images first.
            TypeError: It is something else.
        """
        if isinstance(image, (list, tuple)) or (isinstance(image, np.ndarray) and image.ndim == 4):
            raise TypeError("predict takes one image, and got several: predict_many takes them")
        return self.predict_many([image])[0]

    def predict_many(self, images: Sequence[Source]) -> list[Inspection]:
        """Returns what the model says of images, in their order; the same as of each by itself, up to rounding.

        Args:
            images: See `predict`.

        Raises:
            UserError: An image cannot be read, a score is not finite, or the method needs few-shot images first.
            TypeError: One is no image.
        """
        check_sources(images)
        found: dict[int, Inspection] = {}
        for index, outcome in self.stream(images):
            if isinstance(outcome, UserError):
                raise outcome
            found[index] = outcome
        return [found[index] for index in range(len(images))]

    def stream(
        self, images: Sequence[Source], num_workers: int = 0, keep_images: bool = True
    ) -> Iterator[tuple[int, Inspection | UserError]]:
        """Yields the position of each image with what the model says of it, or with why it cannot be read.

        Images of one view come in their order; of several, as their last view is scored.

        Memory holds the images that the loader processes decode, a batch of views, and one map at the size of each
        image that is not complete.

        Args:
            images: See `predict`.
            num_workers: Processes that decode; 0 decodes in this one.
            keep_images: Whether the results hold the images, for `overlay`.

        Raises:
            UserError: The method needs few-shot images first.
        """
        self._check_ready()
        preprocess = self.method.preprocess
        views = Views(images, self.tiling, preprocess, self.batch_size, keep_images, self.white)
        loader = DataLoader(
            views, self.batch_size, num_workers=num_workers, collate_fn=collate, worker_init_fn=keep_memory
        )
        begun: dict[int, Begun] = {}
        for items, pixels in _batches(loader):
            seen = [item for item in items if isinstance(item, View)]
            names = [name_of(images[item.index]) for item in seen]
            scored = iter(zip(*self._score(list(pixels.numpy()), names), strict=True) if seen else ())
            for item in items:
                if isinstance(item, Failure):
                    yield item.index, DatasetError(item.reason)
                    continue
                score, anomaly_map = next(scored)
                if item.view == 0:
                    begun[item.index] = Begun(item, self.tiling, preprocess)
                    self.remarks.update(item.remarks)
                current = begun[item.index]
                if current.add(item.view, float(score), anomaly_map):
                    del begun[item.index]
                    yield item.index, self._judge(current, name_of(images[item.index]))

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
        if self.method.needs_references:
            self.references = self.method.preprocess.to_tensors([views[0] for views in pictures]).to(self.device)
        else:
            self.method = self._prepared(self.build({"k_shot": len(images)}))
            self._fill(progress(pictures, len(pictures)) if progress else pictures)
        self.few_shot = digest.hexdigest()[:16]
        self.calibration = None

    def views(self, image: Source) -> list[np.ndarray]:
        """Returns the views of an image as the backbone sees them, `[h, w, 3]`, uint8 each; the first is the whole.

        Raises:
            UserError: The image cannot be read.
        """
        pixels = read_pixels(image, self.white)
        height, width, _ = pixels.shape
        layout = Layout(height, width, self.tiling, self.method.preprocess)
        return [layout.cut(pixels, view) for view in range(len(layout))]

    @property
    def takes_few_shot(self) -> bool:
        """Returns whether the method judges an image beside few-shot images: see `fit_few_shot`."""
        return _takes_few_shot(type(self.method))

    @property
    def is_toy(self) -> bool:
        """Returns whether the backbone is the tiny one of this package, which has seen drawn pictures only."""
        return self.method.spec.weights == EMBEDDED

    @property
    def settings(self) -> dict[str, Any]:
        """Returns what scores depend on beside the checkpoint, as plain values."""
        features = self.method.spec.to_dict()
        return {
            "tiling": self.tiling.to_dict(),
            "category": self.category,
            "shots": self.few_shot,
            **({} if self.white is None else {"white": self.white}),
            "features": {name: value for name, value in features.items() if name != "weights"},  # their hash is there
            "arguments": self.arguments,
        }

    def _prepared(self, method: AnomalyMethod) -> AnomalyMethod:
        if method.needs_test_set:
            raise _needs_test_set(type(method))
        method.to(self.device)
        with torch.inference_mode():
            method.on_evaluation_start()
        return method

    def _fill(self, pictures: Iterable[Sequence[np.ndarray]]) -> None:
        """Fills the memory from the views of images, a batch at a time."""
        memory, preprocess = self.method.memory, self.method.preprocess
        assert memory is not None  # a method that takes few-shot images has one
        size = self.batch_size
        images = (
            (preprocess.to_tensors(views[start : start + size]) for start in range(0, len(views), size))
            for views in pictures
        )
        memory.clear()
        with torch.inference_mode():
            memory.fit_parts((DATASET, self.category), images, self.method.fit_memory)

    def _check_ready(self) -> None:
        memory = self.method.memory
        has_none = self.few_shot is None and not (memory and memory.is_kept)
        if has_none and (self.method.needs_references or self.method.k_shot > 0):
            raise UserError(
                f"{type(self.method).__name__} compares an image with few-shot images, and has none: give some "
                "(--few_shot_dir DIR; in Python, `fit_few_shot`)."
            )

    def batch_of(self, views: Sequence[np.ndarray], names: Sequence[Path]) -> Batch:
        """Returns views `[H, W, 3]`, uint8, of nothing known, as a batch on the device."""
        count, name, preprocess = len(views), self.category, self.method.preprocess
        return Batch(
            image=preprocess.to_tensors(views),
            mask=torch.zeros(count, *preprocess.shape, dtype=torch.uint8),
            label=torch.full((count,), UNKNOWN),
            mask_known=torch.zeros(count, dtype=torch.bool),
            samples=[Sample(DATASET, name, "test", n, UNKNOWN, mask_known=False, class_name=name) for n in names],
        ).to(self.device)

    @torch.inference_mode()
    def _score(self, views: Sequence[np.ndarray], names: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
        """Returns scores `[B]` and maps `[B, H, W]` of views `[H, W, 3]`, float32."""
        batch, count = self.batch_of(views, names), len(views)
        if self.references is not None:
            batch.reference = self.references
            batch.reference_rows = (count + torch.arange(len(self.references))).expand(count, -1).to(self.device)
        prediction = self.method.score(self.method.extract(batch), batch)
        return prediction.pred_score.cpu().numpy(), prediction.anomaly_map.cpu().numpy()

    @property
    def defaults(self) -> DefaultThresholds | None:
        """Returns the head's own thresholds where they are in use; they know nothing of the product at hand.

        They hold where there is no calibration and images are seen as they were chosen for: whole, without few-shot
        images, by the head as it is.
        """
        if self.card is None or self.calibration is not None or self.few_shot is not None:
            return None
        return self.card.thresholds if self.tiling == Tiling() and not self.arguments.keys() - set(WHERE) else None

    @property
    def in_use(self) -> tuple[Threshold | DefaultThreshold | None, Threshold | DefaultThreshold | None]:
        """Returns the threshold of image scores and that of maps, with their scales; those by hand aside."""
        chosen = self.calibration or self.defaults
        return (chosen.image, chosen.pixel) if chosen else (None, None)

    @property
    def thresholds(self) -> tuple[float | None, float | None]:
        """Returns the threshold of image scores and that of the values of maps; `None` where there is none."""
        image, pixel = self.in_use
        return _value(image, self.threshold), _value(pixel, self.pixel_threshold)

    @property
    def thresholds_from(self) -> tuple[ThresholdFrom | None, ThresholdFrom | None]:
        """Returns where the two thresholds come from; `None` where there is none."""
        by_hand = self.threshold, self.pixel_threshold
        source: ThresholdFrom = "default" if self.calibration is None else "calibration"
        image, pixel = (
            "hand" if value is not None else None if chosen is None else source
            for value, chosen in zip(by_hand, self.in_use, strict=True)
        )
        return image, pixel

    @property
    def scales(self) -> tuple[float | None, float | None]:
        """Returns the units of `probability`, of image scores and of the values of maps; `None` where there is none."""
        image, pixel = self.in_use
        return None if image is None else image.scale, None if pixel is None else pixel.scale

    def _judge(self, done: "Begun", name: Path) -> Inspection | UserError:
        if not done.finite:
            return UserError(
                f"{name}: {type(self.method).__name__} gives a score or a map that is not finite (NaN or infinity). "
                "Numbers of its head or of the backbone are damaged: take another checkpoint, or train again."
            )
        chosen, sources = (*self.thresholds, *self.scales), self.thresholds_from
        return Inspection(done.score, done.anomaly_map, *chosen, done.image, *sources)


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


def _value(chosen: Threshold | DefaultThreshold | None, given: float | None) -> float | None:
    return given if given is not None or chosen is None else chosen.value


def _batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yields what a loader gives.

    Raises:
        UserError: One of its processes was killed.
    """
    try:
        yield from loader
    except RuntimeError as error:
        if message := killed_loader(error):
            raise UserError(message) from error
        raise
