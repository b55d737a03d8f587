"""What a module says of itself, read from its file: a list of commands imports none of them."""

import ast
import importlib.util


def described(package: str, name: str, function: str) -> tuple[ast.Module, str] | None:
    """Returns a module's syntax tree, and what the first line of its docstring says after the colon.

    Args:
        package: Where the module lies.
        name: The module's name there.
        function: What it must define; a module without it is none of those that are listed, and gives `None`.
    """
    spec = importlib.util.find_spec(f"{package}.{name}")
    assert spec is not None  # it was listed
    assert spec.loader is not None
    tree = ast.parse(spec.loader.get_source(spec.name) or "")  # type: ignore[attr-defined]  # of files and zips
    if not any(isinstance(node, ast.FunctionDef) and node.name == function for node in tree.body):
        return None
    return tree, (ast.get_docstring(tree) or "").partition("\n")[0].partition(": ")[2].rstrip(".")
