"""The commands of a package: the modules of a folder that have a `main`, found without importing one."""

import ast
import difflib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from afclip_runtime.cli.described import described
from afclip_runtime.cli.parser import Command

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


class Verbs:
    """The commands of a package.

    Args:
        package: Where their modules lie.
        program: How the package is called on a command line.
        codes: What its exit codes mean, as the list of commands ends.
    """

    def __init__(self, package: str, program: str, codes: str) -> None:
        self.package, self.program, self.codes = package, program, codes

    def run(
        self, args: Sequence[str], named: str, renamed: Callable[[str, list[str]], list[str]] = lambda _, rest: rest
    ) -> int:
        """Runs a command, or tells which there are, and returns the exit code.

        Args:
            args: The command line: the name of the command, and what it is given.
            named: Package and version.
            renamed: Makes of a command and its arguments those that it takes today.
        """
        if not args or args[0] in ("--help", "-h"):
            print(self.overview(), file=sys.stdout if args else sys.stderr)
            return 0 if args else 2
        if args[0] == "--version":
            print(named)
            return 0
        name, *rest = args
        command = self.find(name)
        if command is None:
            print(f"error: {self.unknown(name)}", file=sys.stderr)
            return 2
        return command(renamed(name, rest))

    def verbs(self) -> list[Verb]:
        """Returns all commands, in the order in which they are used. Their modules are read, and not imported."""
        found = (self._read(name) for name in self._modules())
        return sorted(verb for verb in found if verb)

    def find(self, name: str) -> Command | None:
        """Returns the `main` of a command; `None` if there is no such command."""
        if name not in self._modules():
            return None
        main: Command | None = getattr(importlib.import_module(f"{self.package}.{name}"), "main", None)
        return main

    def unknown(self, name: str) -> str:
        """Returns the message about a name that is no command's, with the nearest one."""
        near = difflib.get_close_matches(name, [verb.name for verb in self.verbs()], n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        return f'there is no command "{name}".{hint} All commands: {self.program} --help'

    def overview(self) -> str:
        """Returns the list of all commands, a line each, and the exit codes."""
        found = self.verbs()
        width = max(len(verb.name) for verb in found)
        lines = []
        for before, verb in zip([None, *found], found, strict=False):
            if before and before.place // 10 != verb.place // 10:
                lines.append("")
            lines.append(f"  {verb.name:{width}}  {verb.line}")
        options = f"Options of a command: {self.program} COMMAND --help. The version: --version."
        return "\n".join([f"usage: {self.program} COMMAND ...", "", *lines, "", options, self.codes])

    def _modules(self) -> set[str]:
        folder = importlib.import_module(self.package).__path__
        return {module.name for module in pkgutil.iter_modules(folder)}

    def _read(self, name: str) -> Verb | None:
        """Returns the command of a module, as its file describes it; `None` if it has none."""
        found = described(self.package, name, "main")
        if found is None:
            return None
        tree, line = found
        constants = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
        place = ast.literal_eval(constants["PLACE"]) if "PLACE" in constants else LAST
        return Verb(place, name, line)
