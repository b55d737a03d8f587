"""Pages of the API: one per package, written from the docstrings of its modules."""

import ast
from collections.abc import Iterable
from pathlib import Path

from experiments.docs_site.repository import ROOT
from experiments.docs_site.tables import table

HEADER = "---\ntitle: {name}\nsearch:\n  boost: 0.3\n---\n\n"  # what a reader searches for is in a guide first
FOLDER = "api/"
PACKAGES = ("afclip_lightning", "afclip_runtime")


def pages() -> dict[str, str]:
    """Returns the Markdown of each page by its name: `api/PACKAGE.md`, and an index."""
    folders = [folder for name in PACKAGES for folder in [ROOT / name, *sorted((ROOT / name).rglob("*/"))]]
    shown = {dotted(folder): folder for folder in folders if modules_of(folder)}
    rows = [[f"[{name}]({name}.md)", summary(folder)] for name, folder in shown.items()]
    found = {f"{FOLDER}{name}.md": page(folder) for name, folder in shown.items()}
    return {f"{FOLDER}index.md": HEAD + table("package | what it is for", rows), **found}


HEAD = """# API

Every public class and function of both packages, from their docstrings. `afclip_lightning` trains and tests;
`afclip_runtime` judges images, and needs no torch.

"""


def navigation(names: Iterable[str]) -> list[object]:
    """Returns the navigation of these pages: the index, then a section per package, with short titles."""
    found: dict[str, list[object]] = {package: [] for package in PACKAGES}
    for name in names:
        package, _, rest = Path(name).stem.partition(".")
        if package in found:
            found[package].append({rest or "top level": name})
    return [f"{FOLDER}index.md", *({package: pages} for package, pages in found.items())]


def dotted(folder: Path) -> str:
    """Returns the name of a package."""
    return ".".join(folder.relative_to(ROOT).parts)


def modules_of(folder: Path) -> list[Path]:
    """Returns the public modules of a package."""
    return [path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")]


def code_of(folder: Path) -> ast.Module:
    """Returns the code of a package itself, that is of its `__init__.py`."""
    return ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))


def summary(folder: Path) -> str:
    """Returns the first paragraph of a package's docstring; empty without one."""
    return " ".join((ast.get_docstring(code_of(folder)) or "").partition("\n\n")[0].split())


def page(folder: Path) -> str:
    """Returns the Markdown of a package's page."""
    name, code = dotted(folder), code_of(folder)
    exported = exported_names(code)
    parts = [f"{HEADER.format(name=name)}# {name}\n"]
    if ast.get_docstring(code):
        options = "members: false" if exported else "heading_level: 2"  # what it exports is shown below, in its module
        parts.append(f"::: {name}\n    options: {{{options}}}\n")
    if exported:
        parts.append(f"`from {name} import …`: {', '.join(exported)}.\n")
    parts += [f"## {path.stem}\n\n::: {name}.{path.stem}\n" for path in modules_of(folder)]
    return "\n".join(parts)


def exported_names(code: ast.Module) -> list[str]:
    """Returns a link per public name that a package takes over from its modules and lists in `__all__`."""
    exported: set[str] = set()
    places = {}
    for node in ast.walk(code):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            exported = {name for name in ast.literal_eval(node.value) if not name.startswith("_")}
        elif isinstance(node, ast.ImportFrom):
            places |= {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return [
        f'<autoref identifier="{places[name]}" optional><code>{name}</code></autoref>'  # some have no docstring
        for name in sorted(exported & places.keys(), key=str.lower)
    ]
