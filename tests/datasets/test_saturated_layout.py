"""A mask per defect, and how much of each has to be found: read, checked, resized; errors for wrong files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.data.dataset import AnomalyDataset
from afclip_lightning.data.doctor import examine
from afclip_lightning.data.images import read_mask
from afclip_lightning.datasets.mvtec_loco import MVTecLOCO
from afclip_lightning.datasets.saturated_layout import SaturatedLayout
from afclip_lightning.types import Batch
from afclip_runtime.errors import DatasetError
from tests.support.layouts import HEIGHT, WIDTH, write_image
from tests.support.layouts.loco import CONFIG, KINDS, write_defect, write_loco

TRUTH = "box/ground_truth"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = write_loco(tmp_path / "scenes", ["box"])
    shutil.rmtree(root / "box/validation")  # which MVTec LOCO AD has, and not all that follow its layout
    return root


def batch_of(root: Path, own_size: bool = True, side: int = 28) -> Batch:
    dataset = SaturatedLayout(root, batch_size=4, num_workers=0)
    dataset.connect(Preprocess(side))
    dataset.evaluate_at(own_size)
    (batch,) = dataset.test_dataloader()
    return batch


def test_samples(root: Path) -> None:
    normal, first, second, third = (s for s in sorted(SaturatedLayout(root).samples("test"), key=lambda s: s.label))
    assert (normal.mask_path, normal.saturations) == (None, None)
    assert [s.defect_type for s in (first, second, third)] == [KINDS[0], KINDS[0], KINDS[1]]
    assert first.mask_path == root / TRUTH / KINDS[0] / "000"
    assert first.saturations is not None
    assert [kind.value for kind in first.saturations.kinds] == [255, 254, 253]
    assert all(s.saturations is None for s in SaturatedLayout(root).samples("train"))
    union = read_mask(first.mask_path)
    assert union.sum() == 36 + 32
    assert not SaturatedLayout(root).left_out("test")


def test_defects_at_the_images_own_size(root: Path) -> None:
    batch = batch_of(root)
    assert batch.defects is not None
    shares = [[defect.saturation for defect in defects] for defects in batch.defects]
    # of 36 pixels 12 are enough; of two parts with 32 together half; 9 pixels are fewer than 12; all of a scratch
    assert sorted(shares) == sorted([[], [12 / 36, 16 / 32], [1.0], [1.0]])
    (two,) = (defects for defects in batch.defects if len(defects) == 2)
    assert two[1].corner == (2, 10)
    assert two[1].region.shape == (10, 4)
    assert two[1].region.sum() == 32
    assert batch.masks is not None
    assert {facts.shape for facts in batch.masks} == {(HEIGHT, WIDTH)}


def test_defects_at_the_backbones_size_lie_in_the_mask(root: Path) -> None:
    write_defect(root / TRUTH / KINDS[1] / "000/001.png", 254, (12, 18, 13, 19))  # which resizing loses
    batch = batch_of(root, own_size=False, side=7)
    assert batch.defects is not None
    assert sum(len(defects) for defects in batch.defects) == 4
    for mask, defects in zip(batch.mask, batch.defects, strict=True):
        for defect in defects:
            (top, left), (height, width) = defect.corner, defect.region.shape
            assert (defect.region <= mask[top : top + height, left : left + width]).all()


def test_training_reads_no_defect(root: Path) -> None:
    dataset = SaturatedLayout(root, num_workers=0)
    dataset.connect(Preprocess(28))
    assert all(batch.defects is None or not any(batch.defects) for batch in dataset.train_dataloader())


def changed(root: Path, **values: object) -> None:
    entries = [{**CONFIG[0], **values}, *CONFIG[1:]]
    (root / "box/defects_config.json").write_text(json.dumps(entries))


def read(root: Path) -> None:
    batch_of(root)


def edit(path: Path, *values: int) -> None:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels.flat[: len(values)] = values
    Image.fromarray(pixels).save(path)


def test_what_is_wrong_with_the_saturation_file(root: Path) -> None:
    path = root / "box/defects_config.json"
    for values, message in (
        ({"pixel_value": 0}, r"entry 1: pixel_value 0 is not in 1 to 65535"),
        ({"pixel_value": 254}, r"entry 2: pixel_value 254 is already that of an earlier entry"),
        ({"saturation_threshold": 0}, r"entry 1: saturation_threshold must be above 0, in pixels; got 0"),
        ({"relative_saturation": True}, r"entry 1: saturation_threshold must be in \(0, 1\], a share .* got 12"),
        ({"pixel_value": "255"}, r"defects_config.json"),
    ):
        changed(root, **values)
        with pytest.raises(DatasetError, match=message) as error:
            SaturatedLayout(root).samples("test")
        assert str(path) in str(error.value)
    path.write_text("[")
    with pytest.raises(DatasetError, match=r"defects_config\.json"):
        SaturatedLayout(root).samples("test")
    path.unlink()
    with pytest.raises(DatasetError, match=r"not there: .*defects_config\.json"):
        SaturatedLayout(root).check()


def test_a_kind_that_the_file_does_not_have(root: Path) -> None:
    file = root / TRUTH / KINDS[1] / "000/000.png"
    write_defect(file, 7, (3, 3, 9, 9))
    message = rf"{file}: its pixels are 7, a kind of defect that .*defects_config.json does not have \(it has 253, 254"
    with pytest.raises(DatasetError, match=message):
        read(root)
    report = examine(SaturatedLayout(root, num_workers=0))
    assert any("its pixels are 7" in problem for problem in report.problems)


def test_files_that_are_not_one_defect(root: Path) -> None:
    file = root / TRUTH / KINDS[1] / "000/000.png"
    edit(file, 254, 255)
    with pytest.raises(DatasetError, match=rf"{file}: marks pixels with 2 values, 254 and 255 first"):
        read(root)
    write_defect(root / TRUTH / KINDS[1] / "000/001.png", 254, (3, 3, 9, 9))
    edit(file)
    with pytest.raises(DatasetError, match=rf"{file}: marks nothing"):
        read(root)


def test_masks_without_images_and_images_without_masks(root: Path) -> None:
    folder = root / TRUTH / KINDS[1]
    write_defect(folder / "007/000.png", 254, (3, 3, 9, 9))
    with pytest.raises(DatasetError, match=rf"{folder / '007'}: no image has the name of this mask"):
        SaturatedLayout(root).samples("test")
    (folder / "007/000.png").unlink()
    (folder / "007").rmdir()
    (folder / "000/000.png").unlink()
    with pytest.raises(DatasetError, match=rf"{folder / '000'}: this folder of masks has no image"):
        read(root)
    (folder / "000").rmdir()
    with pytest.raises(DatasetError, match="this anomalous image has no mask of the same name"):
        SaturatedLayout(root).samples("test")


def test_a_mask_of_another_size(root: Path) -> None:
    file = root / TRUTH / KINDS[0] / "000/001.png"
    Image.fromarray(np.full((HEIGHT, WIDTH + 1), 253, np.uint8)).save(file)
    with pytest.raises(DatasetError, match=rf"{file}: the mask is 21×14 pixels and its image"):
        read(root)
    report = examine(SaturatedLayout(root, num_workers=0))
    assert [problem for problem in report.problems if str(file) in problem]


def test_thresholds_come_from_validation(root: Path) -> None:
    dataset = MVTecLOCO(write_loco(root.parent / "all", ["pushpins"]), categories=["pushpins"])
    assert [s.image_path.parts[-3] for s in dataset.threshold_samples("pushpins")] == ["validation"]
    assert not dataset.left_out("test")
    (dataset.root / "pushpins/validation/good/000.png").unlink()
    with pytest.raises(DatasetError, match="validation/good has no image, so no threshold comes from it"):
        dataset.threshold_samples("pushpins")


def test_the_doctor_is_content(root: Path) -> None:
    write_image(root / "box/ground_truth/logical_anomalies/stray.png")
    report = examine(SaturatedLayout(root, num_workers=0))
    assert [problem for problem in report.problems if "stray" in problem]
    (root / "box/ground_truth/logical_anomalies/stray.png").unlink()
    problems = examine(SaturatedLayout(root, num_workers=0)).problems
    assert [problem for problem in problems if "same picture" not in problem] == []  # tiny images are alike


def test_defects_are_read_where_features_are_kept(root: Path) -> None:
    class Store:
        def load(self, digest: str) -> dict[str, torch.Tensor]:
            return {}

    samples = SaturatedLayout(root).samples("test")
    for facts in ("counts", "regions"):
        plain = AnomalyDataset(samples, Preprocess(28), facts=facts)
        kept = AnomalyDataset(samples, Preprocess(28), store=Store(), facts=facts)  # type: ignore[arg-type]
        for index in range(len(samples)):
            expected, found = plain.read(index).defects, kept.read(index).defects
            assert len(expected) == len(found)
            for one, other in zip(expected, found, strict=True):
                assert (one.corner, one.saturation) == (other.corner, other.saturation)
                assert torch.equal(one.region, other.region)
