"""The findings of `datasets show`: counts, sizes, depths, areas, pictures; and how much of a large set it reads."""

import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from afclip_lightning.data import overview
from afclip_lightning.data.overview import Overview, look_over, spread
from afclip_lightning.data.thumbnails import SIDE, close_up, outline_of
from afclip_lightning.datasets.folder import Folder
from afclip_lightning.datasets.synthetic import Synthetic
from afclip_lightning.datasets.table import Table
from afclip_runtime.errors import DatasetError
from tests.support.parts import Parts, save


def grey(height: int = 60, width: int = 90, value: int = 128) -> np.ndarray:
    return np.full((height, width), value, np.uint8)


def block(height: int = 60, width: int = 90) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[10:20, 30:60] = 255
    return mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two categories, each with 5 training images and 3 normal and 2 anomalous test images, of two types."""
    for category in Parts.published:
        for name in ("train/good/0", "train/good/1", "train/good/2", "train/good/3", "train/good/4"):
            save(tmp_path / category / f"{name}.png", grey())
        for name in ("test/good/0", "test/good/1", "test/good/2"):
            save(tmp_path / category / f"{name}.png", grey(64, 64))
        for name in ("crack", "stain"):
            save(tmp_path / category / f"test/{name}/0.png", grey())
            save(tmp_path / category / f"ground_truth/{name}/0_mask.png", block())
    return tmp_path


def titles(found: Overview) -> list[str]:
    return [f"{group.category}/{group.title}" for group in found.groups]


def test_what_is_in_a_set(root: Path) -> None:
    found = look_over(Parts(root), per_type=2)
    assert titles(found)[:4] == [
        "bolt/train, normal",
        "bolt/test, normal",
        "bolt/test, anomalous: crack",
        "bolt/test, anomalous: stain",
    ]
    assert len(found.groups) == found.groups_there == 8
    assert found.counts["nut"] == {("train", "normal"): 5, ("test", "normal"): 3, ("test", "anomalous"): 2}
    assert (found.images, found.images_of("normal"), found.images_of("anomalous"), found.masks) == (20, 16, 4, 4)
    assert found.sizes == {(90, 60): 14, (64, 64): 6}
    assert found.depths == {"8 bits, grey": 20}
    assert found.endings == {".png": 20}
    assert not found.problems
    assert not found.notes
    normal, _, crack, _ = found.groups[:4]
    assert (normal.images, len(normal.shown), normal.marked, normal.median) == (5, 2, (), None)
    assert crack.median == pytest.approx(300 / 5400)
    (look,) = crack.shown
    assert look.picture is not None
    assert look.picture.shape == (60, 90, 3)  # small as it is


def test_images_that_are_shown_are_spread_over_all() -> None:
    items = list(range(100))
    chosen = spread(items, 10, 0)
    assert [item // 10 for item in chosen] == list(range(10))
    assert chosen == spread(items, 10, 0) != spread(items, 10, 1)
    assert len(set(spread(items, 97, 3))) == 97
    assert spread(items, 100, 0) == spread(items, 1000, 0) == items
    assert spread([], 3, 0) == []


def test_a_large_set_is_read_in_part(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    for name in ("read", "read_shape", "read_mask_of"):
        inner = getattr(overview, name)

        def counted(*args: object, name: str = name, inner: object = inner, **options: object) -> object:
            calls[name] += 1
            return inner(*args, **options)  # type: ignore[operator]

        monkeypatch.setattr(overview, name, counted)
    for name, limit in (("HEADERS", 6), ("MASKS", 1), ("DECODED", 2), ("PICTURES", 3)):
        monkeypatch.setattr(overview, name, limit)
    found = look_over(Parts(root), per_type=2)
    assert [len(group.shown) for group in found.groups] == [1, 1, 1]
    assert found.groups_there == 8
    assert calls["read"] <= 3 + 2
    assert calls["read_shape"] <= 6
    assert calls["read_mask_of"] <= 4
    assert found.images == 20  # all are counted


def test_of_many_groups_fewer_pictures_are_shown_of_each(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "PICTURES", 17)
    assert {len(group.shown) for group in look_over(Parts(root), per_type=3).groups} == {1, 2}
    assert len(look_over(Parts(root), per_type=3).groups) == 8


def test_pictures_are_small_and_the_mask_is_measured_at_full_size(tmp_path: Path) -> None:
    mask = np.zeros((600, 1200), np.uint8)
    mask[300:312, 600:660] = 255
    save(tmp_path / "bolt/test/crack/0.jpg", grey(600, 1200))
    save(tmp_path / "bolt/ground_truth/crack/0_mask.png", mask)
    save(tmp_path / "bolt/test/good/0.png", grey())
    found = look_over(Parts(tmp_path, categories=["bolt"]))
    look = next(look for group in found.groups if group.kind == "anomalous" for look in group.shown)
    assert look.picture is not None
    assert look.picture.shape == (SIDE // 2, SIDE, 3)
    assert look.size == (1200, 600)
    assert look.marked == pytest.approx(720 / 720_000)
    assert look.close_up is not None
    assert look.close_up.shape == (48, 96, 3)  # 0.8 of the region's width high, at the image's own pixels


@pytest.mark.parametrize("thickness", [1, 9])
def test_the_outline_runs_round_the_thinnest_crack(thickness: int) -> None:
    mask = np.zeros((2000, 3000), np.uint8)
    cv2.line(mask, (500, 300), (2200, 1700), 1, thickness)
    outlines = outline_of(mask, 160, 240)
    assert len(outlines) == 1
    for x, y in ((500, 300), (1350, 1000), (2200, 1700)):
        point = (x * 240 / 3000, y * 160 / 2000)
        distance = cv2.pointPolygonTest(outlines[0].astype(np.float32), point, True)
        assert 1.5 < distance < 5, (x, y)  # pixels of the picture: inside, and the line covers it nowhere
    assert outline_of(np.zeros((20, 30), np.uint8), 160, 240) == ()


def test_a_close_up_is_of_a_defect_that_is_small_or_of_a_part_of_a_thin_one() -> None:
    image = np.arange(1000 * 1000, dtype=np.uint32).reshape(1000, 1000, 1).repeat(3, axis=2).astype(np.uint8)
    mask = np.zeros((1000, 1000), np.uint8)
    assert close_up(image, mask) is None
    mask[0:10, 990:1000] = 1  # in a corner
    near = close_up(image, mask)
    assert near is not None
    assert np.array_equal(near, image[:32, -64:])
    mask[:] = 0
    mask[400:900, 200:700] = 1
    assert close_up(image, mask) is None
    mask[:] = 0
    cv2.ellipse(mask, (500, 500), (400, 400), 0, 0, 180, 1, 2)  # a bow, whose middle is not on it
    part = close_up(mask[..., None].repeat(3, axis=2) * np.uint8(255), mask)
    assert part is not None
    assert part.max() > 0


def test_more_than_eight_bits_and_colours(root: Path) -> None:
    rng = np.random.default_rng(0)
    save(root / "bolt/train/good/0.png", rng.integers(0, 4096, (30, 40), dtype=np.uint16))
    save(root / "bolt/train/good/1.png", rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    save(root / "bolt/train/good/2.png", grey()[..., None].repeat(3, axis=2))
    found = look_over(Parts(root))
    assert found.depths == {
        "8 bits, grey": 17,
        "16 bits, grey": 1,
        "8 bits, colour": 1,
        "8 bits, grey in three channels": 1,
    }
    (note,) = found.notes
    assert note.startswith("1 image uses less than an eighth of its range")


def test_dicom(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
    file = pydicom.Dataset()
    file.SOPClassUID, file.SOPInstanceUID, file.PatientName = "1.2.840.10008.5.1.4.1.1.7", "1.2.3", "Doe^Jane"
    file.Rows, file.Columns, file.SamplesPerPixel, file.PhotometricInterpretation = 20, 30, 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.PixelData = np.arange(20 * 30, dtype=np.uint16).tobytes()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    (tmp_path / "good").mkdir()
    file.save_as(tmp_path / "good/scan.dcm", enforce_file_format=True)
    found = look_over(Folder(tmp_path, normal_dir="good"))
    assert found.sizes == {(30, 20): 1}
    assert found.groups[0].shown[0].picture is not None
    assert "Doe" not in repr(found)


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(root: Path) -> None:
    (root / "bolt/train/good/0.png").write_text("no image")
    save(root / "bolt/ground_truth/crack/0_mask.png", block(30, 90))
    (root / "nut/ground_truth/stain/0_mask.png").unlink()
    found = look_over(Parts(root))
    assert [problem.partition(":")[0] for problem in found.problems] == [
        str(root / "nut/test/stain/0.png"),
        str(root / "bolt/train/good/0.png"),
        str(root / "bolt/ground_truth/crack/0_mask.png"),
    ]
    assert titles(found)[4:] == ["nut/train, normal"]  # its test split could not be listed
    broken = found.groups[0].shown[0]
    assert broken.picture is None
    assert broken.problem
    crack = found.groups[2].shown[0]
    assert crack.picture is not None
    assert crack.marked is None
    assert "the mask is 90×30 pixels" in crack.problem


def test_without_labels_without_masks_and_with_one_image(tmp_path: Path) -> None:
    save(tmp_path / "one.png", grey())
    found = look_over(Folder(tmp_path))
    assert [group.kind for group in found.groups] == ["not labelled"]
    assert (found.images, found.masks) == (1, 0)
    save(tmp_path / "bad/x.png", grey())
    found = look_over(Folder(tmp_path, abnormal_dir="bad"))
    assert [(group.title, group.images, group.masks) for group in found.groups] == [("test, anomalous", 1, 0)]


def test_a_set_that_is_drawn_is_drawn_first(tmp_path: Path) -> None:
    drawn = Synthetic(tmp_path / "drawn", ["gear"], image_size=64, train_normal=1, test_normal=1, test_anomalous=2)
    assert look_over(drawn).images == 4


def test_a_set_of_which_a_part_is_there_is_shown(root: Path) -> None:
    shutil.rmtree(root / "bolt")
    found = look_over(Parts(root))
    assert found.images == 10
    (said,) = found.problems
    assert said.startswith(f"Not all of parts is in {root}: not there: {root / 'bolt/test'}")


def test_nothing_to_show_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="Dataset 'parts' was not found"):
        look_over(Parts(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="Dataset 'parts' was not found"):
        look_over(Parts(tmp_path / "empty"))


def test_groups_that_are_judged_together_are_counted(tmp_path: Path) -> None:
    lines = ["image,label,group", "0.png,0,a", "1.png,0,a", "2.png,0,b", "3.png,0,"]
    for i in range(4):
        save(tmp_path / f"{i}.png", grey())
    (tmp_path / "images.csv").write_text("\n".join(lines))
    assert look_over(Table(tmp_path)).together == 2
