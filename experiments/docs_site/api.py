"""Pages of the API: one per package, written from the docstrings of its modules."""

from pathlib import Path

from experiments.docs_site.repository import ROOT

BEHIND_GUIDES = "---\nsearch:\n  boost: 0.3\n---\n\n"  # what a reader searches for is in a guide first
PACKAGES = ("afclip_lightning", "afclip_runtime")


def pages() -> dict[str, str]:
    """Returns the Markdown of each page by its name: `api/PACKAGE.md`, and an index."""
    folders = [folder for name in PACKAGES for folder in [ROOT / name, *sorted((ROOT / name).rglob("*/"))]]
    found = {f"api/{dotted(folder)}.md": text for folder in folders if (text := page(folder))}
    rows = [f"- [{name.removesuffix('.md')}]({name}.md)" for name in (Path(path).stem for path in found)]
    return {"api/index.md": "\n".join([HEAD, *rows, ""]), **found}


HEAD = """# API

Every public class and function of both packages, from their docstrings. `afclip_lightning` trains and tests;
`afclip_runtime` judges images, and needs no torch.
"""


def dotted(folder: Path) -> str:
    """Returns the name of a package."""
    return ".".join(folder.relative_to(ROOT).parts)


def page(folder: Path) -> str:
    """Returns the Markdown of a package's page; empty for a folder without modules."""
    modules = [path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")]
    if not modules:
        return ""
    name = dotted(folder)
    parts = [f"{BEHIND_GUIDES}# {name}\n"]
    if '"""' in (folder / "__init__.py").read_text(encoding="utf-8")[:3]:
        parts.append(f"::: {name}\n")
    parts += [f"## {path.stem}\n\n::: {name}.{path.stem}\n" for path in modules]
    return "\n".join(parts)
