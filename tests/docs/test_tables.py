"""Tables of methods, datasets and papers in the pages equal those generated from the classes and the bibliography."""

import re
from collections.abc import Callable

import pytest

from experiments.docs_site import facts, references, tables
from tests.support import REPOSITORY

ARXIV = re.compile(r"arXiv[ :]*(\d{4}\.\d{4,5})", re.IGNORECASE)


@pytest.mark.parametrize(
    ("path", "name", "part"), tables.PARTS, ids=[f"{path} {name}" for path, name, _ in tables.PARTS]
)
def test_a_table_is_what_the_classes_give(path: str, name: str, part: Callable[[], str]) -> None:
    page = (REPOSITORY / path).read_text(encoding="utf-8")
    assert page == tables.written(path, name, part), "write it again: python -m experiments.docs_site.tables"


def test_every_method_says_where_it_is_from() -> None:
    classes = facts.method_classes()
    assert len(classes) == len({cls.title for cls in classes}) > 20
    assert [cls.__name__ for cls in classes if not cls.parity or (cls.official_code and not cls.paper)] == []
    assert {facts.page_name(cls) for cls in classes} == {
        path.stem for path in (REPOSITORY / "afclip_lightning/methods").glob("*.py")
    } - {"__init__", "base", "beside"}


@pytest.mark.parametrize("cls", facts.method_classes(), ids=lambda cls: cls.__name__)
def test_the_page_of_a_method_names_its_paper_as_the_bibliography_does(cls: type) -> None:
    page = (REPOSITORY / f"docs/methods/{facts.page_name(cls)}.md").read_text(encoding="utf-8")
    paper = facts.paper_of(cls)
    if paper:
        assert paper.arxiv in page
    assert cls.official_code.lower() in page.lower()


def test_every_arxiv_id_that_is_named_stands_in_the_bibliography() -> None:
    known = {paper.arxiv for paper in references.papers().values()}
    files = [*REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("afclip_*/**/*.py"), REPOSITORY / "README.md"]
    named = {number: path for path in files for number in ARXIV.findall(path.read_text(encoding="utf-8"))}
    assert len(named) > 20
    assert {number: str(path) for number, path in named.items() if number not in known} == {}


def test_the_bibliography_is_read_whole() -> None:
    text = references.BIB.read_text(encoding="utf-8")
    papers = references.papers()
    assert len(papers) == len(re.findall(r"^@", text, re.MULTILINE))
    assert sum(len(paper.arxiv) > 0 for paper in papers.values()) == text.count("eprint = ")
    for paper in papers.values():
        assert paper.section in references.SECTIONS
        assert re.fullmatch(r"(19|20)\d\d", paper.year)
        assert not paper.arxiv or re.fullmatch(r"\d{4}\.\d{4,5}", paper.arxiv)


def test_the_docstring_of_a_class_names_the_arxiv_id_of_its_paper_alone() -> None:
    for cls in facts.method_classes():
        paper, numbers = facts.paper_of(cls), ARXIV.findall(cls.__doc__ or "")
        assert set(numbers) <= {paper.arxiv if paper else ""}, cls.__name__


def test_published_counts_of_the_table() -> None:
    rows = {data.name: facts.test_images(data) for data in facts.datasets()}
    assert rows["mvtec"] == "467 / 1,258"
    assert rows["mpdd"] == "176 / 282"
    assert rows["isic"] == "0 / 379"
    assert rows["lag"] == ""
