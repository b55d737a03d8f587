"""The commands that there are: the modules of this folder that have a `main`, found without importing one."""

import ast
import difflib
import importlib
import pkgutil
from dataclasses import dataclass

import afclip_lightning.cli
from afclip_lightning.discovery.described import described
from afclip_runtime.cli.parser import Command
from afclip_runtime.errors import PROGRAM

LAST = 99  # the place of a command that names none


@dataclass(frozen=True, order=True)
class Verb:
    """A command, as its file describes it.

    Attributes:
        place: Where it stands in the list of commands: `PLACE` of its module. The tens tell what belongs together.
        name: The name of its module.
        line: What it does: the module's first line, after the colon.
    """

    place: int
    name: str
    line: str


def verbs() -> list[Verb]:
    """Returns all commands, in the order in which they are used. Their modules are read, and not imported."""
    found = (_read(module.name) for module in pkgutil.iter_modules(afclip_lightning.cli.__path__))
    return sorted(verb for verb in found if verb)


def _read(name: str) -> Verb | None:
    """Returns what a module says of its command; `None` if it is none."""
    found = described(afclip_lightning.cli.__name__, name, "main")
    if found is None:
        return None
    tree, line = found
    constants = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    place = ast.literal_eval(constants["PLACE"]) if "PLACE" in constants else LAST
    return Verb(place, name, line)


def find(name: str) -> Command | None:
    """Returns the `main` of a command; `None` if there is no such command."""
    known = {module.name for module in pkgutil.iter_modules(afclip_lightning.cli.__path__)}
    if name not in known:
        return None
    main: Command | None = getattr(importlib.import_module(f"{afclip_lightning.cli.__name__}.{name}"), "main", None)
    return main


def unknown(name: str) -> str:
    """Returns what is wrong with a name that is no command's, with the nearest one."""
    near = difflib.get_close_matches(name, [verb.name for verb in verbs()], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f'there is no command "{name}".{hint} All commands: {PROGRAM} --help'


def overview() -> str:
    """Returns the list of all commands, a line each, and the exit codes."""
    found = verbs()
    width = max(len(verb.name) for verb in found)
    lines = []
    for before, verb in zip([None, *found], found, strict=False):
        if before and before.place // 10 != verb.place // 10:
            lines.append("")
        lines.append(f"  {verb.name:{width}}  {verb.line}")
    return "\n".join([f"usage: {PROGRAM} COMMAND ...", "", *lines, "", CODES])


CODES = f"""\
Options of a command: {PROGRAM} COMMAND --help. The version: --version.
Exit codes: 0 done; 1 what a command's own --help says (images left out, a cell failed); 2 a mistake that the message
explains; 70 a fault of the program; 75 stopped by a signal and able to go on; 130 Ctrl-C; 141 the reader has gone."""
