"""Errors of `check` for a root that is absent, incomplete or of another dataset."""

from pathlib import Path

import pytest

from afclip_lightning.datasets.btad import BTAD
from afclip_lightning.datasets.catalogue import check
from afclip_lightning.datasets.medical import Medical
from afclip_lightning.datasets.mvtec import MVTecAD
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.datasets.visa import VisA
from afclip_runtime.errors import DatasetError, DatasetNotFoundError
from tests.support.layouts import write_image
from tests.support.layouts.btad import write_btad
from tests.support.layouts.medical import write_medical
from tests.support.layouts.mvtec import write_mvtec
from tests.support.layouts.visa import write_visa, write_visa_converted


def message(dataset: BTAD | Medical | MVTecLayout) -> str:
    with pytest.raises(DatasetNotFoundError) as caught:
        check(dataset, "test")
    return str(caught.value)


def test_absent_root(tmp_path: Path) -> None:
    text = message(MVTecAD(tmp_path / "mvtec"))
    for part in ("'mvtec'", str(tmp_path / "mvtec"), "does not exist", "ground_truth", "mvtec.com", "CC BY-NC-SA 4.0"):
        assert part in text
    assert "AFCLIP_DATA" in text
    assert "looks like" not in text


def test_root_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "mvtec.tar").write_text("")
    assert "is not a folder" in message(MVTecAD(tmp_path / "mvtec.tar"))


def test_empty_root(tmp_path: Path) -> None:
    assert "contains: nothing" in message(BTAD(tmp_path))


def test_incomplete_root_names_what_is_not_there(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path, [c for c in MVTecAD.published if c not in ("carpet", "wood")])
    text = message(MVTecAD(root))
    assert str(root / "carpet/test") in text
    assert str(root / "wood/test") in text
    assert "bottle/test" not in text.split("Expected")[0]
    assert "looks like" not in text  # not "like MVTecLayout", which every MVTec set is
    MVTecAD(root, categories=["bottle", "zipper"]).check()


def test_folder_of_another_dataset(tmp_path: Path) -> None:
    mvtec = write_mvtec(tmp_path / "a" / "m", MVTecAD.published)
    visa = write_visa(tmp_path / "b" / "v", VisA.published)
    converted = write_visa_converted(tmp_path / "c" / "w", VisA.published)
    btad = write_btad(tmp_path / "d" / "b")
    polyps = write_medical(tmp_path / "e" / "p", "kvasir")
    own = write_mvtec(tmp_path / "f" / "own", ["screw_m4"])
    assert "This looks like visa (VisA)." in message(MVTecAD(visa))
    assert "This looks like visa (VisA)." in message(MVTecAD(converted))
    assert "This looks like btad (BTAD)." in message(VisA(btad))
    assert "This looks like mvtec (MVTecAD)." in message(BTAD(mvtec))
    assert "This looks like visa (VisA)." in message(Medical("isic", converted))  # and not "like MVTecLayout" too
    assert "This looks like visa (VisA)." in message(MVTecLayout(visa))
    alike = " or ".join(f"{name} (Medical)" for name in ("colondb", "clinicdb", "kvasir", "cvc300", "endo"))
    assert f"This looks like {alike}." in message(Medical("brainmri", polyps))
    assert "This looks like own (MVTecLayout)." in message(Medical("isic", own))


def test_one_folder_too_high_or_too_deep(tmp_path: Path) -> None:
    inner = write_btad(tmp_path / "BTech_Dataset_transformed")
    assert f"It seems to lie in {inner}:" in message(BTAD(tmp_path))
    assert f"It seems to lie in {inner}:" in message(BTAD(inner / "01"))


def test_unknown_category_names_the_known_ones(tmp_path: Path) -> None:
    root = write_btad(tmp_path)
    with pytest.raises(DatasetError, match=r"btad .*no category '04'.*01, 02, 03"):
        BTAD(root, categories=["01", "04"]).check()


def test_category_without_images(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path, ["a"])
    (root / "b/test/good").mkdir(parents=True)
    (root / "b/test/good/._0.png").write_text("not an image")
    (root / "b/test/good/notes.txt").write_text("not an image")
    dataset = MVTecLayout(root)
    dataset.check()
    with pytest.raises(DatasetError, match=r"'b'.*no test image"):
        dataset.samples("test")


def test_own_layout_without_any_category(tmp_path: Path) -> None:
    write_image(tmp_path / "photos/0.png")
    assert "has no category folder" in message(MVTecLayout(tmp_path, categories=["bolt"]))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"categories": []}, "categories"),
        ({"categories": ["01", "01"]}, "categories"),
    ],
)
def test_arguments_out_of_range(arguments: dict, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        BTAD("x", **arguments)


def test_own_layout_needs_a_root() -> None:
    with pytest.raises(ValueError, match="root must be given: only a published dataset has one"):
        MVTecLayout()
