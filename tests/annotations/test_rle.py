"""Run lengths of COCO, CVAT and Label Studio: written and read back, as the tools' packages write them, and damaged."""

import base64
import zlib

import numpy as np
import pytest

from afclip_lightning.annotations import rle
from afclip_runtime.errors import DatasetError

MASKS = [
    np.zeros((5, 7), bool),
    np.ones((7, 5), bool),
    np.eye(9, 13, dtype=bool),
    *(np.random.default_rng(seed).random((11 + seed, 17)) < seed / 12 for seed in range(12)),
    np.pad(np.ones((400, 300), bool), 60),
]


@pytest.mark.parametrize("mask", MASKS)
def test_what_is_written_is_read(mask: np.ndarray) -> None:
    for by_columns in (False, True):
        runs = rle.mask_to_runs(mask, by_columns)
        assert np.array_equal(rle.runs_to_mask(runs, *mask.shape, by_columns), mask)
    coco = rle.mask_to_coco(mask)
    assert np.array_equal(rle.coco_to_mask(coco, mask.shape), mask)
    assert np.array_equal(rle.coco_to_mask({**coco, "counts": rle.mask_to_runs(mask, True)}, mask.shape), mask)
    assert np.array_equal(rle.brush_to_mask(rle.mask_to_brush(mask), *mask.shape), mask)
    assert np.array_equal(rle.png_to_mask(base64.b64encode(rle.mask_to_png(mask)).decode()), mask)


@pytest.mark.parametrize("mask", MASKS)
def test_coco_is_as_pycocotools_writes_it(mask: np.ndarray) -> None:
    coder = pytest.importorskip("pycocotools.mask")
    wanted = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert rle.mask_to_coco(mask) == {"size": list(mask.shape), "counts": wanted["counts"].decode()}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("left", "top"), [(0, 0), (3, 0), (0, 2), (4, 5)])
def test_a_part_of_an_image_is_written_in_its_place(mask: np.ndarray, left: int, top: int) -> None:
    for right, bottom in ((0, 0), (6, 7)):
        whole = np.pad(mask, ((top, bottom), (left, right)))
        place = rle.Place(left, top, whole.shape)
        for by_columns in (False, True):
            assert rle.mask_to_runs(mask, by_columns, place) == rle.mask_to_runs(whole, by_columns)
        assert rle.mask_to_coco(mask, place) == rle.mask_to_coco(whole)
        assert rle.mask_to_brush(mask, place) == rle.mask_to_brush(whole)


def test_a_brush_of_single_values() -> None:
    """The tool's own writer mixes runs with lists of values, and other sizes of lengths."""
    mask = np.array([[True, False, True]])
    values = [255 * int(m) if channel == 3 else 7 for m in mask[0] for channel in range(4)]
    bits = f"{12:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (5, 4, 8, 16))
    bits += f"000{4:05b}" + "".join(f"{value:08b}" for value in values[:5])  # five values, one by one
    bits += f"101{1:04b}" + f"{7:08b}" + f"011{0:016b}" + f"{0:08b}"  # a run of two, and a list of one
    bits += f"010{3:08b}" + "".join(f"{value:08b}" for value in values[8:])
    numbers = list(int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big"))
    assert np.array_equal(rle.brush_to_mask(numbers, 1, 3), mask)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "no size"),
        ({"size": [2, 3]}, "no counts"),
        ({"size": [2], "counts": [6]}, "no size|are of"),
        ({"size": [2.0, 3], "counts": [6]}, "no size"),
        ({"size": [3, 2], "counts": [6]}, "2×3 pixels, and the image is 3×2"),
        ({"size": [2, 3], "counts": [5]}, "add up to 5"),
        ({"size": [2, 3], "counts": [10**18, 10**18]}, "add up to"),
        ({"size": [2, 3], "counts": [-1, 7]}, "add up to"),
        ({"size": [2, 3], "counts": [1.5, 4.5]}, "are not whole numbers"),
        ({"size": [2, 3], "counts": ["a"]}, "are not whole numbers"),
        ({"size": [2, 3], "counts": [[6]]}, "are not whole numbers"),
        ({"size": [2, 3], "counts": 6}, "are not whole numbers"),
        ({"size": [2, 3], "counts": "5"}, "add up to 5"),  # pycocotools fills the rest with what is in the memory
        ({"size": [2, 3], "counts": "o"}, "cut off"),
        ({"size": [2, 3], "counts": "oooooooooooooooo0"}, "are not in COCO's text form"),
        ({"size": [2, 3], "counts": "é"}, "add up|are not in COCO's text form"),
    ],
)
def test_invalid_run_lengths(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rle.coco_to_mask(value, (2, 3))


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_a_brush_that_is_cut_off(cut: int) -> None:
    numbers = rle.mask_to_brush(MASKS[6])
    with pytest.raises(ValueError, match="cut off"):
        rle.brush_to_mask(numbers[:cut], *MASKS[6].shape)


@pytest.mark.parametrize("numbers", [None, "x", [256], [-1], [1.5], ["a"], {"a": 1}])
def test_an_invalid_brush(numbers: object) -> None:
    with pytest.raises(ValueError, match=r"are not a list of bytes|cut off"):
        rle.brush_to_mask(numbers, 2, 3)


def test_a_brush_of_another_size() -> None:
    numbers = rle.mask_to_brush(np.ones((2, 3), bool))
    with pytest.raises(ValueError, match="are of 6 pixels, and 4×3 are 12"):
        rle.brush_to_mask(numbers, 3, 4)


def test_a_mask_of_too_many_pixels_takes_no_memory() -> None:
    for decode in (
        lambda: rle.runs_to_mask([10**10], 10**5, 10**5, True),
        lambda: rle.brush_to_mask([0] * 20, 10**5, 10**5),
    ):
        with pytest.raises(DatasetError, match="the limit of one image"):
            decode()


def test_invalid_pictures() -> None:
    for text, said in ((3, "is not text"), ("~~", "is not base64"), ("AAAA", "its picture"), ("", "its picture")):
        with pytest.raises(ValueError, match=said):
            rle.png_to_mask(text)
    content = rle.mask_to_png(MASKS[2])
    whole = base64.b64encode(zlib.compress(content)).decode()
    assert np.array_equal(rle.png_to_mask(whole, packed=True), MASKS[2])
    for text in (base64.b64encode(zlib.compress(content)[:-8]).decode(), base64.b64encode(b"no zlib").decode()):
        with pytest.raises(ValueError, match="its picture"):
            rle.png_to_mask(text, packed=True)


def test_whole_numbers() -> None:
    assert rle.whole_numbers("1, 2,3 ,") == [1, 2, 3]
    for text in ("1.5", "-1", "a", "9" * 40, "²"):
        with pytest.raises(ValueError, match="is not a whole number"):
            rle.whole_numbers(text)
