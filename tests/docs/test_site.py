"""The built site in a real browser: with a keyboard, a screen reader, in both colours, on a phone, from disk."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import REPOSITORY
from tests.support.accessibility import faint, faults_of, unreachable
from tests.support.deploy import run

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PAGES = (
    "index",
    "methods/afclip",
    "methods/index",
    "results",
    "api/afclip_lightning.metrics",
    "tutorials/few_shot",
)
WIDTHS = (1280, 360)  # pixels, of a desktop and of a small phone
REACHED = "a[href], button, input, summary, [tabindex='0']"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site that `make docs` builds."""
    folder: Path = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(REPOSITORY)}
    run(sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder, cwd=REPOSITORY, env=environment)
    return folder


def open_page(page: "Page", site: Path, name: str, width: int = 1280, colours: str = "light") -> None:
    """Opens a page of the site from disk, as a reader with this screen and these colours does."""
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=colours, reduced_motion="reduce")  # type: ignore[arg-type]
    page.goto((site / f"{name}.html").as_uri())
    page.wait_for_selector(f"body[data-md-color-scheme='{'default' if colours == 'light' else 'slate'}']")


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_read(site: Path, page: "Page", name: str, width: int, colours: str) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    open_page(page, site, name, width, colours)
    assert {url.partition(":")[0] for url in requests} <= {"file", "data"}
    assert faults_of(page) == []
    assert faint(page) == []
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # tables and code scroll by themselves


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_keyboard_reaches_all_that_shows(site: Path, page: "Page", name: str, width: int) -> None:
    open_page(page, site, name, width)
    assert unreachable(page, REACHED) == []


def test_a_keyboard_opens_a_section(site: Path, page: "Page") -> None:
    open_page(page, site, "index")
    switch = page.get_by_role("button", name="Pages of Tutorials")
    link = page.locator("a[href='tutorials/few_shot.html']").first
    assert switch.get_attribute("aria-expanded") == "false"
    for key, opened in (("Enter", True), ("Space", False)):
        switch.press(key)
        link.wait_for(state="visible" if opened else "hidden")
        assert switch.get_attribute("aria-expanded") == str(opened).lower()


def test_a_keyboard_opens_the_navigation_of_a_phone(site: Path, page: "Page") -> None:
    open_page(page, site, "index", width=360)
    link = page.locator(".md-sidebar--primary a[href='start.html']")
    assert not link.is_visible()
    page.get_by_role("button", name="Navigation").press("Enter")
    link.wait_for()
    link.press("Enter")
    page.wait_for_url("**/start.html")
    assert unreachable(page, REACHED) == []


def test_the_search_works_from_disk(site: Path, page: "Page") -> None:
    open_page(page, site, "index")
    page.keyboard.press("/")
    page.keyboard.type("calibrate")
    first = page.locator(".md-search-result__link[href*='h=calibrat']").first
    first.wait_for()
    assert "/api/" not in (first.get_attribute("href") or "")  # a guide comes first
    assert faint(page) == []
    first.press("Enter")
    page.wait_for_url(lambda address: not address.endswith("index.html"))
    assert "calibrate" in page.locator("article").inner_text().lower()


def test_a_reader_chooses_the_colours(site: Path, page: "Page") -> None:
    open_page(page, site, "index")
    page.get_by_role("radio", name="Dark colours").press("Enter")
    page.wait_for_selector("body[data-md-color-scheme='slate']")
    page.goto((site / "results.html").as_uri())  # and the choice stays
    page.wait_for_selector("body[data-md-color-scheme='slate']")
