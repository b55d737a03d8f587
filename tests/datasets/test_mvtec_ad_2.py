"""MVTec AD 2 beyond its public part: private images, validation images, and errors."""

from pathlib import Path

import pytest

from afclip_lightning.datasets.catalogue import check
from afclip_lightning.datasets.mvtec import MVTecAD
from afclip_lightning.datasets.mvtec_ad_2 import MVTecAD2
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.types import UNKNOWN
from afclip_runtime.errors import DatasetError
from tests.support.layouts.mvtec import write_mvtec
from tests.support.layouts.mvtec_ad_2 import write_mvtec_ad_2


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_mvtec_ad_2(tmp_path / "mvtec_ad_2", ["can", "vial"])


def names(samples: list) -> list[str]:
    return [sample.image_path.name for sample in samples]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("test_private", ["000_regular.png", "001_regular.png"]),
        ("test_private_mixed", ["000_mixed.png"]),
    ],
)
def test_private_parts_have_no_labels_and_are_only_predicted(root: Path, part: str, expected: list[str]) -> None:
    data = MVTecAD2(root, part, categories=["can"])
    data.check("predict")
    samples = data.samples("test")
    assert names(samples) == expected
    assert {(s.label, s.mask_known, s.mask_path) for s in samples} == {(UNKNOWN, False, None)}
    for stage in ("test", "fit", "validate"):
        with pytest.raises(DatasetError, match=f"labels of {part} are not published"):
            data.check(stage)


def test_thresholds_come_from_validation_and_few_shot_images_from_training(root: Path) -> None:
    data = MVTecAD2(root, categories=["vial"])
    assert names(data.threshold_samples("vial")) == ["010_regular.png", "011_regular.png"]
    assert {s.label for s in data.threshold_samples("vial")} == {0}
    (few,) = data.few_shot(2, 0).values()
    assert {s.image_path.parent for s in few} == {root / "vial/train/good"}
    assert names(MVTecAD2(root, "validation", ["vial"]).samples("test")) == ["010_regular.png", "011_regular.png"]


def test_no_validation_images(root: Path) -> None:
    for path in (root / "can/validation/good").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="can/validation/good has no image, so no threshold"):
        MVTecAD2(root, categories=["can"]).threshold_samples("can")


def test_thresholds_of_other_sets_come_from_their_training_images(tmp_path: Path) -> None:
    data = MVTecLayout(write_mvtec(tmp_path, ["a"]))
    assert names(data.threshold_samples("a")) == ["000.png", "001.png"]


def test_class_names() -> None:
    data = MVTecAD2("nowhere")
    assert [data.class_name_of(c) for c in ("fruit_jelly", "wallplugs")] == ["fruit jelly", "wall plugs"]


def test_a_part_that_is_not_there_is_named(root: Path) -> None:
    (root / "can/test_private_mixed/000_mixed.png").unlink()
    (root / "can/test_private_mixed").rmdir()
    with pytest.raises(DatasetError, match=r"not there: .*can/test_private_mixed;"):
        MVTecAD2(root, "test_private_mixed", ["can"]).check("predict")
    MVTecAD2(root, "test_private", ["can"]).check("predict")


def test_a_mask_that_is_not_there_is_named(root: Path) -> None:
    (root / "can/test_public/ground_truth/bad/001_regular_mask.png").unlink()
    with pytest.raises(DatasetError, match="001_regular"):
        MVTecAD2(root, categories=["can"]).samples("test")


def test_mvtec_ad_is_told_apart(tmp_path: Path) -> None:
    first = write_mvtec(tmp_path / "a/mvtec", MVTecAD.published)
    second = write_mvtec_ad_2(tmp_path / "b/mvtec_ad_2")
    with pytest.raises(DatasetError, match=r"This looks like mvtec \(MVTecAD\)"):
        check(MVTecAD2(first), "test")
    with pytest.raises(DatasetError, match=r"This looks like mvtec_ad_2 \(MVTecAD2\)"):
        check(MVTecAD(second), "test")


def test_unknown_part() -> None:
    with pytest.raises(ValueError, match="part must be one of test_public, test_private, test_private_mixed, valid"):
        MVTecAD2("nowhere", "test_mixed")  # type: ignore[arg-type]
