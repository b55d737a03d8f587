"""Who imports whom."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.support import REPOSITORY

TESTS = REPOSITORY / "tests"


def imported(path: Path) -> Iterator[str]:
    """Yields what the import statements of a file name, wherever they stand in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_test_imports_from_another() -> None:
    tests = {path: ".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in TESTS.rglob("test_*.py")}
    found = [
        f"{path.relative_to(REPOSITORY)} imports {name}; what tests share lies in tests/support"
        for path in TESTS.rglob("*.py")
        for name in imported(path)
        if any(name == test or name.startswith(f"{test}.") for test in tests.values())
    ]
    assert found == []
