"""What all pages are made of: templates, and pictures as text."""

import base64
import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from afclip_lightning.report import charts
from afclip_lightning.results import interval_text
from afclip_runtime.errors import shown


@dataclass(frozen=True)
class Card:
    """An image in a gallery.

    Attributes:
        image: Its path where it was found.
        score: Its image score.
        status: `anomalous`, `normal` or, where that is not known, empty.
        picture: Data URI of the image, with what is drawn in it; empty if it is not at hand.
        map: Data URI of its anomaly map in colours, to lie over the picture; empty if there is none.
        outline: Outline of its mask as an SVG path in the unit square; empty if there is none.
        note: What else is to be said of it.
    """

    image: str
    score: float
    status: str
    picture: str
    map: str = ""
    outline: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        """Returns the end of the path, enough to find it."""
        return shown("/".join(Path(self.image).parts[-2:]))


@dataclass(frozen=True)
class Group:
    """Cards that are shown together.

    Attributes:
        title: What they have in common.
        note: How many there are of them, or how they were chosen.
        cards: The cards.
    """

    title: str
    note: str
    cards: list[Card]


def render(template: str, **values: Any) -> str:
    """Returns a page.

    Args:
        template: Name of the template.
        values: What it shows; every text is escaped.
    """
    environment = Environment(
        loader=PackageLoader("afclip_lightning", "web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters |= {"percent": percent, "score": score_text, "interval": interval_text, "shell": shlex.join}
    environment.globals["plot"] = (charts.WIDTH, charts.HEIGHT)
    script = (Path(__file__).parents[1] / "web" / "report.js").read_text(encoding="utf-8")
    # of all scripts, the browser runs this one: no name from a file can smuggle in another
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(script=Markup(script), script_hash=script_hash, **values)


def percent(value: float | None) -> str:
    """Returns a share as a number of percent; `n/a` for none."""
    return "n/a" if value is None else f"{100 * value:.1f}"


def score_text(value: float) -> str:
    """Returns a score in four digits, those at the end too."""
    return f"{value:#.4g}"


def data_uri(jpeg: bytes) -> str:
    """Returns a JPEG as an address that holds it."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def inside(folder: Path, name: str) -> Path | None:
    """Returns a file of a folder by its name, links followed; `None` if it lies elsewhere: a page holds nothing else.

    Args:
        folder: The folder that the page is about.
        name: Path from there, as a file in the folder says it.
    """
    try:
        path, root = (folder / name).resolve(), folder.resolve()
    except (OSError, ValueError, RuntimeError):  # a loop of links, a name that no file can have
        return None
    return path if path.is_relative_to(root) else None


def _printable(value: Any) -> Any:
    """Returns plain text as it can be shown: names of files need not be."""
    return "\n".join(map(shown, value.split("\n"))) if type(value) is str else value
