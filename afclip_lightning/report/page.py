"""The parts that all pages share: templates, and pictures as text."""

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
        image: Path of the image.
        score: Image score.
        status: `anomalous`, `normal`, or empty if unknown.
        picture: Data URI of the image with its drawings; empty if it is not available.
        map: Data URI of its coloured anomaly map, an overlay of the picture; empty if there is none.
        outline: Outline of its mask as an SVG path in the unit square; empty if there is none.
        note: Further note.
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
        """Returns the end of the path, long enough to identify the image."""
        return shown("/".join(Path(self.image).parts[-2:]))


@dataclass(frozen=True)
class Group:
    """Cards that are shown together.

    Attributes:
        title: Title of the group.
        note: Number of the cards, or how they were chosen.
        cards: The cards.
    """

    title: str
    note: str
    cards: list[Card]


def render(template: str, **values: Any) -> str:
    """Returns a page.

    Args:
        template: Name of the template.
        values: Values of the template. Every text is escaped.
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
    # the browser runs only this script, so no name from a file can inject another one
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(script=Markup(script), script_hash=script_hash, **values)


def percent(value: float | None) -> str:
    """Returns a share in percent; `n/a` for `None`."""
    return "n/a" if value is None else f"{100 * value:.1f}"


def score_text(value: float) -> str:
    """Returns a score with four significant digits, including trailing zeros."""
    return f"{value:#.4g}"


def data_uri(jpeg: bytes) -> str:
    """Returns a JPEG as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def inside(folder: Path, name: str) -> Path | None:
    """Returns a file of a folder by its name, links followed; `None` if it lies outside.

    A page holds only files of its folder.

    Args:
        folder: Folder of the page.
        name: Path relative to the folder, as stated in a file of the folder.
    """
    try:
        path, root = (folder / name).resolve(), folder.resolve()
    except (OSError, ValueError, RuntimeError):  # a loop of links, a name that no file can have
        return None
    return path if path.is_relative_to(root) else None


def _printable(value: Any) -> Any:
    """Returns plain text in printable form, because names of files may not be printable."""
    return "\n".join(map(shown, value.split("\n"))) if type(value) is str else value
