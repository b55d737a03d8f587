"""Submissions to MVTec AD 2's server: float16 without loss, and a check that finds what the server would refuse."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import f1_score

from afclip_lightning.datasets.mvtec_ad_2 import PRIVATE, MVTecAD2
from afclip_lightning.inspection.submission.check import check
from afclip_lightning.inspection.submission.encoding import LARGEST, Encoding, resized
from afclip_lightning.inspection.submission.layout import Item, items_of
from afclip_lightning.inspection.submission.score import seg_f1
from afclip_runtime.errors import UserError
from tests.support.layouts import HEIGHT, WIDTH
from tests.support.layouts.mvtec_ad_2 import write_mvtec_ad_2

finite = st.floats(-1e4, 1e4, width=32)


@settings(deadline=None, max_examples=100)
@given(st.lists(finite, min_size=1, max_size=30), st.lists(finite, min_size=2, max_size=10), finite)
def test_float16_keeps_order_threshold_and_the_stated_error(
    scores: list[float], normal: list[float], threshold: float
) -> None:
    encoding = Encoding.around(threshold, min(normal), max(normal))
    values = np.sort(np.asarray(scores, np.float32))
    stored, beyond = encoding.encode(values)
    assert stored.dtype == np.float16
    assert np.isfinite(stored).all()
    assert (np.diff(stored.astype(float)) >= 0).all()
    assert np.array_equal(stored > 0, values.astype(float) > threshold)
    distance = np.abs(values.astype(float) - threshold)
    farthest = max(abs(min(normal) - threshold), abs(max(normal) - threshold)) or 1.0
    fits = distance * encoding.factor <= LARGEST
    assert beyond == (~fits).sum()
    error = np.abs(encoding.decode(stored) - values)[fits]
    least = 2.0**-24 / encoding.factor  # what is above the threshold by less is stored as this
    assert (error <= np.maximum(distance[fits] * 2.0**-11, max(farthest * 2.0**-20, least)) * (1 + 1e-9)).all()


def test_a_factor_is_a_power_of_two_and_leaves_room() -> None:
    encoding = Encoding.around(0.5, 0.4, 0.51)
    assert np.log2(encoding.factor) % 1 == 0
    assert 2**-5 <= 0.1 * encoding.factor < 2**-4
    stored, beyond = encoding.encode(np.array([0.5 + 0.1 * 2**20, 1e9]))
    assert beyond == 1
    assert stored[1] == LARGEST
    assert Encoding.around(0.5, 0.5, 0.5).factor == 2.0**-4  # equal scores have no scale


def test_upsampling_before_or_after_is_the_same() -> None:
    scores = np.random.default_rng(0).random((5, 6)).astype(np.float32)
    encoding = Encoding.around(0.7, 0, 1)
    after = encoding.decode(resized(encoding.encode(scores)[0].astype(np.float32), 11, 13))
    assert np.abs(after - resized(scores, 11, 13)).max() < 2**-11


def test_seg_f1() -> None:
    generator = np.random.default_rng(0)
    truth, called = generator.random(500) < 0.2, generator.random(500) < 0.3
    counts = (truth & called).sum(), (~truth & called).sum(), (truth & ~called).sum()
    assert seg_f1(*map(int, counts)) == pytest.approx(f1_score(truth, called))
    assert seg_f1(0, 0, 0) is None


# --- the check


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    data = MVTecAD2(write_mvtec_ad_2(tmp_path / "mvtec_ad_2"))
    return [item for category in data.published for part in PRIVATE for item in items_of(data, category, part)]


@pytest.fixture
def folder(items: list[Item], tmp_path: Path) -> Path:
    """A valid submission of another program: compressed maps, some of them small."""
    out = tmp_path / "out"
    for number, item in enumerate(items):
        for name in (item.map_name, item.mask_name):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
        shape = (HEIGHT, WIDTH) if number % 2 else (5, 6)
        values = np.random.default_rng(number).random(shape).astype(np.float16)
        tifffile.imwrite(out / item.map_name, values, compression="zlib" if number % 3 else None)
        Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(out / item.mask_name)
    return out


MAP = "anomaly_images/rice/test_private/001_regular.tiff"
MASK = "anomaly_images_thresholded/rice/test_private/001_regular.png"
ONES = np.ones((HEIGHT, WIDTH), np.float16)


def image(values: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(values).convert(mode) if mode else Image.fromarray(values)).save(buffer, "PNG")
    return buffer.getvalue()


def tiff(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values)
    return buffer.getvalue()


RAMP = np.arange(HEIGHT * WIDTH, dtype=np.float16).reshape(HEIGHT, WIDTH)
WITH_NAN = np.where(RAMP == 3, np.float16(np.nan), RAMP)
NOISE = np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH), np.uint8) * np.uint8(255)
GREY = np.zeros((HEIGHT, WIDTH), np.uint8)
FAULTS: dict[str, tuple[str, bytes, str]] = {
    "float32": (MAP, tiff(RAMP.astype(np.float32)), "maps that are not float16 (float32)"),
    "nan": (MAP, tiff(WITH_NAN), "maps with NaN or infinity"),
    "infinity": (MAP, tiff(np.where(RAMP == 3, np.float16(np.inf), RAMP)), "maps with NaN or infinity"),
    "constant": (MAP, tiff(ONES), "constant maps"),
    "three channels": (MAP, tiff(np.stack([RAMP] * 3, -1)), "maps that are not [H, W]"),
    "cut off": (MAP, tiff(RAMP)[:-40], "maps that cannot be read (failed to read"),
    "empty": (MAP, b"", "maps that cannot be read"),
    "larger": (MAP, tiff(np.pad(RAMP, 1)), "maps that are larger than their image"),
    "grey values": (MASK, image(GREY + np.uint8(1)), "masks with values other than 0 and 255"),
    "colours": (MASK, image(GREY, "RGB"), "masks that are not grey PNG files of 8 bits"),
    "bilevel": (MASK, image(GREY, "1"), "masks that are not grey PNG files of 8 bits"),
    "mask of another size": (MASK, image(np.zeros((5, 6), np.uint8)), "masks of another size than their image"),
    "mask cut off": (MASK, image(NOISE)[:90], "masks that cannot be read"),
    "unknown": (MAP.replace("001", "007"), tiff(RAMP), "files of images that do not exist"),
    "suffix": (MAP.replace("tiff", "tif"), tiff(RAMP), "files that are not <category>/<part>/<name>.tiff"),
    "category": (MAP.replace("rice", "bottle"), tiff(RAMP), "files that are not <category>/<part>/<name>.tiff"),
}


def packed(folder: Path) -> Path:
    with tarfile.open(folder.with_suffix(".tar.gz"), "w:gz") as archive:
        for kind in ("anomaly_images", "anomaly_images_thresholded"):
            archive.add(folder / kind, kind)
    return folder.with_suffix(".tar.gz")


@pytest.mark.parametrize("form", [Path, packed])
def test_what_another_program_wrote_well(folder: Path, items: list[Item], form: Callable[[Path], Path]) -> None:
    report = check(form(folder), items)
    assert (report.lines(), report.maps, report.masks) == ([], 24, 24)


@pytest.mark.parametrize("form", [Path, packed])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(folder: Path, items: list[Item], form: Callable[[Path], Path], fault: str) -> None:
    name, content, problem = FAULTS[fault]
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    (line,) = check(form(folder), items).lines()
    assert line.startswith(problem)
    assert name.split("/", 1)[1].rpartition(".")[0] in line


def test_missing_categories_and_parts_without_the_dataset(folder: Path) -> None:
    for path in (folder / "anomaly_images/walnuts").rglob("*.tiff"):
        path.unlink()
    lines = "\n".join(check(folder, None).lines())
    assert "parts without a map: 2, the first is walnuts/test_private" in lines
    assert "the server expects 4090 maps: there are 21" in lines
    assert "masks without a map: 3" in lines


def test_some_masks_are_missing(folder: Path, items: list[Item]) -> None:
    (folder / MASK).unlink()
    (line,) = check(folder, items).lines()
    assert line == "maps without a mask, while others have one: rice/test_private/001_regular"
    for path in (folder / "anomaly_images_thresholded").rglob("*.png"):
        path.unlink()
    assert check(folder, items).lines() == []  # masks are optional


def test_many_files_of_one_fault_are_one_line(folder: Path, items: list[Item]) -> None:
    for item in items:
        (folder / item.map_name).write_bytes(tiff(ONES))
    (line,) = check(folder, items).lines()
    assert line.startswith("constant maps, which say nothing: 24, the first is anomaly_images/can/")


def test_folders_that_are_not_submissions(folder: Path, items: list[Item], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no folder anomaly_images.*It seems to be .*out"):
        check(tmp_path, items)
    with pytest.raises(UserError, match="does not exist"):
        check(tmp_path / "nothing", items)
    archive = packed(folder)
    whole = archive.read_bytes()
    for left_out in (4, 100, 1000, 5000, len(whole) // 2):  # within its end, a header or a map
        archive.write_bytes(whole[:-left_out])
        with pytest.raises(UserError, match=r"cannot be read as a tar\.gz"):
            check(archive, items)
    archive.write_bytes(b"PK\3\4 a zip file")
    with pytest.raises(UserError, match=r"cannot be read as a tar\.gz"):
        check(archive, items)


def test_an_archive_one_folder_too_deep(folder: Path, items: list[Item], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "deep.tar.gz", "w:gz") as archive:
        archive.add(folder, "submission")
    lines = check(tmp_path / "deep.tar.gz", items).lines()
    assert any(line.startswith("files outside of anomaly_images and anomaly_images_thresholded: 48") for line in lines)
    assert any(line.startswith("images without a map: 24") for line in lines)
