"""`python -m afclip_runtime health`: check that a watcher or a server is running, for containers and monitors."""

import argparse
import http.client
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from afclip_runtime.cli.parser import CommandParser, command, finite
from afclip_runtime.errors import UserError
from afclip_runtime.supervision import check_alive

PLACE = 43
DESCRIPTION = """\
Checks that `inspect --watch` or `serve` is running. Exit codes: 0 it is; 2 it is not, and the message says why.

  python -m afclip_runtime health --out inspections
  python -m afclip_runtime health --url http://127.0.0.1:8000/health
"""


@command()
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 it is running, 2 it is not."""
    options = _parser().parse_args(args)
    if options.out is not None:
        print(f"alive {check_alive(options.out, options.within):.1f} s ago")
    else:
        print(_ask(options.url, options.within))
    return 0


def _ask(url: str, seconds: float) -> str:
    """Returns the answer of a server's health check.

    Raises:
        UserError: The server does not answer, or not with status 200.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url} is not the address of a page, such as http://127.0.0.1:8000/health.")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # ignores proxies of the environment
    try:
        with direct.open(url, timeout=seconds) as answer:
            return str(answer.read(4096).decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:
        raise UserError(
            f"{url} answers with {error.code}, not with 200. Is it the address of the page, and /health?"
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"{url} does not answer ({error}). Is it running?") from error


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("python -m afclip_runtime health", description=DESCRIPTION)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="DIR", help="output folder of a watcher")
    what.add_argument("--url", help="URL of a page: its address and /health")
    parser.add_argument(
        "--within",
        type=finite,
        default=60.0,
        metavar="SECONDS",
        help="time limit for the last sign of life, or for an answer, in seconds (%(default)g)",
    )
    return parser
