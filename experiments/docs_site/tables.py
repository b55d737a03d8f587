"""Writes the tables of methods, datasets and papers into the pages that show them.

python -m experiments.docs_site.tables
"""

import textwrap
from collections.abc import Callable, Iterable

from afclip_runtime.files import write_text
from experiments.docs_site import facts, references
from experiments.docs_site.repository import ROOT
from experiments.pages import table_row, with_part

SCRIPT = "experiments/docs_site/tables.py"


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    """Returns a Markdown table; the headings are one string, separated by bars."""
    titles = [title.strip() for title in head.split("|")]
    return "\n".join([table_row(titles), "|---" * len(titles) + "|", *map(table_row, rows)]) + "\n"


def code(repository: str) -> str:
    """Returns a link to a repository on GitHub, in Markdown."""
    return f"[{repository}](https://github.com/{repository})" if repository else ""


def methods(pages: str) -> str:
    """Returns the table of methods.

    Args:
        pages: Path to the folder of their pages; what has a page there is a link.
    """
    rows = []
    for cls in facts.method_classes():
        name, paper = facts.page_name(cls), facts.paper_of(cls)
        title = f"[{cls.title}]({pages}{name}.md)" if (ROOT / f"docs/methods/{name}.md").is_file() else cls.title
        numbers = [paper.title, f"[{paper.arxiv}]({paper.address})"] if paper else ["", ""]
        trains = "yes" if facts.trains(cls) else "no"
        rows.append([title, *numbers, code(cls.official_code), facts.normal_images(cls), trains, cls.parity])
    return table("method | paper | arXiv | official code | normal images | trains | compared with", rows)


def datasets() -> str:
    """Returns the table of datasets."""
    rows = []
    for data in facts.datasets():
        paper = facts.paper_of(data)
        names = [f"`{facts.class_of(data)}`", f"`{data.folder or data.name}`", data.title]
        images = [str(len(data.find_categories())), facts.test_images(data), data.labels]
        rows.append([*names, *images, facts.where(data), data.licence, paper.in_short if paper else ""])
    return table("class | folder | dataset | categories | test images | labels | from | licence | paper", rows)


def datasets_in_short(page: str) -> str:
    """Returns the names of all datasets, with a link to their table, as one paragraph.

    Args:
        page: Path to the page with the table of datasets.
    """
    titles = [data.title for data in facts.datasets()]
    text = (
        f"{len(titles)} datasets are supported: {' · '.join(titles)}. [Datasets]({page}) has the test images, "
        "labels, source, licence and paper of each."
    )
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def papers() -> str:
    """Returns the list of papers, a section per kind."""
    parts = []
    for section, title in references.SECTIONS.items():
        found = [paper for paper in references.papers().values() if paper.section == section]
        lines = [f"- {paper.citation}" for paper in sorted(found, key=lambda paper: paper.authors[0].split()[-1])]
        parts.append("\n".join([f"## {title}", "", *lines]))
    return "\n" + "\n\n".join(parts) + "\n\n"


PARTS: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("README.md", "methods", lambda: methods("docs/methods/")),
    ("README.md", "datasets", lambda: datasets_in_short("data/README.md")),
    ("docs/methods/index.md", "methods", lambda: methods("")),
    ("data/README.md", "datasets", datasets),
    ("docs/references.md", "papers", papers),
)


def written(path: str, name: str, part: Callable[[], str]) -> str:
    """Returns a page with one of its parts replaced.

    Raises:
        ValueError: The page has no such part.
    """
    return with_part((ROOT / path).read_text(encoding="utf-8"), name, SCRIPT, part())


if __name__ == "__main__":
    for part in PARTS:
        write_text(ROOT / part[0], written(*part))
