"""One's own images, listed in a table."""

import json
from pathlib import Path

import pytest

from afclip_lightning.data.table import Table
from afclip_lightning.errors import DatasetError
from tests.layouts import write_image, write_mask

LINES = [
    {"image": "photos/2.jpg", "label": "anomalous", "mask": "masks/2.png", "category": "nut", "split": "test"},
    {"image": "photos/1.jpg", "label": "normal", "mask": "", "category": "nut", "split": "test"},
    {"image": "photos/0.jpg", "label": "0", "mask": "", "category": "nut", "split": "train"},
    {"image": "photos/3.jpg", "label": "Anomaly", "mask": "", "category": "bolt", "split": "test"},
]


def write_csv(root: Path, lines: list[dict[str, str]]) -> None:
    rows = [list(lines[0]), *(line.values() for line in lines)]
    (root / "images.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "parts"
    for i in range(4):
        write_image(root / f"photos/{i}.jpg")
    write_mask(root / "masks/2.png")
    write_csv(root, LINES)
    return root


def found(dataset: Table) -> list[tuple[str, str, int, str | None, bool]]:
    return [
        (s.category, s.image_path.name, s.label, s.mask_path and s.mask_path.name, s.mask_known)
        for s in dataset.samples("test")
    ]


EXPECTED = [("nut", "1.jpg", 0, None, True), ("nut", "2.jpg", 1, "2.png", True), ("bolt", "3.jpg", 1, None, False)]


def test_csv(root: Path) -> None:
    dataset = Table(root)
    dataset.check()
    assert (dataset.name, dataset.selected_categories()) == ("parts", ["nut", "bolt"])
    assert found(dataset) == EXPECTED
    assert [s.image_path.name for s in Table(root, categories=["nut"]).few_shot(1, seed=0)["parts", "nut"]] == ["0.jpg"]


def test_jsonl_says_the_same(root: Path) -> None:
    lines = [{**line, "label": int(line["label"][0].lower() == "a"), "mask": line["mask"] or None} for line in LINES]
    (root / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert found(Table(root, "list.jsonl")) == EXPECTED


def test_two_columns_are_enough(root: Path) -> None:
    write_csv(root, [{"label": "good", "image": "photos/1.jpg", "remark": "x"}])
    assert found(Table(root, name="M4")) == [("M4", "1.jpg", 0, None, True)]


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (1, {"image": "../outside.jpg"}, r"images\.csv, line 3: '../outside\.jpg' leads out of .*parts"),
        (1, {"image": "/etc/hostname"}, r"line 3: '/etc/hostname' leads out"),
        (0, {"mask": "../mask.png"}, r"line 2: '../mask\.png' leads out"),
        (1, {"image": "photos/9.jpg"}, r"line 3: there is no file .*photos/9\.jpg"),
        (1, {"image": "photos/2.jpg"}, r"line 3: .*photos/2\.jpg is already in an earlier line"),
        (1, {"image": ""}, r"line 3: there is no image\. Each image needs both"),
        (1, {"label": "bad"}, r"line 3: label must be one of 0, normal, .*; got 'bad'"),
        (1, {"split": "val"}, r"line 3: split must be one of train, test; got 'val'"),
        (3, {"category": "nut"}, r"images\.csv: .*photos/3\.jpg has no mask, but other images of 'nut' have one"),
    ],
)
def test_faulty_line_is_named(line: int, change: dict[str, str], message: str, root: Path) -> None:
    for name in ("outside.jpg", "mask.png"):
        write_image(root.parent / name)
    write_csv(root, [row | change if i == line else row for i, row in enumerate(LINES)])
    with pytest.raises(DatasetError, match=message):
        Table(root).samples("test")


def test_missing_column_is_named(root: Path) -> None:
    write_csv(root, [{"image": "photos/1.jpg", "kind": "good"}])
    with pytest.raises(DatasetError, match=r"images\.csv: has no column label\. Its first line must name"):
        Table(root).check()
    (root / "list.jsonl").write_text('{"image": "photos/1.jpg"}\n')
    with pytest.raises(DatasetError, match=r"list\.jsonl, line 1: there is no label"):
        Table(root, "list.jsonl").check()


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_line_that_is_no_object(text: str, root: Path) -> None:
    (root / "list.jsonl").write_text(f"\n{text}\n")
    with pytest.raises(DatasetError, match=r"list\.jsonl, line 2: "):
        Table(root, "list.jsonl").check()


def test_absent_table_and_other_kinds_of_files(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"parts/mine\.csv: cannot be read .*Restore the file"):
        Table(root, "mine.csv").check()
    with pytest.raises(ValueError, match=r"\.csv or a \.jsonl, got images\.xlsx"):
        Table(root, "images.xlsx")
