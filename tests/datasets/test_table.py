"""Your own images, listed in a table."""

import json
from pathlib import Path

import pytest

from afclip_lightning.data.doctor import examine
from afclip_lightning.datasets.table import Table
from afclip_runtime.errors import DatasetError
from tests.support.layouts import write_image, write_mask

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
def test_line_that_is_not_an_object(text: str, root: Path) -> None:
    (root / "list.jsonl").write_text(f"\n{text}\n")
    with pytest.raises(DatasetError, match=r"list\.jsonl, line 2: "):
        Table(root, "list.jsonl").check()


def test_absent_table_and_other_kinds_of_files(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"parts/mine\.csv: cannot be read .*Restore the file"):
        Table(root, "mine.csv").check()
    with pytest.raises(ValueError, match=r"\.csv or a \.jsonl, got images\.xlsx"):
        Table(root, "images.xlsx")


def text(root: Path, content: str | bytes, name: str = "images.csv") -> Table:
    """Returns the table with this content."""
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return Table(root, name)


ROWS = "image,label,note\nphotos/0.jpg,0,a\nphotos/1.jpg,0,b\nphotos/2.jpg,1,c\nphotos/3.jpg,1,d\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROWS.replace(",a", ',"a'), "line 2: a quote is not closed"),
        (ROWS.replace(",a", ',"a').replace(",c", ',c"'), "line 2: "),  # two mistakes that make one long cell
        (ROWS.replace(",d", ',"d'), "line 5: a quote is not closed"),
        (ROWS.replace(",note", ",label"), "the column 'label' occurs twice"),
        (ROWS.replace("image,", "image,image,", 1), "occurs twice"),
        (ROWS.replace(",b", ""), "line 3: has 2 cells, and there are 3 columns"),
        (ROWS.replace(",b", ",b,b"), "line 3: has 4 cells"),
        (ROWS.replace(",b", ",\0"), "line 3: holds NUL"),
        (ROWS.encode().replace(b",b", b",\xff"), "line 3: holds the byte 0xff"),
        (ROWS.replace(",b", "," + 200_000 * "b"), "line 3: cannot be read as CSV"),
        (ROWS.replace("photos/1.jpg", 200_000 * "b"), "line 3: cannot be read as CSV"),
        (ROWS.replace("photos/1.jpg", 100_000 * "b"), "line 3: .* names no file"),
        (
            ROWS.replace("photos/1.jpg", "./photos/0.jpg"),
            "line 3: .*photos/0.jpg is already in an earlier line. Remove",
        ),
        (ROWS.replace("photos/2.jpg", "./photos//0.jpg"), r"line 4: .*with another label: here 1, there 0 .*line 2\)"),
        (ROWS.replace("photos/2.jpg", "photos/x/../0.jpg"), "line 4: .*with another label"),
        (ROWS.replace("\n", "\r\n").replace(",b", ""), "line 3: has 2 cells"),
        ("\n\n" + ROWS.replace("photos/1.jpg,0", "photos/1.jpg,7"), "line 5: label must be one of"),
        (ROWS.replace(",a", ',"a\u2028\x85\nb"').replace("photos/1.jpg,0", "photos/1.jpg,7"), "line 4: label must be"),
        ("", "is empty"),
        ("image,label\n", "lists no image"),
    ],
)
def test_a_table_is_read_strictly(content: str | bytes, message: str, root: Path) -> None:
    with pytest.raises(DatasetError, match=rf"images\.csv.*{message}") as caught:
        text(root, content).samples("test")
    assert len(str(caught.value)) < 2000


def test_quoted_cells_are_fine(root: Path) -> None:
    dataset = text(root, ROWS.replace(",a", ',"a, ""b"" and c"').replace(",b", ',"two\nlines"'))
    assert len(dataset.samples("test")) == 4


def test_one_file_under_two_names_and_labels(root: Path) -> None:
    (root / "photos/link.jpg").symlink_to(root / "photos/0.jpg")
    (root / "photos/hard.jpg").hardlink_to(root / "photos/0.jpg")
    for name in ("link", "hard"):
        dataset = text(root, ROWS.replace("photos/2.jpg", f"photos/{name}.jpg"))
        with pytest.raises(DatasetError, match=rf"line 4: .*{name}\.jpg .*with another label: here 1, there 0"):
            dataset.samples("test")
    assert len(text(root, ROWS.replace("photos/1.jpg", "photos/link.jpg")).samples("test")) == 4  # a copy, as any


def test_labels_differ_over_splits_and_categories(root: Path) -> None:
    head = "image,label,category,split\n"
    for other in ("photos/0.jpg,1,nut,train", "./photos/0.jpg,1,bolt,test"):
        with pytest.raises(DatasetError, match=r"line 3: .*with another label"):
            text(root, f"{head}photos/0.jpg,0,nut,test\n{other}\n").check()


def test_a_normal_image_with_a_mask(root: Path) -> None:
    write_csv(root, [LINES[1] | {"mask": "masks/2.png"}, *LINES])
    with pytest.raises(DatasetError, match=r"line 2: the image is normal, and a mask is named for it: 'masks/2\.png'"):
        Table(root).check()


@pytest.mark.parametrize("column", ["category", "split"])
def test_a_cell_that_only_some_lines_leave_out(column: str, root: Path) -> None:
    write_csv(root, [LINES[0], LINES[1] | {column: ""}, *LINES[2:]])
    with pytest.raises(DatasetError, match=rf"line 3: there is no {column}, which other lines have"):
        Table(root).check()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "photos/0.jpg", "label": 0, "label": 1}', "line 1: .*'label' occurs twice"),
        ('{"image": ["photos/0.jpg"], "label": 0}', "line 1: image must be text"),
        ('{"image": 7, "label": 0}', "line 1: image must be text"),
        ('{"image": "photos/0.jpg", "label": true}', "line 1: label must be text"),
        ('{"image": "photos/0.jpg", "label": 0.5}', "line 1: label must be text"),
        ('{"image": "photos/0.jpg", "label": 0, "mask": {}}', "line 1: mask must be text"),
        ('{"image": "photos/0.jpg", "label": NaN}', "line 1: "),
        (100_000 * "[", "line 1: is nested too deep"),
        ('{"image": "\\u0000", "label": 0}', "there is no file|names no file"),
    ],
)
def test_lines_are_read_strictly(line: str, message: str, root: Path) -> None:
    with pytest.raises(DatasetError, match=rf"list\.jsonl.*{message}"):
        text(root, line, "list.jsonl").samples("test")


def test_a_table_that_is_not_a_file(root: Path) -> None:
    (root / "images.csv").unlink()
    (root / "images.csv").mkdir()
    with pytest.raises(DatasetError, match=r"images\.csv is a folder, not a file"):
        Table(root).find_categories()


def test_a_table_that_has_changed_is_read_again(root: Path) -> None:
    dataset = Table(root)
    assert len(dataset.samples("test")) == 3
    write_csv(root, LINES[:3])
    assert len(dataset.samples("test")) == 2


def test_files_that_the_table_does_not_list_are_a_note(root: Path) -> None:
    write_csv(root, LINES[:3])
    (root / "photos/x.heic").write_bytes(b"x")
    report = examine(Table(root))
    assert not [problem for problem in report.problems if "left out" in problem]
    assert (
        "images.csv does not list 2 files that lie beside those it lists: photos/3.jpg, photos/x.heic." in report.notes
    )


def test_an_image_that_is_named_as_a_mask(root: Path) -> None:
    for mask in ("photos/2.jpg", "./photos/3.jpg"):
        write_csv(root, [LINES[0] | {"mask": mask}, *LINES[1:]])
        with pytest.raises(DatasetError, match=r"line 2: '.*jpg' is named as a mask, and is listed as an image"):
            Table(root).check()


def test_categories_of_a_jsonl_may_be_numbers(root: Path) -> None:
    lines = [{"image": f"photos/{i}.jpg", "label": 0, "category": i} for i in (1, 2)]
    (root / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert Table(root, "list.jsonl", categories=["2", "1"]).selected_categories() == ["2", "1"]


def test_views_of_one_object(root: Path) -> None:
    groups = {"photos/1.jpg": "a", "photos/2.jpg": "a"}
    write_csv(root, [{**line, "group": groups.get(line["image"], "")} for line in LINES])
    assert [s.group for s in Table(root).samples("test")] == ["a", "a", ""]
    lines = [{**line, "group": 7, "mask": line["mask"] or None} for line in LINES]
    (root / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [s.group for s in Table(root, "list.jsonl").samples("test")] == ["7", "7", "7"]
