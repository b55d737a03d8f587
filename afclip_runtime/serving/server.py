"""The HTTP application of `serve`: the page, the API, and access control."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.resources import files
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from pydantic import Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

import afclip_runtime
from afclip_runtime.inspection.feedback import Mark
from afclip_runtime.inspection.inspector import Inspector
from afclip_runtime.serving.access import TokenCheck
from afclip_runtime.serving.answers import Health, ModelFacts, Result, result_of
from afclip_runtime.serving.service import Judged, Limits, Service
from afclip_runtime.supervision import notify
from afclip_runtime.thresholds import Verdict

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
PAGES |= {f"/{name}": (name, "text/javascript") for name in ("serve.js", "roi.js")}
PAGES |= {"/sample.jpg": ("sample.jpg", "image/jpeg")}
Known = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]  # identifier of an image
Text = Annotated[str, Field(max_length=200)]
FILE = {"type": "string", "format": "binary"}
FORM = {"schema": {"type": "object", "properties": {"file": FILE}, "required": ["file"]}}
IMAGE_BODY = {"requestBody": {"required": True, "content": {"image/*": {"schema": FILE}, "multipart/form-data": FORM}}}


def create_app(model: Inspector, limits: Limits, hosts: Sequence[str], token: str | None = None) -> FastAPI:
    """Returns the application.

    Args:
        model: The model.
        limits: Limits of requests.
        hosts: Allowed host names. Other names are rejected, as a defence against DNS rebinding.
        token: Token that requests to /api must have; `None` for none.
    """
    service = Service(model, limits)
    api = APIRouter(prefix="/api", dependencies=[Depends(TokenCheck(token))] if token else [])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        notify("READY=1")
        yield
        notify("STOPPING=1")
        service.thread.shutdown()

    # FastAPI's documentation pages load scripts from other servers
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

    @app.get("/health", response_model_exclude_none=True)
    async def health() -> Health:
        """Tells that the server answers, the number of waiting requests, and whether the calibration holds.

        It needs no token. If the server has a token, only `/api/health` describes the drift.
        """
        return _health(service, in_short=token is not None)

    @api.get("/health", response_model_exclude_none=True)
    async def whole_health() -> Health:
        """Like `/health`, with a description of the drift."""
        return _health(service)

    @api.get("/model")
    async def facts() -> ModelFacts:
        """Returns the model, thresholds and limits."""
        return service.facts()

    @api.post("/inspect", openapi_extra=IMAGE_BODY)
    async def inspect(request: Request, map: bool = False) -> Result:
        """Inspects the image in the request's body, or the file in its form. `map=true` returns the map, too."""
        return await service.take(request, lambda body: _result(service.inspect(body), map))

    @api.post("/few_shot", openapi_extra=IMAGE_BODY)
    async def add_few_shot(request: Request) -> ModelFacts:
        """Adds a few-shot image, a normal image in the request's body. The calibration then no longer holds."""
        await service.take(request, service.add_few_shot)
        return service.facts()

    @api.delete("/few_shot")
    async def reset_few_shot() -> ModelFacts:
        """Removes all few-shot images."""
        with service.place():
            await service.run(service.reset_few_shot)
        return service.facts()

    @api.post("/normals", openapi_extra=IMAGE_BODY)
    async def collect(request: Request) -> ModelFacts:
        """Adds a normal image, the request's body, for a calibration."""
        await service.take(request, service.collect)
        return service.facts()

    @api.delete("/normals")
    async def reset_normals() -> ModelFacts:
        """Removes the normal images and their calibration. The calibration of the command is used again."""
        with service.place():
            await service.run(service.reset_normals)
        return service.facts()

    @api.post("/calibration")
    async def calibrate(fpr: Annotated[float, Query(gt=0, le=0.5)] = 0.01) -> ModelFacts:
        """Calibrates from the normal images: a share `fpr` of normal images will exceed the threshold."""
        with service.place():
            await service.run(lambda: service.calibrate(fpr))
        return service.facts()

    @api.get("/calibration")
    async def calibration() -> Response:
        """Returns the calibration in use as the file that --calibration takes; 404 if there is none."""
        if service.model.calibration is None:
            raise HTTPException(404, "There is no calibration.")
        headers = {"Content-Disposition": 'attachment; filename="head.calibration.json"'}
        return Response(
            json.dumps(asdict(service.model.calibration), indent=2), media_type="application/json", headers=headers
        )

    @api.post("/feedback")
    async def mark(image: Known, mark: Verdict, name: Text = "", who: Text = "") -> ModelFacts:
        """Marks the verdict on an image as wrong: the image is `mark`. The threshold moves by a bounded rule.

        `image` is its identifier in the answer to its inspection, `name` the name of the file, `who` the author. All
        are recorded.
        """
        return await give(mark, image, name, who)

    @api.delete("/feedback/{image}")
    async def unmark(image: Known, who: Text = "") -> ModelFacts:
        """Withdraws the mark of an image. This adds a line to the audit file and removes none."""
        return await give("undo", image, "", who)

    async def give(mark: Mark, image: str, name: str, who: str) -> ModelFacts:
        with service.place():
            await service.run(lambda: service.mark(mark, image, name, f"the page {who}".strip()))
        return service.facts()

    @api.get("/feedback")
    async def feedback() -> list[dict[str, Any]]:
        """Returns the lines of the audit file, including withdrawn marks."""
        known = service.model.feedback
        return [msgspec.to_builtins(entry) for entry in known.entries] if known else []

    app.include_router(api)
    return app


def _result(judged: Judged, with_map: bool) -> Result:
    return result_of(judged.found, judged.note, with_map, judged.image, judged.mark)


def _health(service: Service, in_short: bool = False) -> Health:
    drift = service.drift.facts
    return Health(status="drift" if drift else "ok", waiting=service.waiting, drift=None if in_short else drift)


def _page(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def page() -> Response:
        return Response(content, media_type=kind)

    return page
