"""The model of `serve`: one thread that runs it, a bounded queue, and the state that requests change."""

import asyncio
import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from fastapi import HTTPException, Request

from afclip_runtime.errors import UserError, message_of
from afclip_runtime.images.reader import read_shape
from afclip_runtime.inspection.calibration import FEWEST, Calibration, fingerprint
from afclip_runtime.inspection.collected import Collected
from afclip_runtime.inspection.drift import Drift
from afclip_runtime.inspection.feedback import Entry, Mark
from afclip_runtime.inspection.inspector import Inspector
from afclip_runtime.inspection.verdict import Inspection
from afclip_runtime.serving.answers import DriftFacts, ModelFacts
from afclip_runtime.serving.intake import Intake
from afclip_runtime.thresholds import Verdict

RECENT = 1000  # last images that are recognised when they are sent again or marked
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Limits of the server.

    Attributes:
        size: Maximum size of an image file in bytes.
        pixels: Maximum number of pixels of an image.
        queue: Maximum number of waiting and running requests. More are rejected with a request to retry.
        few_shot: Maximum number of few-shot images.
        normals: Maximum number of normal images for a calibration.
    """

    size: int = 32 * 2**20
    pixels: int = 40 * 10**6
    queue: int = 32
    few_shot: int = 16
    normals: int = 500


@dataclass(frozen=True)
class Judged:
    """An inspected image.

    Attributes:
        image: Identifier of the file, 16 hexadecimal digits.
        mark: Feedback mark of the image, if any.
        found: Its inspection.
        note: Note on the last images.
    """

    image: str
    mark: Verdict | None
    found: Inspection
    note: str


class DriftWatch:
    """Drift detection in the stream of images of the server.

    Args:
        calibration: The calibration in use, if any.

    Attributes:
        facts: The current drift; `None` while the calibration holds.
    """

    def __init__(self, calibration: Calibration | None) -> None:
        self.drift = Drift(calibration.good if calibration else None)
        self.facts: DriftFacts | None = None

    @property
    def said(self) -> str:
        """Description of the drift; empty while the calibration holds."""
        return self.facts.said if self.facts else ""

    def add(self, score: float) -> str:
        """Adds the score of an image. Returns the description of the drift."""
        alarm = self.drift.add(score)
        if alarm is None:
            self.facts = None
        elif self.facts is None or self.facts.image != alarm.image:
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            self.facts = DriftFacts(side=alarm.side, since=now, image=alarm.image, said=alarm.said)
        return self.said


class Service:
    """A model with its queue, its few-shot images, and the normal images of its calibration.

    Args:
        model: The loaded model. It is not changed.
        limits: Limits of requests.

    Attributes:
        waiting: Number of waiting and running requests.
    """

    def __init__(self, model: Inspector, limits: Limits) -> None:
        self.loaded = model
        self.model = model
        self.limits = limits
        self.few_shot: list[bytes] = []  # as files: decoded they would be many times larger
        self.normals = Collected(limits.normals)
        self.drift = DriftWatch(model.calibration)
        self.judged: dict[str, float] = {}  # scores of the last images, by identifier
        self.intake = Intake(limits.size)
        self.waiting = 0
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place in the queue.

        Raises:
            HTTPException: 503: the queue is full.
        """
        if self.waiting >= self.limits.queue:
            raise HTTPException(
                503, f"{self.waiting} requests are waiting, which is the limit. Try again.", {"Retry-After": "2"}
            )
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def take(self, request: Request, job: Callable[[bytes], T]) -> T:
        """Runs a job in the model's thread on the image of a request, and returns its result.

        The request takes a place in the queue when its body is complete.

        Raises:
            HTTPException: 503: the queue is full. 422: the image cannot be inspected. See also `Intake.image`.
        """
        body = await self.intake.image(request)
        with self.place():
            return await self.run(lambda: job(body))

    async def run(self, job: Callable[[], T]) -> T:
        """Runs a job in the model's thread, and returns its result.

        Raises:
            HTTPException: 422: the message of a `UserError`.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, job)
        except UserError as error:
            raise HTTPException(422, message_of(error)) from error

    def inspect(self, body: bytes) -> Judged:
        """Inspects an image file. The result notes if the calibration no longer holds for the last images."""
        found, known = self.model.predict(self.open(body)), fingerprint(body)
        is_new = self.judged.pop(known, None) is None
        self.judged[known] = found.score
        if len(self.judged) > RECENT:
            del self.judged[next(iter(self.judged))]
        entry = self.model.feedback.marks.get(known) if self.model.feedback else None
        said = self.drift.add(found.score) if is_new else self.drift.said
        return Judged(known, entry.verdict_meant if entry else None, found, said)

    def mark(self, mark: Mark, image: str, name: str, who: str) -> Entry:
        """Marks the verdict on an image as wrong, or withdraws the mark. The threshold moves at once.

        Args:
            mark: True kind of the image, or `undo`.
            image: Identifier of the image in the answer to its inspection.
            name: Name of the file, for the record.
            who: Name of the author.

        Raises:
            UserError: The image is not one of the last ones, or there is no calibration. See also `Feedback.mark`.
        """
        feedback = self.model.feedback
        if feedback is None:
            raise UserError("There is no calibration that feedback could move. Calibrate first.")
        known = feedback.marks.get(image)
        if known is None and image not in self.judged:
            raise UserError(
                f"This image is not among the last {RECENT} inspected images. Inspect it again, then mark it."
            )
        score = self.judged.get(image, known.score if known else 0.0)
        return feedback.mark(mark, image, name or (known.path if known else ""), score, who)

    def collect(self, body: bytes) -> None:
        """Adds a normal image for a calibration. A copy is ignored."""
        if not self.normals.holds(body):
            self.normals.add(body, self.model.predict(self.open(body)))

    def calibrate(self, fpr: float) -> None:
        """Calibrates from the normal images."""
        self._use(self.normals.calibration(self.model, fpr))

    def reset_normals(self) -> None:
        """Removes the normal images and their calibration. Without few-shot images, the loaded one is used again."""
        self.normals = Collected(self.limits.normals)
        as_made = self.loaded.feedback.before if self.loaded.feedback else self.loaded.calibration
        if self.few_shot:
            self._use(None)
        else:
            self._use(as_made, self.loaded.calibrated_by)

    def _use(self, calibration: Calibration | None, place: Path | None = None) -> None:
        self.model = copy.copy(self.model)
        self.model.use(calibration, place)
        self.drift = DriftWatch(calibration)

    def add_few_shot(self, body: bytes) -> None:
        """Adds a few-shot image."""
        if len(self.few_shot) >= self.limits.few_shot:
            raise UserError(f"There are {self.limits.few_shot} few-shot images, which is the limit. Remove them first.")
        self._fit([*self.few_shot, body])

    def reset_few_shot(self) -> None:
        """Removes the few-shot images, and uses the loaded model again."""
        self._fit([])

    def _fit(self, few_shot: list[bytes]) -> None:
        model = self.loaded
        if few_shot:
            model = copy.copy(self.loaded)
            model.fit_few_shot([self.open(body) for body in few_shot])
        self.model, self.few_shot = model, few_shot
        self.normals = Collected(self.limits.normals)  # scores with other few-shot images
        self.drift = DriftWatch(model.calibration)

    def open(self, body: bytes) -> bytes:
        """Checks the header of an image file, and returns its bytes.

        Raises:
            UserError: The file is not an image, or the image is too large.
        """
        (height, width), _ = read_shape(body)
        if width * height > self.limits.pixels:
            raise UserError(
                f"The image has {width} × {height} pixels; the limit is {self.limits.pixels / 10**6:g} million. "
                "Make it smaller."
            )
        return body

    def facts(self) -> ModelFacts:
        """Returns the facts of the model in use, its thresholds and the limits."""
        model = self.model
        image, pixel = model.in_use
        return ModelFacts(
            title=model.title,
            method=model.engine.method,
            backbone=model.engine.backbone,
            category=model.category,
            threshold=image.value if image else None,
            threshold_from=model.thresholds_from[0],
            chosen=model.defaults.chosen if model.defaults else "",
            pixel_threshold=pixel.value if pixel else None,
            scale=image.scale if image else None,
            pixel_scale=pixel.scale if pixel else None,
            calibration=str(model.calibration) if model.calibration else None,
            toy=model.is_toy,
            roi=model.roi.share if model.roi else None,
            marks=len(model.feedback.marks) if model.feedback else 0,
            few_shot=len(self.few_shot),
            normals=len(self.normals),
            min_normals=FEWEST,
            max_normals=self.limits.normals,
            max_bytes=self.limits.size,
            max_pixels=self.limits.pixels,
            max_few_shot=self.limits.few_shot if model.takes_few_shot else 0,
        )
