"""The command `datasets import`: converts the export of another program to a set that this package reads.

Each kind of export is a module of this folder with two functions. It is found by its file name and registered nowhere:

- `add_options(parser)` adds the options of the kind to `FILE`, `--from` and `--out`.
- `convert(options)` does the work and returns the exit code.

Its line in the help is the first line of its docstring, after the colon.
"""

import argparse
import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path

import afclip_lightning.importers
from afclip_runtime.cli.described import described
from afclip_runtime.errors import PROGRAM, UserError


def kinds() -> dict[str, str]:
    """Returns a description of each kind of export by name. Their modules are read, not imported."""
    package = afclip_lightning.importers
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    found = ((name, described(package.__name__, name, "convert")) for name in names)
    return {name: of[1] for name, of in found if of}


def run(args: Sequence[str], make_parser: type[argparse.ArgumentParser]) -> int:
    """Runs the command and returns its exit code.

    Args:
        args: Arguments after `datasets import`.
        make_parser: Parser class of the commands.

    Raises:
        UserError: The export, an image or the output folder is invalid.
    """
    options = parser(args, make_parser).parse_args(args)
    try:
        code: int = importlib.import_module(f"{afclip_lightning.importers.__name__}.{options.kind}").convert(options)
    except BrokenPipeError:
        raise  # the command line ends without a message
    except OSError as error:  # a file or folder without permission to read
        raise UserError(error) from error
    return code


def parser(args: Sequence[str], make_parser: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Returns the parser, with the options of the kind that the arguments name."""
    known = kinds()
    width = max(map(len, known), default=0)
    table = "\n".join(f"  {name:{width}}  {line}" for name, line in known.items())
    description = f"""\
Converts the export of another program to a set, for --data Listing --data.root SET
(volumes: for --data Volumes).
Existing files are never overwritten. A stopped run resumes.

Kinds of --from; --from KIND --help lists the options of each:
{table}
"""
    outer = make_parser(f"{PROGRAM} datasets import", description=description)
    outer.add_argument("file", type=Path, metavar="FILE", help="the export: a file or a folder")
    outer.add_argument("--from", dest="kind", required=True, choices=known, metavar="KIND", help="format of the export")
    outer.add_argument("--out", type=Path, required=True, metavar="SET", help="folder of the set that is written")
    kind = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    kind.add_argument("--from", dest="kind", nargs="?")
    named = kind.parse_known_args(args)[0].kind
    if named in known:
        importlib.import_module(f"{afclip_lightning.importers.__name__}.{named}").add_options(outer)
    return outer
