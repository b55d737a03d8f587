"""One look: the report, the page of `serve` and the documentation share readable colours and fonts."""

import re
from typing import TYPE_CHECKING

import pytest

from tests.support import REPOSITORY
from tests.support.accessibility import faint

if TYPE_CHECKING:
    from playwright.sync_api import Page

REPORT = (REPOSITORY / "afclip_lightning/web/report.css").read_text(encoding="utf-8")
SERVE = (REPOSITORY / "afclip_runtime/serving/web/serve.css").read_text(encoding="utf-8")
DOCS = (REPOSITORY / "docs/assets/site.css").read_text(encoding="utf-8")
OF_DOCS = {
    "--md-default-bg-color": "--page",
    "--md-default-fg-color": "--ink",
    "--md-default-fg-color--light": "--soft",
    "--md-accent-fg-color": "--anomalous",
}
MODES = ("light", "dark")


def colours(sheet: str, mode: str) -> dict[str, str]:
    """Returns the colours of a style sheet of a page by name, in one of its two modes."""
    light, _, dark = sheet.partition("@media (prefers-color-scheme: dark)")
    block = (light if mode == "light" else dark).partition("}")[0]
    return dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})\b", block))


def luminance(colour: str) -> float:
    """Returns the relative luminance of a colour, as WCAG 2.2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Returns the contrast ratio of two colours, from 1 to 21."""
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("mode", MODES)
def test_the_report_and_the_page_of_serve_have_the_same_colours(mode: str) -> None:
    report, serve = colours(REPORT, mode), colours(SERVE, mode)
    shared = report.keys() & serve.keys()
    assert shared >= {"--page", "--card", "--ink", "--soft", "--line", "--anomalous", "--normal", "--accent"}
    assert {name: report[name] for name in shared} == {name: serve[name] for name in shared}


@pytest.mark.parametrize(("mode", "scheme"), [("light", "default"), ("dark", "slate")])
def test_the_documentation_has_the_colours_of_the_report(mode: str, scheme: str) -> None:
    (block,) = re.findall(rf'data-md-color-scheme="{scheme}"\] {{(.*?)}}', DOCS, re.DOTALL)
    of_docs = dict(re.findall(r"(--md[\w-]+): (#[0-9a-f]{6})\b", block))
    report = colours(REPORT, mode)
    assert {name: of_docs[name] for name in OF_DOCS} == {name: report[other] for name, other in OF_DOCS.items()}


def test_all_have_the_fonts_of_the_machine() -> None:
    (font,) = set(re.findall(r"system-ui[^;]*serif", REPORT + SERVE + DOCS))
    assert font.startswith("system-ui")
    assert not re.search(r"@import|@font-face|https?:", REPORT + SERVE + DOCS)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sheet", [REPORT, SERVE], ids=["report", "serve"])
def test_text_stands_out_from_what_lies_below(sheet: str, mode: str) -> None:
    of = colours(sheet, mode)
    for text in ("--ink", "--soft", "--anomalous", "--normal", "--accent"):
        for below in ("--page", "--card"):
            assert contrast(of[text], of[below]) >= 4.5, (text, below)  # WCAG 2.2, level AA


def test_contrast_is_that_of_known_pairs() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.browser
def test_text_that_stands_out_too_little_is_found(page: "Page") -> None:
    page.set_content(
        "<body style='background: #ffffff'><p style='color: #767676'>enough</p><p style='color: #777777'>faint</p>"
        "<p style='color: #949494; font-size: 24px'>large</p><p style='opacity: 0.5'>half</p>"
        "<p style='opacity: 0'>unseen</p><div style='background: #000000'><p style='color: #555555'>dark</p></div>"
        "<style>::placeholder { color: #aaaaaa }</style><input placeholder='hint'></body>"
    )
    assert [line.rpartition(": ")[2] for line in faint(page)] == ["faint", "half", "dark", "hint"]
