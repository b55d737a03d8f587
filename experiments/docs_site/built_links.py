"""Checks of the built pages: every link has a target, and no content comes from a network."""

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

SHOWN = {"script": "src", "img": "src", "source": "src", "iframe": "src", "link": "href"}  # what a browser loads itself
NOT_LOADED = {"canonical", "prev", "next", "edit", "alternate"}  # kinds of <link> that it does not


class Targets(HTMLParser):
    """The places of a page that links can lead to, and where its links lead.

    Attributes:
        places: The ids and names of elements.
        followed: Targets that a reader follows.
        loaded: Targets that the browser loads with the page.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.followed: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Records the content of one element."""
        values = {name: value for name, value in attrs if value}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        if tag in SHOWN:
            target = values.get(SHOWN[tag])
            if target and values.get("rel") not in NOT_LOADED:
                self.loaded.append(target)
        elif tag == "a" and "href" in values:
            self.followed.append(values["href"])


@cache
def targets_of(page: Path) -> Targets:
    """Returns the content of a page."""
    targets = Targets()
    targets.feed(page.read_text(encoding="utf-8"))
    return targets


def faults(site: Path) -> list[str]:
    """Returns a line per broken link of the built site, and per file that would come from a network."""
    found = []
    for page in sorted(site.rglob("*.html")):
        if page.name == "404.html":  # served from any place: its links begin at the site's root
            continue
        targets = targets_of(page)
        name = page.relative_to(site)
        found += [f"{name}: loads {target}" for target in targets.loaded if is_elsewhere(target)]
        local = [target for target in (*targets.followed, *targets.loaded) if not is_elsewhere(target)]
        found += [f"{name}: no {target}" for target in local if not leads_somewhere(page, target)]
    for style in sorted(site.rglob("*.css")):
        addresses = re.findall(r"(?:url\(|@import )['\"]?(https?:[^)'\"]*)", style.read_text(encoding="utf-8"))
        found += [f"{style.relative_to(site)}: loads {address}" for address in addresses]
    return found


def is_elsewhere(target: str) -> bool:
    """Returns whether a target is outside of the site."""
    parts = urlsplit(target)
    return bool(parts.netloc) or parts.scheme not in ("", "file")


def leads_somewhere(page: Path, target: str) -> bool:
    """Returns whether a file of the site, and the place in it, exist."""
    parts = urlsplit(target)
    file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    file = file / "index.html" if file.is_dir() else file
    if not file.is_file():
        return False
    place = unquote(parts.fragment)
    return not place or file.suffix != ".html" or place.startswith("__") or place in targets_of(file).places
