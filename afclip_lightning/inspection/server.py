"""The HTTP application behind `serve`: one model, one thread that runs it, a bounded queue before it."""

import asyncio
import base64
import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeVar
from urllib.parse import urlsplit

import cv2
import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware

import afclip_lightning
from afclip_lightning.data.reader import read_shape
from afclip_lightning.errors import UserError, message_of
from afclip_lightning.inspection.predictor import Predictor
from afclip_lightning.inspection.verdict import Inspection

MAP_SIDE = 1024  # longest side of a map that is sent, in pixels; a backbone sees a few hundred
PATIENCE = 60  # seconds within which a request's body must be here
DRAINED = 4  # a body is read to its end for the answer to arrive, but no more than so many times the limit
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
PAGES["/serve.js"] = ("serve.js", "text/javascript")
IMAGE_BODY = {
    "requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
}
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What the server takes.

    Attributes:
        size: Bytes of an image file.
        pixels: Pixels of an image.
        queue: Requests that are read, wait or run at once; more are told to come again.
        examples: Good examples.
    """

    size: int = 32 * 2**20
    pixels: int = 40 * 10**6
    queue: int = 32
    examples: int = 16


class ModelFacts(BaseModel):
    """What the server runs.

    Thresholds and scales are those of the calibration, `null` without one; `max_examples` is 0 where the method takes
    no good examples.
    """

    method: str
    backbone: str
    category: str
    threshold: float | None
    pixel_threshold: float | None
    scale: float | None
    pixel_scale: float | None
    examples: int
    max_bytes: int
    max_pixels: int
    max_examples: int


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
    """What the model says of an image. What needs a threshold is `null` without one; `map` if it was asked for."""

    score: float
    probability: float | None
    threshold: float | None
    pixel_threshold: float | None
    anomalous: bool | None
    area: float | None
    regions: list[RegionFacts] | None
    width: int
    height: int
    map: MapValues | None


class Service:
    """A model with its queue and its good examples.

    Args:
        model: As it was loaded; it stays as it is.
        limits: What is taken.

    Attributes:
        waiting: Requests that are read, wait or run now.
    """

    def __init__(self, model: Predictor, limits: Limits) -> None:
        self.loaded = model
        self.model = model
        self.limits = limits
        self.examples: list[bytes] = []  # as they came: decoded they would be many times larger
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
        """Returns what a job makes of a request's body, in the model's thread.

        Raises:
            HTTPException: 503, the queue is full; 413, the body is too large; 408, it does not come; 422, it is no
                image that can be judged.
        """
        try:
            with self.place():
                body = await _read(request, self.limits.size)
                return await self.run(lambda: job(body))
        except HTTPException as error:
            if error.status_code == 503:
                await _read(request, 0)  # else the sender would see a broken connection
            raise

    async def run(self, job: Callable[[], T]) -> T:
        """Returns what a job in the model's thread returns.

        Raises:
            HTTPException: 422, with the message of a `UserError`.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, job)
        except UserError as error:
            raise HTTPException(422, message_of(error)) from error

    def inspect(self, body: bytes) -> Inspection:
        """Returns what the model says of an image file."""
        return self.model.predict(self.open(body))

    def remember(self, body: bytes) -> None:
        """Adds a good example."""
        if len(self.examples) >= self.limits.examples:
            raise UserError(f"There are {self.limits.examples} good examples, which is the limit. Forget them first.")
        self._show([*self.examples, body])

    def forget(self) -> None:
        """Goes back to the model as it was loaded."""
        self._show([])

    def _show(self, examples: list[bytes]) -> None:
        model = self.loaded
        if examples:
            model = copy.copy(self.loaded)
            model.remember([self.open(body) for body in examples])
        self.model, self.examples = model, examples

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
        image = model.calibration.image if model.calibration else None
        pixel = model.calibration.pixel if model.calibration else None
        return ModelFacts(
            method=type(model.method).__name__,
            backbone=model.method.backbone.description,
            category=model.category,
            threshold=image.value if image else None,
            pixel_threshold=pixel.value if pixel else None,
            scale=image.scale if image else None,
            pixel_scale=pixel.scale if pixel else None,
            examples=len(self.examples),
            max_bytes=self.limits.size,
            max_pixels=self.limits.pixels,
            max_examples=self.limits.examples if model.takes_good_images else 0,
        )


def create_app(model: Predictor, limits: Limits, hosts: Sequence[str]) -> FastAPI:
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
        title="afclip_lightning", version=afclip_lightning.__version__, docs_url=None, redoc_url=None, lifespan=lifespan
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
        content = (files(afclip_lightning) / "templates" / name).read_bytes()
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
        """Judges the image that is the request's body; with `map=true` the answer holds its map."""
        return await service.take(request, lambda body: _result(service.inspect(body), map))

    @app.post("/api/examples", openapi_extra=IMAGE_BODY)
    async def remember(request: Request) -> ModelFacts:
        """Adds the image of a good product that is the request's body. A calibration no longer holds with examples."""
        await service.take(request, service.remember)
        return service.facts()

    @app.delete("/api/examples")
    async def forget() -> ModelFacts:
        """Forgets all good examples."""
        with service.place():
            await service.run(service.forget)
        return service.facts()

    return app


def _page(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def page() -> Response:
        return Response(content, media_type=kind)

    return page


async def _read(request: Request, limit: int) -> bytes:
    """Returns the body of a request, of which no more than `limit` bytes are kept.

    Raises:
        HTTPException: 413, it is larger, unless the limit is 0; 408, it takes too long.
    """

    async def read() -> tuple[bytes, int]:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size <= limit:
                parts.append(part)
            elif size > DRAINED * max(limit, 2**20):
                break
        return b"".join(parts), size

    try:
        body, size = await asyncio.wait_for(read(), PATIENCE)
    except asyncio.TimeoutError as error:  # not the builtin one before Python 3.11
        raise HTTPException(408, f"The image did not arrive within {PATIENCE} seconds.") from error
    if size > limit > 0:
        raise HTTPException(413, f"The file is larger than {limit / 2**20:g} MB, the limit. Make the image smaller.")
    return body


def _result(found: Inspection, with_map: bool) -> Result:
    height, width = found.anomaly_map.shape
    regions = found.regions
    return Result(
        score=found.score,
        probability=found.probability,
        threshold=found.threshold,
        pixel_threshold=found.pixel_threshold,
        anomalous=found.anomalous,
        area=found.area,
        regions=None if regions is None else [RegionFacts(box=r.box, area=r.area, score=r.score) for r in regions],
        width=width,
        height=height,
        map=_map_values(found.anomaly_map) if with_map else None,
    )


def _map_values(anomaly_map: np.ndarray) -> MapValues:
    """Returns a map as it is sent."""
    height, width = anomaly_map.shape
    share = min(1.0, MAP_SIDE / max(height, width))
    if share < 1:
        size = (max(1, round(width * share)), max(1, round(height * share)))
        anomaly_map = cv2.resize(anomaly_map, size, interpolation=cv2.INTER_AREA)
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
