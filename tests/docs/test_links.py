"""Links of README and docs lead to files of the repository: pages are also read there, not only on the site."""

import pytest

from experiments.docs_site import repository
from experiments.docs_site.built_links import faults
from tests.support import REPOSITORY
from tests.support.blocks import FILES

PAGES = sorted({path.relative_to(REPOSITORY).as_posix() for pattern in FILES for path in REPOSITORY.glob(pattern)})


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    targets = [target for target in repository.links(text) if repository.is_local(target)]
    assert [target for target in targets if not (REPOSITORY / repository.resolved(page, target)[0]).is_file()] == []


def test_links_in_code_are_none() -> None:
    text = '[a](x.md) `[b](y.md)`\n\n```text\n[c](z.md)\n```\n![d](d.png) <img src="e.png">\n'
    assert list(repository.links(text)) == ["x.md", "d.png", "e.png"]


def test_links_of_the_site_lead_to_its_pages() -> None:
    text = "[a](../data/README.md#b) [c](roi.md) [d](../configs/afclip_mvtec.yaml) [e](https://x.org) [f](#g)"
    found = repository.for_site(text, "docs/start.md")
    assert found == (
        "[a](datasets.md#b) [c](roi.md) [d](repository/configs/afclip_mvtec.yaml.md) [e](https://x.org) [f](#g)"
    )
    assert repository.for_site("[a](docs/roi.md)", "CONTRIBUTING.md") == "[a](roi.md)"
    assert repository.source_of("repository/configs/afclip_mvtec.yaml.md") == "configs/afclip_mvtec.yaml"


def test_a_built_page_may_load_nothing_from_a_network(tmp_path_factory: pytest.TempPathFactory) -> None:
    site = tmp_path_factory.mktemp("site")
    (site / "a.html").write_text(
        "<a href='b.html#there'></a><a href='b.html#not'></a><a href='c.html'></a><a href='https://x.org'></a>"
        "<img src='https://x.org/i.png'><link rel='canonical' href='https://x.org'>"
    )
    (site / "b.html").write_text("<h1 id='there'></h1>")
    (site / "s.css").write_text("@font-face { src: url(https://x.org/f.woff) }")
    assert faults(site) == [
        "a.html: loads https://x.org/i.png",
        "a.html: no b.html#not",
        "a.html: no c.html",
        "s.css: loads https://x.org/f.woff",
    ]
