"""The commands of a package: its modules with a function `main`, found without importing them."""

import ast
import difflib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from afclip_runtime.cli.described import described
from afclip_runtime.cli.parser import Command

LAST = 99  # place of a command without `PLACE`


@dataclass(frozen=True, order=True)
class Verb:
    """A command, as its file describes it.

    Attributes:
        place: Place in the list of commands: `PLACE` of its module. Commands with the same tens form a group.
        name: Name of its module.
        line: Description: the first line of the module's docstring after the colon.
    """

    place: int
    name: str
    line: str


class Verbs:
    """The commands of a package.

    Args:
        package: Package of the modules.
        program: Command line of the program.
        codes: Description of the exit codes, for the end of the list of commands.
    """

    def __init__(self, package: str, program: str, codes: str) -> None:
        self.package, self.program, self.codes = package, program, codes

    def run(
        self, args: Sequence[str], named: str, renamed: Callable[[str, list[str]], list[str]] = lambda _, rest: rest
    ) -> int:
        """Runs a command, or prints the list of commands. Returns the exit code.

        Args:
            args: The command line: the name of the command and its arguments.
            named: Package and version.
            renamed: Function from a command and its arguments to the arguments with current names.
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
        """Returns all commands, sorted by place. Their modules are read, not imported."""
        found = (self._read(name) for name in self._modules())
        return sorted(verb for verb in found if verb)

    def find(self, name: str) -> Command | None:
        """Returns the `main` of a command; `None` if there is no such command."""
        if name not in self._modules():
            return None
        main: Command | None = getattr(importlib.import_module(f"{self.package}.{name}"), "main", None)
        return main

    def unknown(self, name: str) -> str:
        """Returns the message for an unknown command, with the nearest name."""
        near = difflib.get_close_matches(name, [verb.name for verb in self.verbs()], n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        return f'there is no command "{name}".{hint} All commands: {self.program} --help'

    def overview(self) -> str:
        """Returns the list of all commands, one line per command, and the exit codes."""
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
        """Returns the command of a module, as its file describes it; `None` if the module is not a command."""
        found = described(self.package, name, "main")
        if found is None:
            return None
        tree, line = found
        constants = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
        place = ast.literal_eval(constants["PLACE"]) if "PLACE" in constants else LAST
        return Verb(place, name, line)
