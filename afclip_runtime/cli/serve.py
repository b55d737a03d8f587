"""`python -m afclip_runtime serve`: a web page and an HTTP service that inspect images, with a bundle."""

import argparse
import sys
from collections.abc import Sequence

from afclip_runtime.cli.options import (
    RUNTIME,
    add_bundle_options,
    add_calibration_options,
    bundle_of,
    load_bundle,
    thresholds_of,
    wanted_calibration,
)
from afclip_runtime.cli.parser import CommandParser, command
from afclip_runtime.cli.server_options import REQUESTS, add_server_options, read_server_options, run_server

PLACE = 42
DESCRIPTION = (
    """\
Serves a page: drop an image, see where it is anomalous, move the thresholds, calibrate from normal images. It has a
sample image. A bundle takes no few-shot images: they are part of its graph.

"""
    + REQUESTS
)


@command("Stopped.")
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 stopped, 2 a mistake that the message explains, 130 interrupted."""
    options = _parser().parse_args(args)
    server = read_server_options(options)
    model = load_bundle(bundle_of(options), options, wanted_calibration(options))
    print(thresholds_of(model), file=sys.stderr)
    run_server(model, server)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{RUNTIME} serve", description=DESCRIPTION)
    add_bundle_options(parser)
    add_calibration_options(parser.add_argument_group("thresholds"))
    add_server_options(parser)
    return parser
