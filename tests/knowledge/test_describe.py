"""Sentences on drawn masks: every place, size, shape and colour."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afclip_lightning.datasets.mvtec import MVTecAD
from afclip_lightning.datasets.procedural import CATEGORIES
from afclip_lightning.datasets.visa import VisA
from afclip_lightning.knowledge.base import MAX_TOKENS, count_tokens
from afclip_lightning.knowledge.describe import COLOURS, NUMBERS, PLACES, defect_name, describe_anomaly

SIDE = 300
WHITE = np.full((SIDE, SIDE, 3), 255, np.uint8)


def blank() -> np.ndarray:
    return np.zeros((SIDE, SIDE), np.uint8)


def disc(x: int, y: int, radius: int) -> np.ndarray:
    return cv2.circle(blank(), (x, y), radius, 1, -1)


def sentence(mask: np.ndarray, image: np.ndarray = WHITE) -> str:
    described = describe_anomaly(image, mask, "bolt")
    assert described is not None
    return described


def words_of(mask: np.ndarray) -> list[str]:
    """Returns size, shape and the rest of the sentence."""
    return sentence(mask).removeprefix("The bolt has a ").split(", ", 2)


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("column", range(3))
def test_place(row: int, column: int) -> None:
    mask = disc(50 + 100 * column, 50 + 100 * row, 30)
    assert sentence(mask) == f"The bolt has a medium-sized, compact, white anomaly {PLACES[row][column]}."


def test_place_is_that_of_the_centroid_in_an_oblong_image() -> None:
    image, mask = np.zeros((60, 600, 3), np.uint8), np.zeros((60, 600), bool)
    mask[25:35, 205:215] = True
    mask[25:35, 215:216] = True
    assert str(describe_anomaly(image, mask, "bolt")).endswith("anomaly in the center.")
    assert str(describe_anomaly(image, np.roll(mask, -20, axis=1), "bolt")).endswith("anomaly on the left.")


@pytest.mark.parametrize(
    ("side", "size"),
    [(1, "tiny"), (13, "tiny"), (14, "small"), (30, "small"), (31, "medium-sized"), (60, "medium-sized"),
     (61, "large"), (116, "large"), (117, "very large"), (300, "very large")],
)  # fmt: skip
def test_size(side: int, size: str) -> None:
    mask = blank()
    mask[:side, :side] = 1
    assert words_of(mask)[:2] == [size, "compact"]


def strokes(*points: tuple[int, int], width: int = 4) -> np.ndarray:
    return cv2.polylines(blank(), [np.array(points, np.int32)], False, 1, width)


@pytest.mark.parametrize(
    ("mask", "shape"),
    [
        (disc(150, 150, 40), "compact"),
        (cv2.rectangle(blank(), (100, 100), (190, 150), 1, -1), "compact"),
        (cv2.ellipse(blank(), (150, 150), (60, 20), 30, 0, 360, 1, -1), "elongated"),
        (cv2.rectangle(blank(), (20, 20), (270, 35), 1, -1), "thin"),
        (strokes((20, 20), (280, 280), width=1), "thin"),
        (strokes((20, 150), (150, 155), (280, 150)), "thin"),
        (strokes((30, 30), (250, 60), (60, 150), (260, 240)), "winding"),
        (cv2.circle(blank(), (150, 150), 60, 1, 5), "winding"),
        (strokes((80, 60), (80, 220), (220, 220), width=60), "irregular"),
    ],
)
def test_shape_of_one_piece(mask: np.ndarray, shape: str) -> None:
    assert words_of(mask)[1] == shape
    assert "pieces" not in sentence(mask)


@pytest.mark.parametrize("count", [2, 3, 9, 10, 25])
def test_several_pieces(count: int) -> None:
    mask = sum(disc(30 + 50 * (i % 5), 30 + 50 * (i // 5), 10) for i in range(count))
    number = NUMBERS[count - 2] if count < 10 else "many"
    assert words_of(np.asarray(mask))[1] == "scattered"
    assert sentence(np.asarray(mask)).endswith(f", in {number} pieces.")


def test_specks_beside_a_large_piece_do_not_count() -> None:
    mask = disc(150, 150, 40) | disc(20, 20, 2) | disc(280, 280, 2)
    assert words_of(mask)[1] == "compact"


def test_pieces_that_touch_at_a_corner_are_one() -> None:
    mask = blank()
    mask[100:110, 100:110] = mask[110:120, 110:120] = 1
    assert "pieces" not in sentence(mask)


@pytest.mark.parametrize("colour", COLOURS)
def test_colour(colour: str) -> None:
    image = WHITE.copy()
    mask = disc(150, 150, 20)
    image[mask > 0] = COLOURS[colour]
    assert f", {colour} anomaly " in sentence(mask, image)


def test_colour_is_the_mean_inside_the_mask_alone() -> None:
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    mask = blank()
    mask[100:120, 100:120] = 255
    image[100:120, 100:110], image[100:120, 110:120] = (255, 40, 40), (155, 40, 40)
    assert ", red anomaly " in sentence(mask, image)
    assert ", black anomaly " in sentence(np.roll(mask, 100, axis=1), image)


def test_the_kind_of_defect_ends_the_sentence() -> None:
    described = describe_anomaly(WHITE, disc(50, 50, 10), "metal nut", "bent edge")
    assert described == "The metal nut has a small, compact, white anomaly in the upper left: bent edge."


def test_a_normal_image_has_no_sentence() -> None:
    assert describe_anomaly(WHITE, blank(), "bolt", "scratch") is None


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"image must be \[H, W, 3\]"):
        describe_anomaly(WHITE, np.ones((SIDE, SIDE - 1), bool), "bolt")
    with pytest.raises(ValueError, match="class_name must leave room"):
        describe_anomaly(WHITE, disc(50, 50, 10), "bolt " * 70)


def test_a_folder_name_that_is_too_long_is_left_out() -> None:
    mask = disc(50, 50, 10)
    assert describe_anomaly(WHITE, mask, "bolt", "crack " * 70) == describe_anomaly(WHITE, mask, "bolt")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.001, 0.999))
def test_any_mask_has_a_sentence_of_a_length_that_clip_takes(seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    height, width = generator.integers(1, 40, 2)
    image = generator.integers(0, 256, (height, width, 3), np.uint8)
    mask = generator.random((height, width)) < share
    before = image.copy(), mask.copy()
    described = describe_anomaly(image, mask, "printed circuit board", "cut inner insulation")
    assert described == describe_anomaly(
        image, mask.astype(np.uint8) * 255, "printed circuit board", "cut inner insulation"
    )
    assert (described is None) == (not mask.any())
    assert described is None or count_tokens(described) <= MAX_TOKENS
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


def test_the_longest_sentence_has_room_for_every_word_and_defect() -> None:
    mask = disc(50, 250, 9) | disc(50, 200, 9)
    words = [d.class_name_of(c) for d in (MVTecAD(), VisA()) for c in d.find_categories()] + list(CATEGORIES)
    for word in words:
        described = str(describe_anomaly(WHITE, mask, word, "fabric border and squeezed teeth"))
        assert described.endswith(", in two pieces: fabric border and squeezed teeth.")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("mvtec/bottle/test/broken_large/000.png", "broken large"),
        ("test/scratch/000.png", "scratch"),
        ("mvtec/toothbrush/test/defective/000.png", None),
        ("mvtec/cable/test/combined/000.png", None),
        ("visa/candle/test/bad/000.JPG", None),
        ("btad/01/test/ko/0001.png", None),
        ("dagm/Class1/test/07/0001.png", None),
        ("visa/candle/Data/Images/Anomaly/000.JPG", None),
        ("bmad/Liver/test/Ungood/img/1.png", None),
        ("000.png", None),
    ],
)
def test_the_name_of_the_folder_of_the_defect(path: str, name: str | None) -> None:
    assert defect_name(Path(path)) == name
