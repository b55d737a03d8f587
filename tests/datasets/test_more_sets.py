"""KolektorSDD2, MVTec 3D-AD's colour images, VisA's two-class splits: files that are read, ignored, and rejected."""

from pathlib import Path

import pytest

from afclip_lightning.data.doctor import examine
from afclip_lightning.datasets.kolektor import KolektorSDD2
from afclip_lightning.datasets.mvtec_3d import MVTec3D
from afclip_lightning.datasets.visa import VisA
from afclip_runtime.errors import DatasetError
from tests.support.layouts import write_image, write_mask
from tests.support.layouts.kolektor import write_kolektor_2
from tests.support.layouts.mvtec_3d import write_mvtec_3d
from tests.support.layouts.visa import write_two_classes


def test_kolektor_2(tmp_path: Path) -> None:
    dataset = KolektorSDD2(write_kolektor_2(tmp_path), num_workers=0)
    found = {s.image_path.name: (s.label, s.mask_path and s.mask_path.name) for s in dataset.samples("test")}
    assert found == {
        "20000.png": (0, None),
        "20001.png": (1, "20001_GT.png"),
        "20002.png": (1, "20002_GT.png"),
    }
    assert [s.label for s in dataset.samples("train")] == [0, 0, 1]
    assert {s.label for (s,) in dataset.few_shot(1, 0).values()} == {0}
    assert dataset.left_out("test") == []
    problems = examine(dataset).problems
    assert problems == [
        "surface: 2 normal training images, published are 2085.",
        "surface: 1 normal test images, published are 894.",
        "surface: 2 anomalous test images, published are 110.",
    ]
    write_mask(tmp_path / "test/20000_GT.png", value=255)  # a mask that was corrected is read again
    assert [s.label for s in dataset.samples("test")] == [1, 1, 1]
    (tmp_path / "test/20001_GT.png").unlink()
    with pytest.raises(DatasetError, match=r"20001\.png: this anomalous image has no mask of the same name"):
        dataset.samples("test")


def test_colour_images_alone(tmp_path: Path) -> None:
    dataset = MVTec3D(write_mvtec_3d(tmp_path, ["foam"]), categories=["foam"])
    samples = dataset.samples("test")
    assert {s.image_path.parent.name for s in samples} == {"rgb"}
    assert sorted((s.defect_type, s.mask_path is None) for s in samples) == [
        ("", True),
        ("crack", False),
        ("crack", False),
        ("hole", False),
    ]
    assert [s.image_path.parts[-4] for s in dataset.threshold_samples("foam")] == ["validation"]
    assert dataset.left_out("test") == []
    write_image(tmp_path / "foam/test/hole/rgb/007.png")
    with pytest.raises(DatasetError, match=r"007\.png: this anomalous image has no mask of the same name"):
        dataset.samples("test")


@pytest.mark.parametrize("table", ["2cls_highshot", "2cls_fewshot"])
def test_two_classes_of_visa(table: str, tmp_path: Path) -> None:
    dataset = VisA(write_two_classes(tmp_path, "candle", table), split=table, categories=["candle"])  # type: ignore[arg-type]
    dataset.check()
    assert [s.label for s in dataset.samples("train")] == [1, 0]
    assert [s.label for s in dataset.samples("test")] == [1, 0]
    assert {s.label for (s,) in dataset.few_shot(1, 0).values()} == {0}
    assert dataset.published_counts["candle"] == (None, None, 40 if table == "2cls_highshot" else 80)
    assert dataset.published_total == (None, None, None)
    assert VisA.published_counts["candle"] == (900, 100, 100)
    dataset.table.unlink()
    with pytest.raises(DatasetError, match=rf"not there: .*{table}\.csv"):
        dataset.check()
    with pytest.raises(ValueError, match="split must be one of 1cls, 2cls_highshot, 2cls_fewshot; got '2cls'"):
        VisA(tmp_path, split="2cls")  # type: ignore[arg-type]
