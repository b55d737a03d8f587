"""The papers that the toolkit builds on, from docs/references.bib."""

import re
from dataclasses import dataclass
from functools import cache

from experiments.docs_site.repository import ROOT

BIB = ROOT / "docs/references.bib"
SECTIONS = {
    "methods": "Methods",
    "datasets": "Datasets",
    "backbones": "Backbones",
    "components": "Parts of methods, and tools",
    "metrics": "Metrics and tests of significance",
    "thresholds": "Thresholds and drift",
}


@dataclass(frozen=True)
class Paper:
    """One entry of the bibliography.

    Attributes:
        key: Its BibTeX key.
        section: Section of the page, one of `SECTIONS`.
        title: Title.
        authors: Authors in order.
        year: Year of publication.
        venue: Where it was published; empty for a preprint.
        arxiv: arXiv id; empty where none is known.
        doi: DOI; empty if there is none.
    """

    key: str
    section: str
    title: str
    authors: tuple[str, ...]
    year: str
    venue: str = ""
    arxiv: str = ""
    doi: str = ""

    @property
    def address(self) -> str:
        """Returns the address of the paper; empty if it is not known."""
        if self.arxiv:
            return f"https://arxiv.org/abs/{self.arxiv}"
        return f"https://doi.org/{self.doi}" if self.doi else ""

    @property
    def linked_title(self) -> str:
        """Returns the title in Markdown, as a link if there is an address."""
        return f"[{self.title}]({self.address})" if self.address else self.title

    @property
    def in_short(self) -> str:
        """Returns first author, venue and year as a link, in Markdown."""
        others = " et al." if len(self.authors) > 2 else ""
        names = " and ".join(name.split()[-1] for name in self.authors[: 1 if others else 2])
        text = " ".join(filter(None, [f"{names}{others},", self.venue, self.year]))
        return f"[{text}]({self.address})" if self.address else text

    @property
    def citation(self) -> str:
        """Returns authors, linked title, venue, year and id as one line of Markdown."""
        names = ", ".join(self.authors).replace(", others", " et al.")
        where = ", ".join(filter(None, [self.venue, self.year, f"arXiv {self.arxiv}" if self.arxiv else ""]))
        return f"{names.removesuffix('.')}. {self.linked_title}. {where}."


@cache
def papers() -> dict[str, Paper]:
    """Returns every paper by its key, in the file's order."""
    entries = re.findall(r"^@\w+\{(\w+),(.*?)\}\n(?=\n|\Z)", BIB.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return {key: _paper(key, dict(re.findall(r"(\w+) = \{(.*?)\}(?=,|\s*$)", rest))) for key, rest in entries}


def _paper(key: str, fields: dict[str, str]) -> Paper:
    return Paper(
        key,
        fields["keywords"],
        fields["title"].replace("\\&", "&"),
        tuple(fields["author"].split(" and ")),
        fields["year"],
        fields.get("booktitle") or fields.get("journal") or "",
        fields.get("eprint", ""),
        fields.get("doi", ""),
    )
