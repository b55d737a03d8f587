"""`python -m afclip_lightning serve`: a page where an image is judged."""

import argparse
import ipaddress
import signal
import socket
import sys
from collections.abc import Sequence

from afclip_lightning.cli.model_options import (
    add_calibration_options,
    add_model_options,
    load_models,
    named_model,
    no_model,
    split_model_arguments,
    thresholds_of,
)
from afclip_runtime.cli.parser import CommandParser, command
from afclip_runtime.errors import PROGRAM, UserError

PLACE = 42
DESCRIPTION = """\
Serves a page: drop an image, see where it is anomalous, move the thresholds, calibrate from normal images, give
few-shot images to the methods that take them. Without a model it starts with the ready model real. A picture to try
comes with it.

  GET    /                 the page
  POST   /api/inspect      the request is an image file, or a form with one; the answer is JSON: score, verdict, area,
                           regions; note (if the last 20 images do not look like those of the calibration)
                           curl --data-binary @image.png http://127.0.0.1:8000/api/inspect
                           curl -F file=@image.png http://127.0.0.1:8000/api/inspect
  GET    /api/model        method, backbone, calibration, thresholds and where they come from, limits
  GET    /sample.jpg       the picture to try
  POST   /api/normals      likewise an image, of a normal product, to calibrate from; a copy counts once
  POST   /api/calibration  takes the thresholds that 8 or more of them give (?fpr=0.01: share of normal images above)
  GET    /api/calibration  the calibration in use, as a file for --calibration
  DELETE /api/normals      removes them and their thresholds; those of --calibration hold again
  POST   /api/few_shot     likewise an image, of a normal product: a few-shot image, for a method that takes them
  DELETE /api/few_shot     removes them
  GET    /health           whether the server answers, and how many requests wait
  GET    /openapi.json     all of it, for programs

Images are read as inspect reads them, stay in memory and are written nowhere. All who use one server share its few-shot
images and its calibration. There is no password: by default nobody but this machine reaches it. A connection that stays
silent for 10 seconds is closed; an image has 60 seconds to arrive.
SIGINT and SIGTERM finish what was begun, and end it with exit code 0.
"""


@command("Stopped.")
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 stopped, 2 a mistake that the message explains, 130 interrupted."""
    others, arguments = split_model_arguments(args)
    _serve(_parser().parse_args(others), arguments)
    return 0


def _serve(options: argparse.Namespace, arguments: dict[str, object]) -> None:
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'afclip_lightning[serve]'.") from error
    from afclip_lightning.heads import ready
    from afclip_runtime.serving.connections import PatientProtocol
    from afclip_runtime.serving.server import create_app
    from afclip_runtime.serving.service import Limits

    limits = Limits(options.max_mb * 2**20, options.max_megapixels * 10**6, options.queue, options.max_few_shot)
    named = named_model(options)
    if named is None:
        if ready.FIRST not in ready.names():
            raise no_model("serve")
        named = str(ready.path_of(ready.FIRST))
        print(f"note: no model is named, so it is {ready.FIRST}, which comes ready.", file=sys.stderr)
    if min(vars(limits).values()) < 1:
        raise UserError("--max_mb, --max_megapixels, --queue and --max_few_shot must be at least 1.")
    wanted = None if options.no_calibration else options.calibration or "auto"
    (model,) = load_models([named], options, arguments, wanted).values()
    print(thresholds_of(model), file=sys.stderr)
    if not _is_loopback(options.host):
        print(
            f"warning: {options.host} can be reached from other machines, and there is no password: whoever reaches it "
            "can use this model.",
            file=sys.stderr,
        )
    app = create_app(model, limits, ["127.0.0.1", "localhost", "[::1]", options.host, *options.allow_host])
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listener = socket.create_server((options.host, options.port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise UserError(f"{options.host}, port {options.port}: {error}. Choose another --host or --port.") from error
    name = f"[{options.host}]" if family == socket.AF_INET6 else options.host
    print(f"http://{name}:{listener.getsockname()[1]}  (Ctrl+C ends it)", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn raises the signal once more when it has stopped in peace
    config = uvicorn.Config(
        app, http=PatientProtocol, ws="none", log_level="warning", access_log=False, timeout_graceful_shutdown=60
    )
    uvicorn.Server(config).run([listener])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} serve", description=DESCRIPTION)
    add_model_options(parser)
    add_calibration_options(parser.add_argument_group("thresholds"))
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    server.add_argument("--port", type=int, default=8000, help="0 takes a free one (%(default)s)")
    server.add_argument(
        "--allow_host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name that the server is called by, from a browser's address bar; may be given again",
    )
    server.add_argument("--queue", type=int, default=32, metavar="N", help="requests at once (%(default)s)")
    server.add_argument("--max_mb", type=int, default=32, metavar="N", help="of an image file (%(default)s)")
    server.add_argument("--max_megapixels", type=int, default=40, metavar="N", help="of an image (%(default)s)")
    server.add_argument("--max_few_shot", type=int, default=16, metavar="N", help="few-shot images (%(default)s)")
    return parser
