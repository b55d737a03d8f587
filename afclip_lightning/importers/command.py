"""The command `datasets import`: one's own data, from what another program wrote, as a set that is read here.

A kind of export is a module of this folder with two functions, found by its file and named in no other place:

- `add_options(parser)` adds the options of the kind, beside `FILE`, `--from` and `--out`.
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
    """Returns what each kind of export is, by name. Their modules are read, and not imported."""
    package = afclip_lightning.importers
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    found = ((name, described(package.__name__, name, "convert")) for name in names)
    return {name: of[1] for name, of in found if of}


def run(args: Sequence[str], make_parser: type[argparse.ArgumentParser]) -> int:
    """Runs the command and returns its exit code.

    Args:
        args: What follows `datasets import`.
        make_parser: The parser of commands.

    Raises:
        UserError: An export, an image or the place of the output is not as it must be.
    """
    options = parser(args, make_parser).parse_args(args)
    try:
        code: int = importlib.import_module(f"{afclip_lightning.importers.__name__}.{options.kind}").convert(options)
    except BrokenPipeError:
        raise  # the command line ends without a word
    except OSError as error:  # a file or folder that may not be read
        raise UserError(error) from error
    return code


def parser(args: Sequence[str], make_parser: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Returns the parser, with the options of the kind that the arguments name."""
    known = kinds()
    width = max(map(len, known), default=0)
    table = "\n".join(f"  {name:{width}}  {line}" for name, line in known.items())
    description = f"""\
Writes what another program exported as a set that is read here: --data Listing --data.root SET
(of volumes: --data Volumes).
Nothing that is there is overwritten, and a run that was stopped goes on where it was.

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
