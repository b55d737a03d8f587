"""Kaputt's tables: severity, joined types, paths of its files, and errors for wrong tables."""

import sys
from pathlib import Path
from typing import Any

import pytest

from afclip_lightning.data.doctor import examine
from afclip_lightning.datasets.kaputt import Kaputt
from afclip_runtime.errors import DatasetError
from tests.support.layouts import write_image
from tests.support.layouts.kaputt import ROWS, Row, write_kaputt, write_table

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_kaputt(tmp_path / "set")


def kaputt(root: Path, **arguments: Any) -> Kaputt:
    return Kaputt(root, num_workers=0, **arguments)


def rewritten(root: Path, *rows: Row) -> Kaputt:
    write_table(root / "datasets/query-test.parquet", "test", [*ROWS["test"], *rows])
    return kaputt(root)


def test_types_of_an_image_are_sorted_and_joined(root: Path) -> None:
    samples = kaputt(root).samples("test")
    assert [(s.image_path.stem, s.label, s.defect_type) for s in samples] == [
        ("b0", 0, ""),
        ("b1", 1, "superficial"),
        ("b2", 0, ""),
        ("b3", 1, "deformation+penetration"),
        ("b4", 1, "deformation+penetration"),
        ("b5", 1, "missing_unit"),
    ]
    assert {(s.mask_path, s.mask_known) for s in samples if s.label} == {(None, False)}  # masks are of the item


def test_major_damage_alone(root: Path) -> None:
    data = kaputt(root, severity="major")
    assert [(s.image_path.stem, s.label) for s in data.samples("test")] == [("b0", 0), ("b2", 0), ("b3", 1), ("b4", 1)]
    assert data.left_out("test") == []  # minor damage is left out on purpose


def test_an_image_that_no_row_names_is_left_out(root: Path) -> None:
    stray = write_image(root / "query-crop/data/test/query-data/crop/stray.jpg")
    (left,) = kaputt(root).left_out("test")
    assert left.path == stray


@pytest.mark.parametrize(
    ("images", "tables"),
    [("query-{view}/data", "datasets"), ("data", "."), ("kaputt-release", "."), ("data", "datasets")],
)
def test_places_of_the_files(images: str, tables: str, tmp_path: Path) -> None:
    root = write_kaputt(tmp_path, images, tables, views=("crop", "image"))
    for view in ("crop", "image"):
        data = kaputt(root, view=view)
        data.check()
        assert {s.image_path.parent.name for s in data.samples("test")} == {view}
        assert len(data.samples("train")) == 3


def test_few_shot_images_are_normal(root: Path) -> None:
    (images,) = kaputt(root).few_shot(2, 0).values()
    assert [s.image_path.stem for s in images] == ["a0", "a1"]


def test_what_is_not_there_is_named(root: Path) -> None:
    (root / "datasets/query-test.parquet").unlink()
    with pytest.raises(DatasetError, match=r"datasets/query-test\.parquet"):
        kaputt(root).check()
    with pytest.raises(DatasetError, match="query-image/data/train/query-data/image"):
        kaputt(root, view="image").check()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("b0", True, True, ""), r"query-test\.parquet: lists the capture 'b0' twice"),
        (("gone", False, False, ""), r"query-test\.parquet, row 6: there is no file .*gone\.jpg"),
        (("../../outside", False, False, ""), r"query-test\.parquet, row 6: .*leads out"),
    ],
)
def test_faulty_rows(row: Row, message: str, root: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        rewritten(root, row).samples("test")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"capture_id": ["a"], "major_defect": [True], "defect_types": [""]}, "the column 'defect' does not exist"),
        (
            {"capture_id": ["a"], "defect": ["yes"], "major_defect": [True], "defect_types": [""]},
            r"\[0\]\.defect: expected true or false, got text",
        ),
        (
            {"capture_id": [None], "defect": [True], "major_defect": [True], "defect_types": [""]},
            r"capture_id: expected text, got nothing",
        ),
    ],
)
def test_faulty_columns(columns: dict[str, list[Any]], message: str, root: Path) -> None:
    path = root / "datasets/query-test.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(DatasetError, match=message) as caught:
        kaputt(root).samples("test")
    assert str(path) in str(caught.value)
    assert "Unpack datasets.tar.gz again." in str(caught.value)


def test_an_invalid_table(root: Path) -> None:
    (root / "datasets/query-test.parquet").write_text("capture_id,defect\n")
    with pytest.raises(DatasetError, match=r"query-test\.parquet: cannot be read as Parquet"):
        kaputt(root).samples("test")


def test_a_table_of_very_many_rows_is_refused(root: Path) -> None:
    rows = pyarrow.table({"capture_id": pyarrow.nulls(10_000_001)})
    parquet.write_table(rows, root / "datasets/query-test.parquet")
    with pytest.raises(DatasetError, match="10,000,001 rows; at most"):
        kaputt(root).samples("test")


def test_without_pyarrow_the_extra_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DatasetError, match=r"not installed: pip install 'afclip_lightning\[parquet\]'"):
        kaputt(root).samples("test")


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="severity must be one of any, major"):
        Kaputt("x", severity="minor")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="view must be one of crop, image"):
        Kaputt("x", view="mask")  # type: ignore[arg-type]


def test_the_set_is_examined(root: Path) -> None:
    report = examine(kaputt(root))
    assert [row.found for row in report.categories] == [(2, 2, 4)]
