"""The packages as a house: imports point down its floors, files are short, and tests share code through `support`."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support import REPOSITORY
from tests.support.deploy import normal, runtime_project

NAME = "afclip_lightning"
RUNTIME = "afclip_runtime"  # the basement: what needs no torch
PACKAGES = (NAME, RUNTIME)
TESTS = REPOSITORY / "tests"
FLOORS = [  # the lowest first: a file imports from its own floor and from those below, wherever the statement stands
    {"runtime.errors", "runtime.types", "runtime.thresholds"},
    {"runtime.files", "runtime.supervision", "runtime.progress", "runtime.launch"},
    {"runtime.images", "runtime.views"},
    {"runtime.engines"},
    {"runtime.inspection"},
    {"runtime.bulk"},
    {"runtime.serving"},
    {"runtime.cli"},
    {"types", "distributed", "discovery"},
    {"metrics", "results"},
    {"backbones"},
    {"data", "prompts"},
    {"datasets", "annotations", "knowledge", "components", "volumes"},
    {"methods"},
    {"engine", "heads"},
    {"report", "inspection", "benchmark", "sweep", "importers"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
ENTRANCES = {
    "__init__",
    "__main__",
    "runtime.__init__",
    "runtime.__main__",
}  # which name what lies above: `load`, and the verbs
LOOSE = 8
LINES = 450
LONG = {"afclip_lightning/datasets/procedural.py"}  # one subject: the drawn products

IMPORTED_AS = {"pillow": {"PIL"}, "fastapi": {"fastapi", "starlette", "pydantic"}, "uvicorn": {"uvicorn", "h11"}}
"""What packages of the runtime bring, where that is not a module of their name."""
WITH_AN_EXTRA = {  # files of the runtime that need an extra as soon as they are imported
    "files.yaml_loader": {"yaml"},  # of afclip_lightning, which reads YAML and Parquet through `files`
    "images.tiff": {"tifffile"},
    "serving": {"fastapi", "h11", "pydantic", "python_multipart", "starlette", "uvicorn"},
}
BY_LIGHTNING = {"yaml", "pyarrow"}


def module_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Yields the names in import statements, including those for type checkers and inside functions.

    Args:
        tree: Syntax tree of a file.
        package: The package that the file lies in, which relative imports start from.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            start = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def edges() -> Iterator[tuple[str, str]]:
    """Yields pairs of modules of the package: the importing and the imported one."""
    for module, tree in TREES.items():
        package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
        for name in imported(tree, package):
            target = name if name in MODULES else name.rpartition(".")[0]  # a module, or something in it
            if target in MODULES and target != module:
                yield module, target


EDGES = set(edges())


def room(module: str) -> str:
    """Returns the top folder or top module that contains a module, with the package's name first for the runtime."""
    package, name = [*module.split("."), "__init__"][:2]
    return name if package == NAME else f"runtime.{name}"


def level(module: str) -> int:
    return LEVEL.get(room(module), -1)  # the package itself holds its version


def test_no_import_points_up() -> None:
    rooms = {room(module) for module in MODULES} - ENTRANCES
    assert rooms <= LEVEL.keys(), f"on no floor: {sorted(rooms - LEVEL.keys())}"
    up = {
        f"{source} imports {target}"
        for source, target in EDGES
        if room(source) not in ENTRANCES and (room(target).endswith("__main__") or level(target) > level(source))
    }
    assert up == set()


def test_no_files_import_each_other() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for source, target in EDGES:
        if source != NAME:  # it names `load` for type checkers
            graph[source].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))


def brought(extra: str) -> set[str]:
    """Returns the modules of the packages of an extra of the runtime; for "", of those that it always needs."""
    names = {normal(requirement.name) for requirement in runtime_project()[extra]}
    return set().union(*(IMPORTED_AS.get(name, {name.replace("-", "_")}) for name in names))


def on_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields the statements that run when a file is imported, without those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield node
            yield from on_import(node)


def test_the_runtime_imports_what_it_declares_and_extras_where_they_are_needed() -> None:
    always = {RUNTIME, *sys.stdlib_module_names, *brought("")}
    extras = set().union(*(brought(extra) for extra in runtime_project())) - brought("") | BY_LIGHTNING
    unknown, at_once = set(), set()
    for module, tree in TREES.items():
        if module.split(".")[0] != RUNTIME:
            continue
        place = module.removeprefix(RUNTIME + ".")
        with_extra = {
            name for start, names in WITH_AN_EXTRA.items() if f"{place}.".startswith(f"{start}.") for name in names
        }
        body = ast.Module([node for node in on_import(tree) if isinstance(node, (ast.Import, ast.ImportFrom))], [])
        unknown |= {(module, name) for name in packages_of(tree) - always - extras}
        at_once |= {(module, name) for name in packages_of(body) & extras - with_extra}
    assert unknown == set(), "declared neither in afclip_runtime/pyproject.toml nor an extra there"
    assert at_once == set(), "an extra: import it inside the function that needs it"


def packages_of(tree: ast.AST) -> set[str]:
    """Returns the packages that import statements name."""
    return {name.split(".")[0] for name in imported(tree, "")}


def test_few_modules_lie_loose_at_the_top() -> None:
    for package in PACKAGES:
        loose = {path.stem for path in (REPOSITORY / package).glob("*.py")} - ENTRANCES
        assert len(loose) <= LOOSE, sorted(loose)


def test_no_file_is_long() -> None:
    lines = {
        path.relative_to(REPOSITORY).as_posix(): len(path.read_text("utf-8").splitlines()) for path in MODULES.values()
    }
    long = {path for path, count in lines.items() if count > LINES} - LONG
    assert not long, {path: lines[path] for path in long}


def test_methods_are_found_not_listed() -> None:
    """Adding a method needs no edit of another file."""
    shared = {f"{NAME}.methods", f"{NAME}.methods.base", f"{NAME}.methods.beside"}
    named = {
        f"{source} imports {target}"
        for source, target in EDGES
        if target.startswith(f"{NAME}.methods.") and target not in shared
    }
    assert named == set()


@pytest.mark.slow
def test_no_test_imports_from_another() -> None:
    tests = {module_of(path) for path in TESTS.rglob("test_*.py")}
    found = [
        f"{path.relative_to(REPOSITORY)} imports {name}; what tests share lies in tests/support"
        for path in TESTS.rglob("*.py")
        for name in imported(ast.parse(path.read_text(encoding="utf-8")), module_of(path.parent / "__init__.py"))
        if name in tests or name.rpartition(".")[0] in tests
    ]
    assert found == []
