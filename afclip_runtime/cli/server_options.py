"""The server of `serve`: its flags, the description of its requests, and its start. It works with any engine."""

import argparse
import ipaddress
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from afclip_runtime.errors import UserError, install_extra, shown

if TYPE_CHECKING:
    from afclip_runtime.inspection.inspector import Inspector
    from afclip_runtime.serving.service import Limits

REQUESTS = """\
  GET    /                 the page
  POST   /api/inspect      inspects the image file in the body, or in a form; the answer is JSON: score, verdict, area,
                           regions; note (if the calibration no longer holds)
                           curl --data-binary @image.png http://127.0.0.1:8000/api/inspect
                           curl -F file=@image.png http://127.0.0.1:8000/api/inspect
  GET    /api/model        method, backbone, calibration, thresholds and where they come from, limits
  GET    /sample.jpg       the sample image
  POST   /api/normals      adds the normal image in the body or form, for a calibration; a copy counts once
  POST   /api/calibration  calibrates from 8 or more normal images (?fpr=0.01: share of normal images above)
  GET    /api/calibration  the calibration in use, as a file for --calibration
  DELETE /api/normals      removes the normal images and their thresholds; those of --calibration are used again
  POST   /api/few_shot     adds the normal image in the body or form as a few-shot image, for a few-shot method
  DELETE /api/few_shot     removes the few-shot images
  POST   /api/feedback     ?image=ID&mark=normal: marks the verdict on an image as wrong, with the ID in the answer of
                           inspect; the threshold moves by a bounded rule, and the audit file gets a line
  DELETE /api/feedback/ID  withdraws the mark; GET /api/feedback: all lines
  GET    /health           tells that the server answers, the number of waiting requests, and whether the calibration
                           holds (drift)
  GET    /api/health       the same, with a description of the drift; it may need the token
  GET    /openapi.json     the OpenAPI description

Images are read as by inspect. They stay in memory and are not stored. All users of a server share its few-shot images
and its calibration. By default only this machine can reach the server. With --token_file, all requests below /api need
the token of this file (curl --oauth2-bearer TOKEN), and the page asks for it. After 10 wrong tokens within a minute,
the address is rejected for the rest of this minute. HTTPS needs a proxy: docs/deployment.md. A connection is closed if
it is silent for 10 seconds, or if an image does not arrive within 60 seconds. After SIGINT or SIGTERM the server
finishes current requests, and ends with exit code 0.
"""


@dataclass(frozen=True)
class Server:
    """Settings of a server, from its flags.

    Attributes:
        host: Address on which it listens.
        port: Its port; 0 for a free one.
        names: Other host names of the server.
        limits: Limits of requests.
        token: Token that requests to /api must have; `None` for none.
        proxies: Addresses or networks of proxies, which are trusted to tell the address of a client.
    """

    host: str
    port: int
    names: list[str]
    limits: "Limits"
    token: str | None
    proxies: list[str]

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a server to a parser."""
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address that the server listens on (%(default)s)")
    server.add_argument("--port", type=int, default=8000, help="port of the server; 0 takes a free one (%(default)s)")
    server.add_argument(
        "--allow_host",
        action="append",
        default=[],
        metavar="NAME",
        help="another host name of the server, as in the address bar of a browser; may be given again",
    )
    server.add_argument(
        "--token_file",
        type=Path,
        metavar="FILE",
        help="text file with the token that requests to /api must have, 32 characters or more",
    )
    server.add_argument(
        "--proxy",
        type=_network,
        action="append",
        default=[],
        metavar="ADDRESS",
        help="address or network of a proxy whose X-Forwarded-For is trusted; may be given again",
    )
    server.add_argument(
        "--queue", type=int, default=32, metavar="N", help="largest number of requests at once (%(default)s)"
    )
    server.add_argument(
        "--max_mb", type=int, default=32, metavar="N", help="size limit of an image file, in MB (%(default)s)"
    )
    server.add_argument(
        "--max_megapixels",
        type=int,
        default=40,
        metavar="N",
        help="size limit of an image, in megapixels (%(default)s)",
    )
    server.add_argument(
        "--max_few_shot", type=int, default=16, metavar="N", help="largest number of few-shot images (%(default)s)"
    )


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be an address or a network (172.30.0.0/24), got {text}") from error


def read_server_options(options: argparse.Namespace) -> Server:
    """Returns the settings of a server from its flags, before a model is loaded. Prints warnings.

    Raises:
        UserError: A package is missing, a limit is below 1, or the file contains no token.
    """
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: {install_extra('serve')}.") from error
    from afclip_runtime.files import exposed
    from afclip_runtime.serving.access import read_token
    from afclip_runtime.serving.service import Limits

    limits = Limits(options.max_mb * 2**20, options.max_megapixels * 10**6, options.queue, options.max_few_shot)
    if min(vars(limits).values()) < 1:
        raise UserError("--max_mb, --max_megapixels, --queue and --max_few_shot must be at least 1.")
    token = None if options.token_file is None else read_token(options.token_file)
    server = Server(options.host, options.port, options.allow_host, limits, token, options.proxy)
    said = [] if options.token_file is None else [exposed(options.token_file)]
    if not server.is_local and token is None:
        said.append(
            f"warning: {shown(server.host)} can be reached from other machines without a password: anyone who can "
            "reach it can use this model. --token_file requires a token."
        )
    elif not server.is_local and not server.proxies:
        said.append(
            "warning: the token is sent over the network without encryption. Put an HTTPS proxy before the server."
        )
    for line in filter(None, said):
        print(line, file=sys.stderr)
    return server


def run_server(model: "Inspector", server: Server) -> None:
    """Serves a model until SIGINT or SIGTERM; prints the address first.

    Raises:
        UserError: The address is in use, or does not belong to this machine.
    """
    import uvicorn

    from afclip_runtime.serving.connections import PatientProtocol
    from afclip_runtime.serving.server import create_app

    app = create_app(
        model, server.limits, ["127.0.0.1", "localhost", "[::1]", server.host, *server.names], server.token
    )
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    try:
        listener = socket.create_server((server.host, server.port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = str(error).rstrip(".")
        raise UserError(f"{server.host}, port {server.port}: {reason}. Choose another --host or --port.") from error
    name = f"[{server.host}]" if family == socket.AF_INET6 else server.host
    print(f"http://{name}:{listener.getsockname()[1]}  (Ctrl+C ends it)", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn raises the signal again after a graceful stop
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        proxy_headers=bool(server.proxies),
        forwarded_allow_ips=server.proxies,
        timeout_graceful_shutdown=60,
    )
    uvicorn.Server(config).run([listener])
