"""The inspector: a model with thresholds that gives verdicts on images, with any engine."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from afclip_runtime.engines.base import Engine
from afclip_runtime.errors import DatasetError, UserError
from afclip_runtime.inspection.calibration import Calibration, Threshold
from afclip_runtime.inspection.feedback import Feedback, audit_file
from afclip_runtime.inspection.verdict import Inspection, only_inside
from afclip_runtime.thresholds import DefaultThreshold, DefaultThresholds, ThresholdFrom
from afclip_runtime.types import Tiling
from afclip_runtime.views.decoding import (
    Begun,
    Decoded,
    Decoder,
    Failure,
    Fetch,
    Source,
    View,
    check_sources,
    name_of,
    read_pixels,
)
from afclip_runtime.views.roi import Roi
from afclip_runtime.views.tiles import Layout


class Inspector:
    """A model with thresholds that inspects images.

    The result for an image does not depend on its batch or on other images.

    Args:
        engine: Engine that runs the model.
        tiling: Tiling of the images.
        category: Name of the product in prompts.
        batch_size: Views per batch.

    Attributes:
        calibrated_by: File of the calibration, if any.
        feedback: Feedback on the verdicts of the calibration; `None` without a calibration.
        title: Title of the head, or empty.
        head_thresholds: Default thresholds of the head, or `None`. See `defaults` for when they apply.
        threshold: Threshold of image scores that replaces that of the calibration or the head.
        pixel_threshold: Threshold of the values of maps that replaces that of the calibration or the head.
        checkpoint: Fingerprint of the checkpoint.
        white: Value that becomes 255 in images of more than 8 bits. `None` for the largest value of their bits.
        most_pixels: Maximum number of pixels of an image file. More are an error. `None` for `MAX_PIXELS`.
        roi: Region of interest. `None` for the whole image.
        remarks: Remarks on image files so far, with the number of images.

    Raises:
        ValueError: `batch_size` is below 1.
    """

    takes_few_shot = False
    is_toy = False

    def __init__(self, engine: Engine, tiling: Tiling, category: str, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.engine = engine
        self.tiling = tiling
        self.category = category
        self.batch_size = batch_size
        self.calibrated_by: Path | None = None
        self.feedback: Feedback | None = None
        self.title = ""
        self.head_thresholds: DefaultThresholds | None = None
        self.threshold: float | None = None
        self.pixel_threshold: float | None = None
        self.checkpoint = ""
        self.white: int | None = None
        self.most_pixels: int | None = None
        self.roi: Roi | None = None
        self.remarks: Counter[str] = Counter()

    def __repr__(self) -> str:
        """Returns one line: the head, the product and the source of the thresholds, with the file of a calibration."""
        from_calibration = f"of {self.calibrated_by or 'a calibration'} ({self.calibration})"
        sources = {"calibration": from_calibration, "default": "of the head", "hand": "set by hand", None: "none"}
        image, pixel = (sources[source] for source in self.thresholds_from)
        title = f"{self.title!r}, " if self.title else ""
        said = f"thresholds: {image}" if image == pixel else f"image threshold: {image}, pixel threshold: {pixel}"
        return f"{type(self).__name__}({title}category={self.category!r}, {said})"

    def use(self, calibration: Calibration | None, place: Path | None = None) -> None:
        """Sets the calibration, with the feedback beside its file.

        Args:
            calibration: The original calibration; `None` for none.
            place: File of the calibration, if any.

        Raises:
            UserError: The feedback cannot be read, or the threshold cannot be moved.
        """
        self.feedback = Feedback(calibration, audit_file(place) if place else None) if calibration else None
        self.calibrated_by = place if calibration else None

    @property
    def calibration(self) -> Calibration | None:
        """The calibration with its feedback, or `None`. `use` sets it."""
        return self.feedback.calibration if self.feedback else None

    def predict(self, image: Source) -> Inspection:
        """Inspects an image.

        Args:
            image: A path, the bytes of a file, a Pillow image, or an array `[H, W, 3]`, uint8, RGB.

        Raises:
            UserError: The image cannot be read, its score is not finite, or the method needs few-shot images first.
            TypeError: The argument is not an image.
        """
        if isinstance(image, (list, tuple)) or (isinstance(image, np.ndarray) and image.ndim == 4):
            raise TypeError("predict takes one image, and got several: predict_many takes them")
        return self.predict_many([image])[0]

    def predict_many(self, images: Sequence[Source]) -> list[Inspection]:
        """Inspects images. The results are in the same order and equal those of `predict`, up to rounding.

        Args:
            images: See `predict`.

        Raises:
            UserError: An image cannot be read, a score is not finite, or the method needs few-shot images first.
            TypeError: An element is not an image.
        """
        check_sources(images)
        found: dict[int, Inspection] = {}
        for index, outcome in self.stream(images):
            if isinstance(outcome, UserError):
                raise outcome
            found[index] = outcome
        return [found[index] for index in range(len(images))]

    def stream(
        self, images: "Iterable[Source | Fetch]", num_workers: int = 0, keep_images: bool = True
    ) -> Iterator[tuple[int, Inspection | UserError]]:
        """Yields the position of each image with its inspection, or with the error of an image that cannot be read.

        Images are in order. Memory holds the images that are decoded in advance (as many as in a batch if each has one
        view, plus one per thread), a batch of views, and one map at the size of each unfinished image.

        Args:
            images: See `predict`; or functions that return an image, called in the decoding threads. The iterable is
                consumed as needed.
            num_workers: Number of decoding threads. 0 decodes in the caller's thread.
            keep_images: Whether the results contain the images, for `overlay`.

        Raises:
            UserError: The method needs few-shot images first.
        """
        self.engine.check_ready()
        tiled = self.tiling != Tiling()
        ahead = 1 if tiled else self.batch_size
        decoder = Decoder(
            images,
            self.tiling,
            self.engine.frame,
            keep_images,
            self.white,
            ahead,
            num_workers,
            self.roi,
            self.most_pixels,
        )
        waiting: list[Begun | Failure] = []  # in the order of the images
        for batch in _batches(self._views(iter(decoder), waiting, keep_images), self.batch_size):
            scores, maps = self.engine.score(np.stack([view.pixels for _, view in batch]))
            for (begun, view), score, anomaly_map in zip(batch, scores, maps, strict=True):
                begun.add(view.view, float(score), anomaly_map)
            yield from self._complete(waiting)
        yield from self._complete(waiting)

    def _views(
        self,
        decoded: Iterator[tuple[Decoded | Failure, Iterator[View]]],
        waiting: list[Begun | Failure],
        keep_images: bool,
    ) -> Iterator[tuple[Begun, View]]:
        """Yields all views, and adds each image to the list of those that wait for scores."""
        for item, views in decoded:
            if isinstance(item, Failure):
                waiting.append(item)
                continue
            self.remarks.update(item.remarks)
            begun = Begun(item, self.tiling, keep_images)
            waiting.append(begun)
            for view in views:
                yield begun, view

    def _complete(self, waiting: list[Begun | Failure]) -> Iterator[tuple[int, Inspection | UserError]]:
        """Yields the results of the first waiting images, up to one whose views are not all scored."""
        while waiting and (isinstance(waiting[0], Failure) or not waiting[0].left):
            first = waiting.pop(0)
            if isinstance(first, Failure):
                yield first.index, DatasetError(first.reason)
            else:
                yield first.index, self._judge(first)

    def views(self, image: Source) -> list[np.ndarray]:
        """Returns the views of an image, the inputs of the backbone, each `[h, w, 3]`, uint8.

        The first is the whole image.

        Raises:
            UserError: The image cannot be read.
        """
        pixels = read_pixels(image, self.white)
        height, width, _ = pixels.shape
        layout = Layout(height, width, self.tiling, self.engine.frame, self.roi, name_of(image))
        return [layout.cut(pixels, view) for view in layout.views]

    def fit_few_shot(self, images: Sequence[Source]) -> None:
        """Rejects few-shot images. Models that use them override this.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{self.engine.method} takes no few-shot images here.")

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that scores depend on, apart from the checkpoint, as plain values."""
        return {
            "tiling": self.tiling.to_dict(),
            "category": self.category,
            **({} if self.white is None else {"white": self.white}),
            **({} if self.roi is None else {"roi": self.roi.fingerprint}),
            **self.engine.settings,
        }

    @property
    def defaults(self) -> DefaultThresholds | None:
        """The default thresholds of the head if they apply, else `None`. They do not depend on the product.

        They apply without a calibration, and only to whole images, for which they were chosen.
        """
        whole = self.tiling == Tiling() and self.roi is None
        return self.head_thresholds if self.calibration is None and whole else None

    @property
    def in_use(self) -> tuple[Threshold | DefaultThreshold | None, Threshold | DefaultThreshold | None]:
        """Returns the thresholds of image scores and of maps, with their scales, without thresholds set by hand."""
        chosen = self.calibration or self.defaults
        return (chosen.image, chosen.pixel) if chosen else (None, None)

    @property
    def thresholds(self) -> tuple[float | None, float | None]:
        """Returns the threshold of image scores and that of the values of maps; `None` for none."""
        image, pixel = self.in_use
        return _value(image, self.threshold), _value(pixel, self.pixel_threshold)

    @property
    def thresholds_before_feedback(self) -> tuple[float | None, float | None]:
        """The two thresholds without feedback."""
        image, pixel = self.thresholds
        return self.feedback.before.image.value if self.feedback and self.threshold is None else image, pixel

    @property
    def thresholds_from(self) -> tuple[ThresholdFrom | None, ThresholdFrom | None]:
        """Returns the sources of the two thresholds; `None` for none."""
        by_hand = self.threshold, self.pixel_threshold
        source: ThresholdFrom = "default" if self.calibration is None else "calibration"
        image, pixel = (
            "hand" if value is not None else None if chosen is None else source
            for value, chosen in zip(by_hand, self.in_use, strict=True)
        )
        return image, pixel

    @property
    def scales(self) -> tuple[float | None, float | None]:
        """Returns the units of `probability` of image scores and of the values of maps; `None` for none."""
        image, pixel = self.in_use
        return None if image is None else image.scale, None if pixel is None else pixel.scale

    def _judge(self, done: Begun) -> Inspection | UserError:
        if not done.finite:
            return UserError(
                f"{done.name}: {self.engine.method} gives a score or a map that is not finite (NaN or infinity). "
                "Weights of its head or of the backbone are damaged: use another checkpoint, or train again."
            )
        chosen, sources = (*self.thresholds, *self.scales), self.thresholds_from
        inside = done.layout.inside
        anomaly_map = done.anomaly_map if inside is None else only_inside(done.anomaly_map, inside)
        return Inspection(done.score, anomaly_map, *chosen, done.image, *sources, inside)


def _value(chosen: Threshold | DefaultThreshold | None, given: float | None) -> float | None:
    return given if given is not None or chosen is None else chosen.value


def _batches(views: Iterator[tuple[Begun, View]], size: int) -> Iterator[list[tuple[Begun, View]]]:
    """Yields batches of views. The last one may be smaller."""
    while batch := list(islice(views, size)):
        yield batch
