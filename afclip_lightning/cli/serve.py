"""`python -m afclip_lightning serve`: a web page that inspects images."""

import argparse
import sys
from collections.abc import Sequence

from afclip_lightning.cli.model_options import (
    add_model_options,
    load_models,
    named_model,
    no_model,
    split_model_arguments,
)
from afclip_runtime.cli.options import add_calibration_options, thresholds_of, wanted_calibration
from afclip_runtime.cli.parser import CommandParser, command
from afclip_runtime.cli.server_options import REQUESTS, add_server_options, read_server_options, run_server
from afclip_runtime.errors import PROGRAM

PLACE = 42
DESCRIPTION = (
    """\
Serves a web page: drop an image, see where it is anomalous, move the thresholds, calibrate from normal images, give
few-shot images to the methods that take them. Without a model it starts with the ready model `real`. The page includes
a picture to try.

"""
    + REQUESTS
)


@command("Stopped.")
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 stopped, 2 a mistake that the message explains, 130 interrupted."""
    others, arguments = split_model_arguments(args)
    _serve(_parser().parse_args(others), arguments)
    return 0


def _serve(options: argparse.Namespace, arguments: dict[str, object]) -> None:
    server = read_server_options(options)
    from afclip_lightning.heads import ready

    named = named_model(options)
    if named is None:
        if ready.FIRST not in ready.names():
            raise no_model("serve")
        named = str(ready.path_of(ready.FIRST))
        print(f"note: no model is named; using the ready model {ready.FIRST}.", file=sys.stderr)
    (model,) = load_models([named], options, arguments, wanted_calibration(options)).values()
    print(thresholds_of(model), file=sys.stderr)
    run_server(model, server)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} serve", description=DESCRIPTION)
    add_model_options(parser, engine=True)
    add_calibration_options(parser.add_argument_group("thresholds"))
    add_server_options(parser)
    return parser
