"""Reading of request bodies of `serve` within limits of size and time, and of the image in a form."""

import asyncio
import logging

from fastapi import HTTPException, Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

PATIENCE = 60  # seconds within which a request's body must arrive
DRAINED = 4  # a too large body is read on, so that the client gets the answer, up to this multiple of the limit
ARRIVING = 2**28  # limit of the bytes of all incomplete bodies; at least two of the largest bodies are allowed
FORM = 2**16  # bytes of a form apart from the image
HOW = (
    "Send the image as form field `file` (curl -F file=@image.png), or as the body of the request (curl --data-binary "
    "@image.png)."
)


class Intake:
    """Reads the bodies of requests. Incomplete bodies take no place in the queue.

    Args:
        limit: Maximum size of an image file in bytes.

    Attributes:
        arriving: Bytes of incomplete bodies.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.arriving = 0

    async def image(self, request: Request) -> bytes:
        """Returns the image file of a request: its body, or the file in the form in its body.

        Raises:
            HTTPException: 400: the upload was cut off. 408: it takes too long. 413: it is larger than the limit. 422:
                it has no image, or is a form without exactly one file. 503: too much arrives at once.
        """
        kind, options = parse_options_header(request.headers.get("content-type"))
        if kind != b"multipart/form-data":
            if not (body := await self._body(request, self.limit)):
                raise HTTPException(422, f"The request has no image. {HOW}")
            return body
        return file_of_form(await self._body(request, self.limit + FORM), options.get(b"boundary", b""), self.limit)

    async def _body(self, request: Request, limit: int) -> bytes:
        body = bytearray()
        size = 0
        most = max(ARRIVING, 2 * self.limit)
        crowded = False

        async def read() -> None:
            nonlocal size, crowded
            async for part in request.stream():
                size += len(part)
                crowded = crowded or self.arriving + len(part) > most
                if size <= limit and not crowded:
                    body.extend(part)
                    self.arriving += len(part)
                elif size > DRAINED * max(limit, 2**20):
                    break

        try:
            await asyncio.wait_for(read(), PATIENCE)
        except asyncio.TimeoutError as error:  # not the builtin one before Python 3.11
            raise HTTPException(408, f"The image did not arrive within {PATIENCE} seconds.") from error
        except ClientDisconnect as error:
            logging.getLogger("uvicorn.error").warning("An upload was cut off after %d bytes.", size)
            raise HTTPException(400, "The upload was cut off.") from error
        finally:
            self.arriving -= len(body)
        if size > limit:
            raise HTTPException(
                413, f"The file is larger than {limit / 2**20:.3g} MB, the limit. Make the image smaller."
            )
        if crowded:
            raise HTTPException(503, "Too many images arrive at once. Try again.", {"Retry-After": "2"})
        return bytes(body)


def file_of_form(body: bytes, boundary: bytes, limit: int) -> bytes:
    """Returns the file of a form with a single file.

    Args:
        body: The form, `multipart/form-data`.
        boundary: Boundary between its parts.
        limit: Maximum size of the file in bytes.

    Raises:
        HTTPException: 422: the body is not a form, or does not contain exactly one file. 413: the file is larger.
    """
    files: list[bytearray] = []
    header, value = bytearray(), bytearray()
    is_file = is_whole = False

    def begin() -> None:
        nonlocal is_file
        is_file = False

    def field(data: bytes, start: int, end: int) -> None:
        header.extend(data[start:end])

    def content(data: bytes, start: int, end: int) -> None:
        value.extend(data[start:end])

    def ended() -> None:
        nonlocal is_file
        if header.lower() == b"content-disposition" and b"filename" in parse_options_header(bytes(value))[1]:
            is_file = True
            files.append(bytearray())
        header.clear()
        value.clear()

    def part(data: bytes, start: int, end: int) -> None:
        if is_file:
            files[-1].extend(data[start:end])

    def end() -> None:
        nonlocal is_whole
        is_whole = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_header_field": field,
                "on_header_value": content,
                "on_header_end": ended,
                "on_part_data": part,
                "on_end": end,
            },
        )
        parser.write(body)
        parser.finalize()
    except (MultipartParseError, ValueError) as error:
        raise HTTPException(422, f"The form cannot be read ({error}). {HOW}") from error
    if not is_whole:
        raise HTTPException(422, f"The form does not end. {HOW}")
    if len(files) != 1:
        found = f"{len(files)} files, and one image is judged" if files else "no file"
        raise HTTPException(422, f"The form has {found}. {HOW}")
    if len(files[0]) > limit:
        raise HTTPException(413, f"The file is larger than {limit / 2**20:.3g} MB, the limit. Make the image smaller.")
    return bytes(files[0])
