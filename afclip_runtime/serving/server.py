"""The HTTP application behind `serve`: one model, one thread that runs it, a bounded queue before it."""

import asyncio
import base64
import copy
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request, Response
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware

import afclip_runtime
from afclip_runtime.errors import UserError, message_of
from afclip_runtime.images.reader import read_shape
from afclip_runtime.inspection.calibration import FEWEST, Calibration
from afclip_runtime.inspection.collected import Collected, digest
from afclip_runtime.inspection.inspector import Inspector
from afclip_runtime.inspection.stream import Watch
from afclip_runtime.inspection.verdict import Inspection
from afclip_runtime.serving.intake import Intake
from afclip_runtime.thresholds import ThresholdFrom
from afclip_runtime.views.resizing import area_mean

MAP_SIDE = 1024  # longest side of a map that is sent, in pixels; a backbone sees a few hundred
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
PAGES = {"/": ("serve.html", "text/html"), "/serve.css": ("serve.css", "text/css")}
PAGES |= {"/serve.js": ("serve.js", "text/javascript"), "/sample.jpg": ("sample.jpg", "image/jpeg")}
FILE = {"type": "string", "format": "binary"}
FORM = {"schema": {"type": "object", "properties": {"file": FILE}, "required": ["file"]}}
IMAGE_BODY = {"requestBody": {"required": True, "content": {"image/*": {"schema": FILE}, "multipart/form-data": FORM}}}
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What the server takes.

    Attributes:
        size: Bytes of an image file.
        pixels: Pixels of an image.
        queue: Requests that wait or run at once; more are told to come again.
        few_shot: Few-shot images.
        normals: Normal images that a calibration is made from.
    """

    size: int = 32 * 2**20
    pixels: int = 40 * 10**6
    queue: int = 32
    few_shot: int = 16
    normals: int = 500


class ModelFacts(BaseModel):
    """What the server runs.

    Thresholds and scales are those of the calibration, or without one those that come with the head: `threshold_from`
    is `default` then, and `chosen` says how; `null` without both. `title` is the head's own. `max_few_shot` is 0 where
    the method takes no few-shot images. `calibration` says which one it is; one can be made from `min_normals` images
    or more, of which `normals` were given. `toy`: the backbone has seen drawn pictures only.
    """

    title: str
    method: str
    backbone: str
    category: str
    threshold: float | None
    threshold_from: ThresholdFrom | None
    chosen: str
    pixel_threshold: float | None
    scale: float | None
    pixel_scale: float | None
    calibration: str | None
    toy: bool
    few_shot: int
    normals: int
    min_normals: int
    max_normals: int
    max_bytes: int
    max_pixels: int
    max_few_shot: int


class RegionFacts(BaseModel):
    """A region above the pixel threshold: left, top, right, bottom in pixels; area in pixels; highest value."""

    box: tuple[int, int, int, int]
    area: int
    score: float


class MapValues(BaseModel):
    """A map, made smaller if the image is large: row by row, 16 bits, little-endian, Base64; low + step * value."""

    width: int
    height: int
    low: float
    step: float
    values: str


class Result(BaseModel):
    """What the model says of an image. What needs a threshold is `null` without one; `map` if it was asked for.

    `note` says if the last images do not look like those of the calibration.
    """

    score: float
    probability: float | None
    threshold: float | None
    threshold_from: ThresholdFrom | None
    pixel_threshold: float | None
    anomalous: bool | None
    area: float | None
    regions: list[RegionFacts] | None
    width: int
    height: int
    note: str
    map: MapValues | None


class Service:
    """A model with its queue, its few-shot images, and the normal images that it is calibrated from.

    Args:
        model: As it was loaded; it stays as it is.
        limits: What is taken.

    Attributes:
        waiting: Requests that wait or run now.
    """

    def __init__(self, model: Inspector, limits: Limits) -> None:
        self.loaded = model
        self.model = model
        self.limits = limits
        self.few_shot: list[bytes] = []  # as they came: decoded they would be many times larger
        self.normals = Collected(limits.normals)
        self.watch = Watch(model.calibration.good if model.calibration else None)
        self.intake = Intake(limits.size)
        self.waiting = 0
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place in the queue.

        Raises:
            HTTPException: 503, there is none.
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
        """Returns what a job makes of the image that a request brings, in the model's thread.

        It takes a place in the queue when it is here as a whole.

        Raises:
            HTTPException: 503, the queue is full; 422, it is no image that can be judged; see `Intake.image`.
        """
        body = await self.intake.image(request)
        with self.place():
            return await self.run(lambda: job(body))

    async def run(self, job: Callable[[], T]) -> T:
        """Returns what a job in the model's thread returns.

        Raises:
            HTTPException: 422, with the message of a `UserError`.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, job)
        except UserError as error:
            raise HTTPException(422, message_of(error)) from error

    def inspect(self, body: bytes) -> tuple[Inspection, str]:
        """Returns what the model says of an image file, and what is to be said of the last images."""
        found = self.model.predict(self.open(body))
        return found, self.watch.add(digest(body), found.score)

    def collect(self, body: bytes) -> None:
        """Adds a normal image to those that a calibration is made from; a copy of one changes nothing."""
        if not self.normals.holds(body):
            self.normals.add(body, self.model.predict(self.open(body)))

    def calibrate(self, fpr: float) -> None:
        """Takes the thresholds that the normal images give."""
        self._use(self.normals.calibration(self.model, fpr))

    def reset_normals(self) -> None:
        """Removes the normal images and their calibration; without few-shot images the loaded one holds again."""
        self.normals = Collected(self.limits.normals)
        self._use(None if self.few_shot else self.loaded.calibration)

    def _use(self, calibration: Calibration | None) -> None:
        self.model = copy.copy(self.model)
        self.model.calibration = calibration
        self.watch = Watch(calibration.good if calibration else None)

    def add_few_shot(self, body: bytes) -> None:
        """Adds a few-shot image."""
        if len(self.few_shot) >= self.limits.few_shot:
            raise UserError(f"There are {self.limits.few_shot} few-shot images, which is the limit. Remove them first.")
        self._fit([*self.few_shot, body])

    def reset_few_shot(self) -> None:
        """Goes back to the model as it was loaded."""
        self._fit([])

    def _fit(self, few_shot: list[bytes]) -> None:
        model = self.loaded
        if few_shot:
            model = copy.copy(self.loaded)
            model.fit_few_shot([self.open(body) for body in few_shot])
        self.model, self.few_shot = model, few_shot
        self.normals = Collected(self.limits.normals)  # their scores were of other few-shot images
        self.watch = Watch(model.calibration.good if model.calibration else None)

    def open(self, body: bytes) -> bytes:
        """Returns the bytes of an image file whose header was read.

        Raises:
            UserError: It is none, or too large.
        """
        (height, width), _ = read_shape(body)
        if width * height > self.limits.pixels:
            raise UserError(
                f"The image has {width} × {height} pixels; the limit is {self.limits.pixels / 10**6:g} million. "
                "Make it smaller."
            )
        return body

    def facts(self) -> ModelFacts:
        """Returns what the server runs."""
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
            few_shot=len(self.few_shot),
            normals=len(self.normals),
            min_normals=FEWEST,
            max_normals=self.limits.normals,
            max_bytes=self.limits.size,
            max_pixels=self.limits.pixels,
            max_few_shot=self.limits.few_shot if model.takes_few_shot else 0,
        )


def create_app(model: Inspector, limits: Limits, hosts: Sequence[str]) -> FastAPI:
    """Returns the application.

    Args:
        model: What it serves.
        limits: What it takes.
        hosts: Names that it may be called by. A page of another site whose name was made to lead here is refused.
    """
    service = Service(model, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.thread.shutdown()

    # FastAPI's own pages of documentation load scripts from elsewhere
    app = FastAPI(
        title="afclip_lightning", version=afclip_runtime.__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            response = Response("Requests from pages of other sites are refused.\n", 403)
        else:
            response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    for path, (name, kind) in PAGES.items():
        content = (files("afclip_runtime.serving") / "web" / name).read_bytes()
        app.add_api_route(path, _page(content, kind), include_in_schema=False)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Says that the server answers, and how many requests wait."""
        return {"status": "ok", "waiting": service.waiting}

    @app.get("/api/model")
    async def facts() -> ModelFacts:
        """Says what the server runs."""
        return service.facts()

    @app.post("/api/inspect", openapi_extra=IMAGE_BODY)
    async def inspect(request: Request, map: bool = False) -> Result:
        """Judges the image that is the request's body, or the file in its form; `map=true`: with its map."""
        return await service.take(request, lambda body: _result(*service.inspect(body), map))

    @app.post("/api/few_shot", openapi_extra=IMAGE_BODY)
    async def add_few_shot(request: Request) -> ModelFacts:
        """Adds the few-shot image, a normal one, that is the request's body. A calibration no longer holds then."""
        await service.take(request, service.add_few_shot)
        return service.facts()

    @app.delete("/api/few_shot")
    async def reset_few_shot() -> ModelFacts:
        """Removes all few-shot images."""
        with service.place():
            await service.run(service.reset_few_shot)
        return service.facts()

    @app.post("/api/normals", openapi_extra=IMAGE_BODY)
    async def collect(request: Request) -> ModelFacts:
        """Adds a normal image, the request's body, to those that a calibration is made from."""
        await service.take(request, service.collect)
        return service.facts()

    @app.delete("/api/normals")
    async def reset_normals() -> ModelFacts:
        """Removes the normal images and their calibration; that of the command holds again."""
        with service.place():
            await service.run(service.reset_normals)
        return service.facts()

    @app.post("/api/calibration")
    async def calibrate(fpr: Annotated[float, Query(gt=0, le=0.5)] = 0.01) -> ModelFacts:
        """Makes thresholds from the normal images, which a share `fpr` of normal images will exceed."""
        with service.place():
            await service.run(lambda: service.calibrate(fpr))
        return service.facts()

    @app.get("/api/calibration")
    async def calibration() -> Response:
        """Returns the calibration in use as the file that --calibration takes; 404 if there is none."""
        if service.model.calibration is None:
            raise HTTPException(404, "There is no calibration.")
        headers = {"Content-Disposition": 'attachment; filename="head.calibration.json"'}
        return Response(
            json.dumps(asdict(service.model.calibration), indent=2), media_type="application/json", headers=headers
        )

    return app


def _page(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def page() -> Response:
        return Response(content, media_type=kind)

    return page


def _result(found: Inspection, note: str, with_map: bool) -> Result:
    height, width = found.anomaly_map.shape
    regions = found.regions
    return Result(
        score=found.score,
        probability=found.probability,
        threshold=found.threshold,
        threshold_from=found.threshold_from,
        pixel_threshold=found.pixel_threshold,
        anomalous=found.anomalous,
        area=found.area,
        regions=None if regions is None else [RegionFacts(box=r.box, area=r.area, score=r.score) for r in regions],
        width=width,
        height=height,
        note=note,
        map=_map_values(found.anomaly_map) if with_map else None,
    )


def _map_values(anomaly_map: np.ndarray) -> MapValues:
    """Returns a map as it is sent."""
    height, width = anomaly_map.shape
    share = min(1.0, MAP_SIDE / max(height, width))
    if share < 1:
        anomaly_map = area_mean(anomaly_map, max(1, round(height * share)), max(1, round(width * share)))
    low = float(anomaly_map.min())
    step = (float(anomaly_map.max()) - low) / 65535 or 1.0
    values = np.rint((anomaly_map - low) / step).astype("<u2")
    return MapValues(
        width=values.shape[1],
        height=values.shape[0],
        low=low,
        step=step,
        values=base64.b64encode(values.tobytes()).decode("ascii"),
    )
