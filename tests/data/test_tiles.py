"""Views of an image and the way back: nothing is lost, moved or counted twice."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.components.scoring import upsample
from afclip_runtime.errors import UserError
from afclip_runtime.types import Fit, ImageSize, Tiling, height_and_width
from afclip_runtime.views.frame import Resize, place
from afclip_runtime.views.resizing import resize_map
from afclip_runtime.views.tiles import MAX_VIEWS, Axis, Layout

SIZE = 32
TILINGS = [
    Tiling(),
    Tiling("pad"),
    Tiling("tiles"),
    Tiling(tiles=2),
    Tiling("pad", tiles=3, overlap=0.5),
    Tiling("tiles", tiles=2, overlap=0.0),
    Tiling("tiles", tile_size=17),
]
SHAPES = [(64, 64), (40, 100), (97, 31), (1, 1), (1, 9), (5, 300)]
FRAMES: list[ImageSize] = [SIZE, (32, 64), (96, 32)]
FINE = [Tiling("pad", tiles=3, overlap=0.5), Tiling("tiles", tiles=2, overlap=0.0), Tiling("tiles", tile_size=17)]
SEEN: list[tuple[Tiling, Resize]] = [
    *((tiling, "squash") for tiling in TILINGS),
    (Tiling(), "crop"),
    (Tiling(), "trim"),
]


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def merged(layout: Layout, maps: list[np.ndarray]) -> np.ndarray:
    anomaly_map = np.zeros((layout.height, layout.width), np.float32)
    for view, seen in enumerate(maps):
        layout.add(anomaly_map, view, seen)
    return anomaly_map


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("tiling", "rule"), SEEN, ids=str)
def test_every_pixel_counts_once(tiling: Tiling, shape: tuple[int, int], frame: ImageSize, rule: Resize) -> None:
    layout = Layout(*shape, tiling, Preprocess(frame, rule=rule).frame)
    views = [layout.cut(picture(*shape), view) for view in range(len(layout))]
    assert {(view.shape, view.dtype) for view in views} == {((*height_and_width(frame), 3), np.dtype(np.uint8))}
    anomaly_map = merged(layout, [np.full(height_and_width(frame), 0.7, np.float32)] * len(layout))
    assert_close(anomaly_map, np.full(shape, 0.7, np.float32), rtol=0, atol=3e-5)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize("shape", [(64, 64), (60, 150), (150, 60)])
def test_what_is_seen_comes_back_to_its_place(tiling: Tiling, shape: tuple[int, int], frame: ImageSize) -> None:
    """A backbone that returns the picture as its map reproduces the picture."""
    ramp = np.add.outer(np.linspace(0, 120, shape[0]), np.linspace(0, 120, shape[1]))
    image = np.repeat(ramp.astype(np.uint8)[..., None], 3, axis=2)
    layout = Layout(*shape, tiling, Preprocess(frame).frame)
    seen = [layout.cut(image, view)[..., 0].astype(np.float32) for view in range(len(layout))]
    assert np.abs(merged(layout, seen) - ramp).max() < 8  # pixels are rounded, and the ends of a resized ramp flat


@pytest.mark.parametrize(("tiling", "rule"), [seen for seen in SEEN if seen[0] not in FINE], ids=str)
@pytest.mark.parametrize("frame", [(56, 56), (28, 84), (84, 28)])
@pytest.mark.parametrize("shape", [(61, 143), (143, 61), (200, 199), (33, 35)])
def test_a_spot_is_found_where_it_is(
    shape: tuple[int, int], frame: tuple[int, int], tiling: Tiling, rule: Resize
) -> None:
    """The map of a patch tower for a bright spot has its centre within half a patch of the spot."""
    patch, preprocess = 7, Preprocess(frame, rule=rule)
    layout = Layout(*shape, tiling, preprocess.frame)
    seen_as = "pad" if tiling.fit == "pad" else rule
    left, top, right, bottom = place(seen_as, *shape, frame)
    across, down = (right - left) / shape[1], (bottom - top) / shape[0]  # pixels of the frame per pixel of the image
    for share in (0.5, 0.37):  # of what is seen, from its left and its top
        x = (share * (min(right, frame[1]) - max(left, 0)) + max(left, 0) - left) / across
        y = (share * (min(bottom, frame[0]) - max(top, 0)) + max(top, 0) - top) / down
        far = (np.arange(shape[0])[:, None] + 0.5 - y) * down, (np.arange(shape[1]) + 0.5 - x) * across
        spot = (255 * np.exp(-((np.hypot(*far) / 6) ** 2))).astype(np.uint8)
        image, seen = np.repeat(spot[..., None], 3, axis=2), []
        for view in range(len(layout)):
            pixels = torch.from_numpy(layout.cut(image, view))[..., 0].float()
            seen.append(upsample(F.avg_pool2d(pixels[None], patch), frame)[0].numpy())
        found = merged(layout, seen)
        found = np.where(found > found.max() / 2, found, 0) / found[found > found.max() / 2].sum()
        assert abs(found.sum(0) @ (np.arange(shape[1]) + 0.5) - x) * across <= patch / 2
        assert abs(found.sum(1) @ (np.arange(shape[0]) + 0.5) - y) * down <= patch / 2


def test_tiles_have_the_shape_of_the_frame() -> None:
    wide = Preprocess((32, 64))
    assert [level.box(0) for level in Layout(100, 200, Tiling("tiles"), wide).levels] == [(0, 0, 200, 100)]
    whole, tiles = Layout(100, 240, Tiling(tiles=2, overlap=0.0), wide).levels
    assert whole.box(0) == (0, 0, 240, 100)
    assert tiles.box(0) == (0, 0, 100, 50)
    assert len(tiles) == 2 * 3
    _, tiles = Layout(100, 240, Tiling(tile_size=20, overlap=0.0), wide).levels
    assert tiles.box(0) == (0, 0, 40, 20)
    upright = Layout(240, 100, Tiling("tiles", overlap=0.0), wide)
    assert upright.levels[0].box(0) == (0, 0, 100, 50)
    assert len(upright) == 5


def test_squash_is_what_the_test_loop_sees() -> None:
    image = picture(50, 80)
    expected, _ = Preprocess(SIZE).resize(image, None)
    assert np.array_equal(Layout(50, 80, Tiling(), Preprocess(SIZE)).cut(image, 0), expected)


def test_pad_keeps_the_shape_and_repeats_the_border() -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[0], image[-1] = 50, 200
    view = Layout(20, 40, Tiling("pad"), Preprocess(40)).cut(image, 0)
    assert np.array_equal(view[10:30], image)  # as large as before: nothing is resized
    assert (view[:10] == 50).all()
    assert (view[30:] == 200).all()
    # of the map, what was padded is left out
    seen = np.ones((40, 40), np.float32)
    seen[10:30] = 0
    assert merged(Layout(20, 40, Tiling("pad"), Preprocess(40)), [seen]).max() == 0


def test_number_and_place_of_tiles() -> None:
    layout = Layout(100, 240, Tiling(tiles=2, overlap=0.25), Preprocess(SIZE))
    whole, tiles = layout.levels
    assert len(whole) == 1
    assert (len(tiles.rows.starts), tiles.rows.side) == (2, 58)
    assert tiles.columns.starts == [0, 36, 73, 109, 146, 182]
    boxes = [tiles.box(i) for i in range(len(tiles))]
    assert boxes[0] == (0, 0, 58, 58)
    assert boxes[-1] == (182, 42, 240, 100)
    assert len(Layout(30, 90, Tiling("tiles", overlap=0.0), Preprocess(SIZE))) == 3  # no second level of the same
    assert len(Layout(30, 90, Tiling("tiles", tile_size=500, overlap=0.0), Preprocess(SIZE))) == 3


def test_neighbours_fade_into_each_other() -> None:
    axis = Axis(100, 40, 0.25)
    weights = np.zeros((len(axis.starts), 100))
    for index, start in enumerate(axis.starts):
        weights[index, start : start + 40] = axis.weights(index)
    assert_close(weights.sum(0), np.ones(100), rtol=0, atol=1e-6)
    first = weights[0, :40]
    assert (np.diff(first) <= 1e-6).all()  # alone at the border of the image, and less and less towards the neighbour
    assert first[0] == 1
    assert first[39] < 0.1


def test_a_map_shrinks_to_its_mean() -> None:
    seen = np.arange(16, dtype=np.float32).reshape(4, 4)
    assert resize_map(seen, 1, 1).item() == pytest.approx(7.5)


def test_too_many_tiles_are_refused() -> None:
    with pytest.raises(UserError, match=f"20000×1 pixels would take 20000 tiles, and the limit is {MAX_VIEWS}"):
        Layout(1, 20000, Tiling("tiles"), Preprocess(SIZE))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fit": "crop"}, "fit must be one of squash, pad, tiles, got 'crop'"),
        ({"tiles": 0}, "tiles must be at least 1"),
        ({"tiles": 2, "tile_size": 100}, "tile_size must be at least 1 and without tiles"),
        ({"overlap": 0.9}, "overlap must be 0 to 0.75"),
        ({"view_score": "lowest"}, "view_score must be one of highest, mean, got 'lowest'"),
    ],
)
def test_wrong_settings(arguments: dict[str, Fit], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tiling(**arguments)
