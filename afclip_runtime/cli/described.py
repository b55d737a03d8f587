"""Descriptions of modules, read from their files: a list of commands imports none of them."""

import ast
import importlib.util


def described(package: str, name: str, function: str) -> tuple[ast.Module, str] | None:
    """Returns the syntax tree of a module, and the first line of its docstring after the colon.

    Args:
        package: Package of the module.
        name: Name of the module in the package.
        function: Function that the module must define; otherwise the result is `None`.
    """
    spec = importlib.util.find_spec(f"{package}.{name}")
    assert spec is not None  # the module was listed
    assert spec.loader is not None
    tree = ast.parse(spec.loader.get_source(spec.name) or "")  # type: ignore[attr-defined]  # of files and zips
    if not any(isinstance(node, ast.FunctionDef) and node.name == function for node in tree.body):
        return None
    return tree, (ast.get_docstring(tree) or "").partition("\n")[0].partition(": ")[2].rstrip(".")
