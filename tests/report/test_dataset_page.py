"""The page and the contact sheet of a dataset: texts, escaping, drawings, and a real browser."""

import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from afclip_lightning.cli.datasets import main
from afclip_lightning.data.overview import Overview, look_over
from afclip_lightning.report import contact_sheet, dataset_page
from afclip_lightning.report.charts import HEIGHT, STRIP_WIDTH, bars, strip_path, strip_place
from afclip_lightning.report.contact_sheet import GAP, LABEL, LINE, TILE, share
from tests.support.accessibility import faint, faults_of
from tests.support.parts import Parts, save

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOSTILE = '<script>alert(1)</script> & "x"\u202e\udcff'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two categories with a defect each, small in one and large in the other."""
    root = tmp_path / "parts"
    for category, side in (("bolt", 6), ("nut", 100)):
        for name in ("train/good/0", "test/good/0", "test/good/1", "test/crack/0"):
            save(root / category / f"{name}.png", np.full((120, 160), 128, np.uint8))
        mask = np.zeros((120, 160), np.uint8)
        mask[10 : 10 + side, 20 : 20 + side] = 255
        save(root / category / "ground_truth/crack/0_mask.png", mask)
    return root


@pytest.fixture
def overview(root: Path) -> Overview:
    return look_over(Parts(root))


def test_the_page_says_what_is_in_the_set(overview: Overview) -> None:
    page = dataset_page.render(overview)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.partition("<body>")[2]))
    for said in (
        "images 8 categories 2 normal 6 anomalous 2 with a mask 2",
        "train, normal test, normal test, anomalous anomalous in %",
        "bolt 1 2 1 25.0",
        "160 × 120 8",
        "8 bits, grey 8",
        "2 of 2 masks measured",
        "bolt all 1 0.19 % 0.19 % 0.19 %",
        "nut all 1 52 % 52 % 52 %",
        "test, anomalous 1 image",
    ):
        assert said in text, said
    assert "mark less than that" not in text  # than a patch


def test_remarks_are_shown(overview: Overview) -> None:
    bolt = next(group for group in overview.groups if group.marked)
    tiny = replace(overview, groups=[replace(bolt, marked=(0.0, 1e-5, 1e-4, 0.5))], problems=["a: torn"] * 50)
    page = dataset_page.render(tiny)
    assert "<strong>2 masks mark less than that</strong>" in page
    assert "<strong>1 mask is empty</strong>" in page
    assert "… and 10 more." in page
    bare = replace(overview, groups=[replace(bolt, marked=(), shown=())], masks=0)
    assert "There are no masks" in dataset_page.render(bare)
    assert "1 of 6 groups are shown" in dataset_page.render(tiny)


def test_names_from_outside_are_escaped_and_nothing_is_fetched(overview: Overview) -> None:
    group = overview.groups[0]
    sample = replace(group.shown[0].sample, image_path=Path(f"/x/{HOSTILE.replace('/', '_')}.png"))
    look = replace(group.shown[0], sample=sample, problem=HOSTILE)
    evil = replace(
        overview,
        name=HOSTILE,
        groups=[replace(group, category=HOSTILE, defect_type=HOSTILE, shown=(look,), marked=(0.1,))],
        counts={HOSTILE: Counter({("test", "anomalous"): 1})},
        endings=Counter({HOSTILE: 1}),
        problems=[HOSTILE],
        notes=[HOSTILE],
    )
    page = dataset_page.render(evil)
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert page.count("<script>") == 1
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert all("alt=" in tag for tag in re.findall(r"<img[^>]*>", page))
    contact_sheet.draw(evil)


def test_sizes_are_named_by_how_many_have_them(overview: Overview) -> None:
    many = replace(overview, sizes=Counter({(100 + i, 50): 20 - i for i in range(12)}))
    page = dataset_page.render(many)
    assert "100 × 50" in page
    assert "4 others" in page
    assert "Longer side" in page
    assert "Longer side" not in dataset_page.render(overview)  # all of one size


def test_shares_are_read_without_an_exponent() -> None:
    values = (0.0, 8.3e-8, 0.000731, 0.0178, 0.5, 0.994, 0.9951, 1.0)
    assert [share(value) for value in values] == [
        "0 %", "0.0000083 %", "0.073 %", "1.8 %", "50 %", "99 %", "100 %", "100 %",
    ]  # fmt: skip


def test_dots_lie_on_an_axis_of_powers_of_ten() -> None:
    assert [strip_place(share, 4) for share in (0, 1e-5, 1e-4, 1e-2, 1)] == [0, 0, 0, STRIP_WIDTH / 2, STRIP_WIDTH]
    assert strip_path([1e-2, 1e-2, 1], 4).count("M") == 2  # equal ones are one


def test_bars_have_the_height_of_their_counts() -> None:
    drawn = bars({10.0: 4, 20.0: 1, 42.0: 8})
    assert (drawn.low, drawn.high, drawn.peak) == (10, 42, 8)
    heights = [float(size) for size in re.findall(r"v-([\d.]+)h", drawn.path)]
    assert heights == [HEIGHT / 2, round(HEIGHT / 8, 1), HEIGHT]
    assert bars({3.0: 2}).path.count("M") == 1


def yellow(sheet: Image.Image) -> np.ndarray:
    """Returns the pixels of a sheet that have about the colour of an outline, `[H, W]`."""
    return (np.abs(np.asarray(sheet).astype(int) - LINE) < 60).all(axis=-1)


def test_the_sheet_outlines_the_mask_where_it_is(overview: Overview) -> None:
    rows = {group.category: group for group in overview.groups if group.marked}
    found = yellow(contact_sheet.draw(replace(overview, groups=[rows["nut"]])))
    ys, xs = np.nonzero(found)
    scale, left, top = TILE / 160, LABEL + GAP, contact_sheet.TITLE + contact_sheet.HEADING
    inset = (TILE - round(120 * scale)) // 2
    assert abs(xs.min() - (left + 20 * scale)) < 5
    assert abs(xs.max() - (left + 120 * scale)) < 5
    assert abs(ys.min() - (top + inset + 10 * scale)) < 5
    assert found.sum() > 100


def test_the_sheet_grows_with_what_it_shows(overview: Overview) -> None:
    sheet = contact_sheet.draw(overview)
    twice = [replace(group, category=f"{group.category} {i}") for i in range(12) for group in overview.groups]
    grown = contact_sheet.draw(replace(overview, groups=twice))
    assert sheet.height < grown.height < 4 * grown.width  # in columns
    assert grown.width > 2 * sheet.width
    long = [replace(group, category="c" * 400, defect_type="a word " * 60) for group in overview.groups]
    assert contact_sheet.draw(replace(overview, groups=long, name="n" * 999)).width == sheet.width


def test_a_broken_file_has_a_place_that_says_so(root: Path) -> None:
    (root / "bolt/train/good/0.png").write_text("no image")
    found = look_over(Parts(root))
    sheet = np.asarray(contact_sheet.draw(found))
    assert (sheet == contact_sheet.LOUD).all(axis=-1).any()
    assert "cannot be read" in dataset_page.render(found)


def run(root: Path, *options: str) -> int:
    return main(["show", "Folder", "--root", str(root / "bolt"), "--normal_dir", "test/good", *options])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a command runs in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command(root: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--abnormal_dir", "test/crack", "--mask_dir", "ground_truth/crack"]
    assert run(root, *given, "--out", "out", "--per_type", "1") == 0
    assert capsys.readouterr().out == "Page:  out/dataset.html\nSheet: out/contact_sheet.png\n"
    first = [(here / "out" / name).read_bytes() for name in ("dataset.html", "contact_sheet.png")]
    assert sorted(os.listdir("out")) == ["contact_sheet.png", "dataset.html"]
    assert run(root, *given, "--out", "out", "--per_type", "1", "--threads", "3") == 0
    assert first == [(here / "out" / name).read_bytes() for name in ("dataset.html", "contact_sheet.png")]
    assert run(root) == 0
    assert Path("shown/bolt/dataset.html").is_file()
    (root / "bolt/test/good/1.png").write_text("no image")
    assert run(root) == 1
    assert "Not read: 1. The page names them; `datasets check` looks at every file." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "parts/bolt/sheet"], "lies in the dataset"),
        (["--per_type", "0"], "from 1 to 100"),
        (["--seed", "-1"], "0 or more"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_mistakes_are_one_message(
    options: list[str], message: str, root: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = run(root, *options)
    except SystemExit as error:  # of a number that is out of range
        code = error.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert os.listdir(here) == ["parts"]


def test_no_folder_is_left_where_there_is_nothing_to_show(here: Path) -> None:
    assert main(["show", "Folder", "--root", "absent", "--normal_dir", "good"]) == 2
    assert not os.listdir(here)


@pytest.mark.browser
@pytest.mark.parametrize("width", [420, 1280])
def test_the_page_in_a_browser(root: Path, tmp_path: Path, page: "Page", width: int) -> None:
    long = root / f"bolt/test/good/{'long name ' * 12}.png"
    save(long, np.full((20, 900), 90, np.uint8))
    out = tmp_path / "out"
    out.mkdir()
    dataset_page.write(out, look_over(Parts(root)))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.set_viewport_size({"width": width, "height": 900})
    page.goto((out / "dataset.html").as_uri())
    assert {url.partition(":")[0] for url in requests} <= {"file", "data"}
    assert page.title() == "Dataset · parts"
    assert faults_of(page) == []
    assert faint(page) == []
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") == width  # wide tables scroll by themselves
    boxes = [box for one in page.locator("figure.case").all() if (box := one.bounding_box())]
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            apart = (
                a["x"] + a["width"] <= b["x"] or b["x"] + b["width"] <= a["x"]
                or a["y"] + a["height"] <= b["y"] or b["y"] + b["height"] <= a["y"]
            )  # fmt: skip
            assert apart
    outline = page.locator(".picture svg").first
    assert outline.is_visible()
    page.locator("#outlines").uncheck()
    assert not outline.is_visible()
    heading = page.locator("#areas thead button", has_text="median")
    heading.click()
    assert page.locator("#areas tbody tr").first.locator("td").first.inner_text() == "bolt"
    heading.click()
    assert page.locator("#areas tbody tr").first.locator("td").first.inner_text() == "nut"
