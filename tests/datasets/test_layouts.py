"""Every dataset in its true layout: counts, labels, masks, and the error if it is missing."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

import afclip_lightning.datasets
from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.data.base import AnomalyData, AnomalyDataModule
from afclip_lightning.data.doctor import examine
from afclip_lightning.data.overview import look_over
from afclip_lightning.datasets.autovi import AutoVI
from afclip_lightning.datasets.bmad import BMAD
from afclip_lightning.datasets.btad import BTAD
from afclip_lightning.datasets.catalogue import find_dataset, list_datasets
from afclip_lightning.datasets.dagm import CLASSES, DAGM
from afclip_lightning.datasets.dtd_synthetic import DTDSynthetic
from afclip_lightning.datasets.goods_ad import GoodsAD
from afclip_lightning.datasets.kaputt import Kaputt
from afclip_lightning.datasets.kolektor import KolektorSDD2
from afclip_lightning.datasets.magnetic_tile import MagneticTile
from afclip_lightning.datasets.medical import Medical
from afclip_lightning.datasets.mpdd import MPDD
from afclip_lightning.datasets.mvtec import MVTecAD
from afclip_lightning.datasets.mvtec_3d import MVTec3D
from afclip_lightning.datasets.mvtec_ad_2 import MVTecAD2
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.datasets.mvtec_loco import MVTecLOCO
from afclip_lightning.datasets.real_iad import RealIAD
from afclip_lightning.datasets.visa import VisA
from afclip_lightning.datasets.volumes import Volumes
from afclip_lightning.discovery import import_submodules
from afclip_runtime.errors import DatasetError
from tests.support.layouts import write_image, write_mask
from tests.support.layouts.bmad import write_bmad
from tests.support.layouts.btad import write_btad
from tests.support.layouts.dagm import write_dagm
from tests.support.layouts.kaputt import write_kaputt
from tests.support.layouts.kolektor import write_kolektor_2
from tests.support.layouts.loco import write_loco
from tests.support.layouts.medical import LABELLED, SEGMENTED, write_medical
from tests.support.layouts.mvtec import write_magnetic_tile, write_mvtec
from tests.support.layouts.mvtec_3d import write_mvtec_3d
from tests.support.layouts.mvtec_ad_2 import write_mvtec_ad_2
from tests.support.layouts.real_iad import write_real_iad
from tests.support.layouts.visa import write_visa, write_visa_converted
from tests.support.layouts.volumes import write_volumes

Make = Callable[[Path], AnomalyDataModule]


def visa_in_1cls(root: Path) -> VisA:
    write_visa_converted(root / "1cls", VisA.published)
    return VisA(root, num_workers=0)


# dataset, categories, and per category: train, test normal, test anomalous
WRITTEN: dict[str, tuple[Make, int, tuple[int, int, int]]] = {
    "mvtec": (lambda root: MVTecAD(write_mvtec(root, MVTecAD.published), num_workers=0), 15, (2, 1, 3)),
    "mvtec_layout": (lambda root: MVTecLayout(write_mvtec(root, ["b", "a"]), num_workers=0), 2, (2, 1, 3)),
    "visa": (lambda root: VisA(write_visa(root, VisA.published), num_workers=0), 12, (1, 1, 2)),
    "visa_here": (lambda root: VisA(write_visa_converted(root, VisA.published), num_workers=0), 12, (1, 1, 2)),
    "visa_1cls": (visa_in_1cls, 12, (1, 1, 2)),
    "btad": (lambda root: BTAD(write_btad(root), num_workers=0), 3, (1, 1, 2)),
    "mvtec_ad_2": (lambda root: MVTecAD2(write_mvtec_ad_2(root), num_workers=0), 8, (2, 1, 2)),
    "mvtec_loco": (lambda root: MVTecLOCO(write_loco(root, MVTecLOCO.published), num_workers=0), 5, (2, 1, 3)),
    "autovi": (
        lambda root: AutoVI(write_loco(root, AutoVI.published, ("missing", "obstruction")), num_workers=0),
        6,
        (2, 1, 3),
    ),
    "goods_ad": (lambda root: GoodsAD(write_mvtec(root, GoodsAD.published), num_workers=0), 6, (2, 1, 3)),
    "mvtec_3d": (lambda root: MVTec3D(write_mvtec_3d(root, MVTec3D.published), num_workers=0), 10, (2, 1, 3)),
    "real_iad": (lambda root: RealIAD(write_real_iad(root, RealIAD.published), num_workers=0), 30, (5, 8, 2)),
    "kaputt": (lambda root: Kaputt(write_kaputt(root), num_workers=0), 1, (3, 2, 4)),
    "sdd2": (lambda root: KolektorSDD2(write_kolektor_2(root), num_workers=0), 1, (3, 1, 2)),
    "mpdd": (lambda root: MPDD(write_mvtec(root, MPDD.published), num_workers=0), 6, (2, 1, 3)),
    "dtd": (lambda root: DTDSynthetic(write_mvtec(root, DTDSynthetic.published), num_workers=0), 12, (2, 1, 3)),
    "magnetic_tile": (lambda root: MagneticTile(write_magnetic_tile(root), num_workers=0), 1, (2, 1, 3)),
    "dagm": (lambda root: DAGM(write_dagm(root, CLASSES), num_workers=0), 10, (2, 2, 3)),
    "bmad": (lambda root: BMAD("liver", write_bmad(root), num_workers=0), 1, (2, 1, 3)),
    "bmad_readme": (lambda root: BMAD("resc", write_bmad(root, "anomaly_mask"), num_workers=0), 1, (2, 1, 3)),
    "volumes": (lambda root: Volumes(write_volumes(root), num_workers=0), 1, (3, 2, 1)),
    **{
        subset: (
            lambda root, subset=subset: Medical(subset, write_medical(root, subset), num_workers=0),
            1,
            (0, 2 if subset in LABELLED else 0, 3),
        )
        for subset in (*LABELLED, *SEGMENTED)
    },
}


@pytest.mark.parametrize("key", WRITTEN)
def test_true_layout(key: str, tmp_path: Path) -> None:
    make, categories, (train, normal, anomalous) = WRITTEN[key]
    dataset = make(tmp_path / "set")
    dataset.check()
    assert len(dataset.selected_categories()) == categories

    for category in dataset.selected_categories():
        samples = dataset.find_samples(category, "test")
        labels = [sample.label for sample in samples]
        assert (labels.count(0), labels.count(1)) == (normal, anomalous)
        assert [s.image_path for s in samples] == sorted(s.image_path for s in samples)
        assert {(s.dataset, s.category, s.split) for s in samples} == {(dataset.name, category, "test")}
        reference = dataset.find_samples(category, "train")
        assert len(reference) == train
        assert not {s.image_path for s in reference} & {s.image_path for s in samples}
        assert all(s.label == 0 for s in reference) or key in (
            "dagm",
            "sdd2",
            "kaputt",
        )  # their training images are mixed
        assert re.fullmatch("[A-Za-z -]+", dataset.class_name_of(category))
    assert all(len(drawn) == 1 for drawn in dataset.few_shot(1, 0).values()) if train else True

    overview = look_over(dataset, per_type=1)
    assert not overview.problems
    assert overview.images == categories * (train + normal + anomalous)
    assert all(look.picture is not None for group in overview.groups for look in group.shown)

    masks = key not in (*LABELLED, "kaputt")
    dataset.connect(Preprocess(28))
    batches = list(dataset.test_dataloader())
    label = torch.cat([batch.label for batch in batches])
    drawn = torch.cat([batch.mask for batch in batches]).flatten(1).sum(1)
    known = torch.cat([batch.mask_known for batch in batches])
    assert torch.equal(known, (label == 0) | masks)
    assert torch.equal(drawn > 0, (label == 1) & masks)


def test_counts_of_a_batch_and_its_types(tmp_path: Path) -> None:
    dataset = MVTecLayout(write_mvtec(tmp_path, ["a"]), batch_size=3, num_workers=0)
    dataset.connect(Preprocess(28))
    first, second = dataset.test_dataloader()
    assert first.image.shape == (3, 3, 28, 28)
    assert first.image.dtype == torch.float32
    assert first.mask.shape == (3, 28, 28)
    assert first.mask.dtype == torch.uint8
    assert (first.label.dtype, first.mask_known.dtype) == (torch.int64, torch.bool)
    assert len(second.samples) == 1


def test_published_names_are_known_without_a_disk() -> None:
    assert len(MVTecAD("nowhere").find_categories()) == 15
    assert len(VisA("nowhere").find_categories()) == 12
    assert BTAD("nowhere").find_categories() == ["01", "02", "03"]
    assert Medical("isic", "nowhere").find_categories() == ["skin"]
    assert [d.name for d in (MVTecAD(), VisA(), BTAD())] == ["mvtec", "visa", "btad"]


def test_default_roots() -> None:
    assert [d.root for d in (MVTecAD(), VisA(), BTAD())] == [Path("data") / name for name in ("mvtec", "visa", "btad")]


NEW_SET = '''
"""Weld seams: two kinds of seams."""

from collections.abc import Mapping

from afclip_lightning.data.published import Counts
from afclip_lightning.datasets.mvtec_layout import MVTecLayout


class WeldSeams(MVTecLayout):
    """Weld seams: 2 categories, 2 normal and 6 anomalous test images, with masks."""

    name = "weld"
    published_counts: Mapping[str, Counts] = {"pipe_seam": (2, 1, 3), "plate": (2, 1, 3)}
    published = tuple(published_counts)
    class_names: Mapping[str, str] = {"plate": "welded plate"}
    required = ("test", "ground_truth")
    source = "The next workshop, unpacked into this folder."
    licence = "ask there"
'''


def test_a_new_set_in_this_layout_is_one_short_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weld_seams.py").write_text(NEW_SET.lstrip())
    monkeypatch.setattr(afclip_lightning.datasets, "__path__", [*afclip_lightning.datasets.__path__, str(tmp_path)])
    import_submodules(afclip_lightning.datasets)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AnomalyData, "data")
    root = write_mvtec(tmp_path / "data", ["plate", "pipe_seam", "other"])
    dataset = parser.instantiate(
        parser.parse_object({"data": {"class_path": "WeldSeams", "init_args": {"root": root}}})
    )
    dataset = dataset.data
    dataset.check()
    assert dataset.selected_categories() == ["pipe_seam", "plate"]
    assert {s.dataset for s in dataset.samples("test")} == {"weld"}
    assert [dataset.class_name_of(c) for c in dataset.selected_categories()] == ["pipe seam", "welded plate"]
    assert "weld" in {row["name"] for row in list_datasets()}
    report = examine(find_dataset("weld", [], root))
    assert [row.found == row.published for row in report.categories] == [True, True]


def test_files_of_sets_in_this_layout_are_short() -> None:
    for cls in (MVTecAD, MPDD, DTDSynthetic, MagneticTile, BTAD):
        assert len(inspect.getsource(inspect.getmodule(cls) or cls).splitlines()) < 40
        assert not [name for name, value in vars(cls).items() if inspect.isfunction(value)]
    assert len(NEW_SET.splitlines()) < 40


def test_category_without_masks(tmp_path: Path) -> None:
    write_image(tmp_path / "a/test/good/0.png")
    write_image(tmp_path / "a/test/bad/0.png")
    samples = MVTecLayout(tmp_path).samples("test")
    assert [(s.label, s.mask_known) for s in samples] == [(1, False), (0, True)]


def test_published_set_without_its_masks_is_damaged(tmp_path: Path) -> None:
    write_image(tmp_path / "bottle/test/broken/0.png")
    with pytest.raises(DatasetError, match="bottle/ground_truth"):
        MVTecAD(tmp_path, categories=["bottle"]).check()


def test_masks_of_normal_images_are_not_needed_and_not_used(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path, ["a"])
    write_mask(root / "a/ground_truth/good/999_mask.png")
    assert [s.mask_path for s in MVTecLayout(root).samples("test") if s.label == 0] == [None]


def test_defect_folder_lost_but_its_masks_there(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path, ["a"])
    (root / "a/test/stain/000.png").unlink()
    (root / "a/test/stain").rmdir()
    with pytest.raises(DatasetError, match=r"stain/000_mask\.png"):
        MVTecLayout(root).samples("test")


def test_small_mask_values_of_visa(tmp_path: Path) -> None:
    dataset = VisA(write_visa(tmp_path, ["candle"]), categories=["candle"], num_workers=0)
    dataset.connect(Preprocess(28))
    (batch,) = dataset.test_dataloader()
    region = np.asarray(Image.open(write_mask(tmp_path / "m.png", value=1)))
    assert [s.mask_path.name for s in batch.samples if s.mask_path] == ["000.png", "001.png"]
    _, mask = Preprocess(28)(np.zeros((*region.shape, 3), np.uint8), region)
    for row, sample in zip(batch.mask, batch.samples, strict=True):
        assert torch.equal(row, mask if sample.label else torch.zeros_like(mask))


def rewrite(root: Path, old: str, new: str) -> None:
    table = root / "split_csv/1cls.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("object,split,label", "object,split,kind", r"1cls\.csv, line 1: .*label"),
        ("Normal/0001.JPG", "Normal/0009.JPG", r"1cls\.csv, line 3: .*0009\.JPG"),
        ("candle/Data/Images/Normal/0001.JPG", "../outside.jpg", r"1cls\.csv, line 3: .*leads out"),
        ("candle/Data/Images/Normal/0001.JPG", "/etc/hostname", r"1cls\.csv, line 3: .*leads out"),
        ("test,anomaly", "test,anomalous", r"1cls\.csv, line 4: .*'anomalous'"),
        (",candle/Data/Masks/Anomaly/001.png", ",", r"1cls\.csv, line 4: "),
        ("Anomaly/000.JPG", "Anomaly/001.JPG", r"1cls\.csv, line 5: .*already"),
    ],
)
def test_faulty_table_of_visa(old: str, new: str, message: str, tmp_path: Path) -> None:
    root = write_visa(tmp_path / "visa", ["candle"])
    write_image(tmp_path / "outside.jpg")
    rewrite(root, old, new)
    dataset = VisA(root, categories=["candle"])
    dataset.check()
    with pytest.raises(DatasetError, match=message):
        dataset.samples("test")


def test_binary_table_of_visa(tmp_path: Path) -> None:
    root = write_visa(tmp_path, ["candle"])
    (root / "split_csv/1cls.csv").write_bytes(b"\xff\xfe\x00object")
    with pytest.raises(DatasetError, match=r"1cls\.csv, line 1: holds the byte 0xff"):
        VisA(root, categories=["candle"]).samples("test")


def test_brainmri_beside_its_copy_and_only_in_it(tmp_path: Path) -> None:
    both = write_medical(tmp_path / "both", "brainmri")
    write_medical(both / "brain_tumor_dataset", "brainmri")
    assert len(Medical("brainmri", both).samples("test")) == 5
    write_medical(tmp_path / "inner/brain_tumor_dataset", "brainmri")
    inner = Medical("brainmri", tmp_path / "inner")
    inner.check()
    assert len(inner.samples("test")) == 5


@pytest.mark.parametrize("subset", [*LABELLED, *SEGMENTED])
def test_threshold_of_medical_masks(subset: str, tmp_path: Path) -> None:
    samples = Medical(subset, write_medical(tmp_path, subset)).samples("test")
    assert {s.mask_threshold for s in samples} == {None if subset in LABELLED or subset == "isic" else 127}


@pytest.mark.parametrize(
    ("subset", "folder"),
    [("br35h", "pred"), ("covid19", "Viral Pneumonia"), ("lag", "attention_map")],
)
def test_medical_folders_that_are_not_read(subset: str, folder: str, tmp_path: Path) -> None:
    samples = Medical(subset, write_medical(tmp_path, subset)).samples("test")
    assert list(tmp_path.rglob(folder))
    assert not [s for s in samples if folder in s.image_path.parts or s.mask_path]


def test_class_names_of_medical_sets_and_counts_that_are_not_published() -> None:
    assert Medical("tn3k", "x").class_name_of("thyroid") == "thyroid ultrasound"
    assert Medical("isic", "x").class_name_of("skin") == "skin"
    assert Medical("lag", "x").published_counts == {}
    assert Medical("covid19", "x").published_counts == {"chest": (None, 1341, 219)}


def test_class_names_are_overridden_and_a_stray_one_is_refused(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path, ["metal_nut"])
    dataset = MVTecLayout(root, class_names={"metal_nut": "steel nut"})
    dataset.check()
    assert dataset.class_name_of("metal_nut") == "steel nut"
    assert MVTecLayout(root).class_name_of("metal_nut") == "metal nut"
    with pytest.raises(DatasetError, match=r"class names are given for metalnut, .* It has: metal_nut"):
        MVTecLayout(root, class_names={"metalnut": "nut"}).check()


def test_published_counts_add_up() -> None:
    for dataset in (MVTecAD(), VisA(), BTAD(), MPDD(), MVTecLOCO(), AutoVI(), GoodsAD()):
        assert list(dataset.published_counts) == dataset.find_categories()
        for column, total in zip(
            zip(*dataset.published_counts.values(), strict=True), dataset.published_total, strict=True
        ):
            assert None in column or sum(column) == total


def test_medical_has_no_training_images(tmp_path: Path) -> None:
    dataset = Medical("isic", write_medical(tmp_path, "isic"))
    with pytest.raises(DatasetError, match=r"k_shot is 1, but isic/skin .* 0 normal training images.*zero-shot"):
        dataset.few_shot(1, seed=0)
    with pytest.raises(DatasetError, match="no train image"):
        dataset.samples("train")


def test_unknown_subset() -> None:
    with pytest.raises(ValueError, match="tn3k; got 'headct'"):
        Medical("headct", "x")  # type: ignore[arg-type]
