"""Files of the repository in the site: pages link to them by their paths, as on the repository's web view."""

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "data/README.md": "datasets.md"}
SHOWN = "repository"  # the folder of the site that shows all other files that pages link to
CODE_OR_LINK = re.compile(
    r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)[ \t]*$"
    r"|(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`)"
    r"|(?P<before>\]\(|\b(?:src|href)=\")(?P<target>[^)\s\"]+)",
    re.MULTILINE | re.DOTALL,
)


def with_links(text: str, change: Callable[[str], str]) -> str:
    """Returns Markdown with each link's target changed; links in code stay."""

    def replace(match: re.Match[str]) -> str:
        return match[0] if match["target"] is None else match["before"] + change(match["target"])

    return CODE_OR_LINK.sub(replace, text)


def links(text: str) -> Iterator[str]:
    """Yields the target of each link of a Markdown text."""
    return (match["target"] for match in CODE_OR_LINK.finditer(text) if match["target"] is not None)


def is_local(target: str) -> bool:
    """Returns whether a link goes to a file, and not to an address or a place of the same page."""
    parts = urlsplit(target)
    return not parts.scheme and not parts.netloc and bool(parts.path)


def resolved(source: str, target: str) -> tuple[str, str]:
    """Returns the path in the repository that a link of the file `source` leads to, and its fragment."""
    parts = urlsplit(target)
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), parts.path)), parts.fragment


def page_of(path: str) -> str:
    """Returns the page of the site that shows a file of the repository."""
    if path.startswith("docs/tutorials/") and path.endswith(".py"):
        return str(Path(path.removeprefix("docs/")).with_suffix(".md"))
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path in PAGES:
        return PAGES[path]
    return f"{SHOWN}/{path}" if path.endswith(".md") else f"{SHOWN}/{path}.md"


def source_of(page: str) -> str:
    """Returns the file of the repository that a page of the site shows."""
    for path, name in PAGES.items():
        if page == name:
            return path
    if page.startswith(f"{SHOWN}/"):
        path = page.removeprefix(f"{SHOWN}/")
        return path if (ROOT / path).is_file() else path.removesuffix(".md")
    return f"docs/{page}"


def for_site(text: str, source: str) -> str:
    """Returns Markdown of the file `source` with links that lead to pages of the site."""
    here = posixpath.dirname(page_of(source))

    def change(target: str) -> str:
        if not is_local(target):
            return target
        path, fragment = resolved(source, target)
        page = posixpath.relpath(page_of(path), here or ".")
        return f"{page}#{fragment}" if fragment else page

    return with_links(text, change)


def shown_files(sources: list[str]) -> list[str]:
    """Returns the files outside of docs/ that these files link to, and those that they link to in turn.

    Raises:
        FileNotFoundError: A link leads to no file of the repository.
    """
    found: dict[str, None] = {}
    waiting = list(sources)
    while waiting:
        source = waiting.pop()
        if not source.endswith(".md"):
            continue
        for target in filter(is_local, links((ROOT / source).read_text(encoding="utf-8"))):
            path, _ = resolved(source, target)
            if path.startswith("docs/") or path in PAGES or path in found:
                continue
            if not (ROOT / path).is_file():
                raise FileNotFoundError(f"{source} links to {target}, and there is no file {path}")
            found[path] = None
            waiting.append(path)
    return list(found)


def as_page(path: str) -> str:
    """Returns the Markdown of the page that shows a file."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    fence = "`" * (3 + max((len(ticks) for ticks in re.findall(r"^`{3,}", text, re.MULTILINE)), default=0))
    return f"# {path}\n\n{fence}{Path(path).suffix[1:]}\n{text.rstrip()}\n{fence}\n"
