"""Real-IAD's lists: groups of five views, rules on labels, and errors for invalid lists."""

import json
from pathlib import Path
from typing import Any

import pytest

from afclip_lightning.data.doctor import examine
from afclip_lightning.datasets.real_iad import RealIAD
from afclip_runtime.errors import DatasetError
from tests.support.layouts.real_iad import write_real_iad


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_real_iad(tmp_path / "set", ["toy"])


def toy(root: Path, **arguments: Any) -> RealIAD:
    return RealIAD(root, categories=["toy"], num_workers=0, **arguments)


def edited(root: Path, number: int, **values: object) -> None:
    """Changes an entry of the test list; `drop=True` leaves it out."""
    path = root / "realiad_jsons/toy.json"
    lists = json.loads(path.read_text())
    lists["test"][number] |= values
    if values.get("drop"):
        del lists["test"][number]
    path.write_text(json.dumps(lists))


def test_views_of_an_object_are_a_group(root: Path) -> None:
    samples = toy(root).samples("test")
    assert {(s.group, s.label) for s in samples} == {("toy_0002_OK", 0), ("toy_0003_NG_HS", 0), ("toy_0003_NG_HS", 1)}
    assert [s.group for s in samples].count("toy_0003_NG_HS") == 5  # its other views do not show the defect
    assert {s.group for s in toy(root).samples("train")} == {"toy_0001_OK"}
    assert toy(root).notes() == []


def test_types_have_names(root: Path) -> None:
    edited(root, 5, anomaly_class="XX")
    assert sorted({s.defect_type for s in toy(root).samples("test")}) == ["", "XX", "scratch"]


def test_an_image_without_mask_is_normal_as_in_the_authors_loader(root: Path) -> None:
    edited(root, 5, mask_path=None)
    assert sum(s.label for s in toy(root).samples("test")) == 1


def test_a_missing_view_is_a_note(root: Path) -> None:
    edited(root, 2, drop=True)
    (note,) = toy(root).notes()
    assert note == (
        "toy: 1 of 2 objects do not have 5 views, the first is toy_0002_OK with 4; they are judged by those that "
        "are there"
    )
    assert f"{note}." in examine(toy(root)).notes


def test_a_name_that_says_no_object_is_a_note(root: Path) -> None:
    old = next((root / "realiad_1024/toy/OK/S0002").iterdir())
    old.rename(old.with_name("photo.jpg"))
    edited(root, int(old.stem.split("_C")[1][0]) - 1, image_path="OK/S0002/photo.jpg")
    notes = toy(root).notes()
    assert "do not have 5 views" in notes[0]
    assert notes[1].startswith("toy: 1 images have names without an object, so each counts as one: realiad_1024/toy/OK")
    assert [s.group for s in toy(root).samples("test")].count("") == 1


def test_lists_one_folder_deeper_and_other_lists(root: Path, tmp_path: Path) -> None:
    write_real_iad(root, ["toy"], "realiad_jsons/realiad_jsons_sv")
    single = toy(root, lists="single_view")
    assert single.list_of("toy") == root / "realiad_jsons/realiad_jsons_sv/toy.json"
    single.check()
    assert single.published_total == (None, None, None)
    with pytest.raises(DatasetError, match=r"not there: .*realiad_256"):
        toy(root, pixels="256").check()
    with pytest.raises(ValueError, match="pixels must be one of 256, 512, 1024, raw; got '128'"):
        toy(root, pixels="128")
    with pytest.raises(ValueError, match="lists must be one of multi_view, single_view"):
        toy(root, lists="fuiad")


def test_what_is_wrong_with_a_list(root: Path) -> None:
    path = root / "realiad_jsons/toy.json"
    kept = path.read_text()
    for values, message in (
        ({"image_path": "../../../outside.jpg"}, rf"{path}, test, entry 1: .* leads out of"),
        ({"image_path": "OK/none.jpg"}, rf"{path}, test, entry 1: there is no file"),
        ({"anomaly_class": None}, r"toy\.json"),
    ):
        edited(root, 0, **values)
        with pytest.raises(DatasetError, match=message):
            toy(root).samples("test")
        path.write_text(kept)
    entry = json.loads(kept)["test"][1]
    edited(root, 0, **entry)
    with pytest.raises(DatasetError, match=r"toy\.json: lists .* twice among the test images"):
        toy(root).samples("test")
    edited(root, 6, mask_path="NG/none.png", anomaly_class="HS")
    with pytest.raises(DatasetError, match=rf"{path}, test, entry 7: there is no file"):
        toy(root).samples("test")
    path.unlink()
    with pytest.raises(DatasetError, match=r"not there: .*toy\.json"):
        toy(root).check()
