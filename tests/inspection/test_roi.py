"""The region of interest: its files, its pixels, and no effect of pixels outside on results."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from afclip_lightning import load
from afclip_lightning.engine.factory import Backbones
from afclip_lightning.inspection.predictor import Predictor
from afclip_runtime.errors import CheckpointError, DatasetError
from afclip_runtime.inspection.calibration import Calibration, fixed
from afclip_runtime.inspection.verdict import Inspection
from afclip_runtime.types import Tiling
from afclip_runtime.views.frame import BLANK, Frame, clear_in_frame, into_frame, place
from afclip_runtime.views.roi import Roi, read_roi
from afclip_runtime.views.tiles import Layout
from tests.support.small_head import picture, write_head

SQUARE = ((10.0, 10.0), (30.0, 10.0), (30.0, 30.0), (10.0, 30.0))
HOLE = ((15.0, 15.0), (20.0, 15.0), (20.0, 20.0), (15.0, 20.0))


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backbones: Backbones = {}
    return write_head(tmp_path_factory.mktemp("run") / "head.ckpt", backbones)


def model_of(head: Path, **options: Any) -> Predictor:
    return load(head, device="cpu", **options)


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def elsewhere(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Returns the image with other pixels outside."""
    other = 255 - image
    other[inside] = image[inside]
    return other


# --- what is inside


def test_outlines_say_which_pixels_are_inside() -> None:
    inside = Roi((40, 40), (SQUARE,), (HOLE,)).inside(40, 40)
    wanted = np.zeros((40, 40), bool)
    wanted[10:30, 10:30] = True
    wanted[15:20, 15:20] = False
    assert_array_equal(inside, wanted)
    assert Roi((40, 40), (SQUARE,), (HOLE,)).share == (400 - 25) / 1600
    assert_array_equal(Roi((40, 40), ignore=(HOLE,)).inside(40, 40)[15:20, 15:20], False)
    assert Roi((40, 40), ignore=(HOLE,)).inside(40, 40).sum() == 1600 - 25


def test_images_of_the_same_shape_are_scaled_and_others_refused() -> None:
    roi = Roi((40, 20), (((0.0, 0.0), (20.0, 0.0), (20.0, 20.0), (0.0, 20.0)),), source="roi.json")
    for height, width in ((40, 80), (10, 20), (5, 10), (333, 667)):
        inside = roi.inside(height, width)
        assert_array_equal(inside[:, : width // 2], True)
        assert_array_equal(inside[:, -(width // 2) :], False)
    for height, width in ((40, 40), (20, 42), (40, 20)):
        with pytest.raises(DatasetError, match=rf"part.png: it has {width}×{height} pixels and roi.json .* on 40×20"):
            roi.inside(height, width, "part.png")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"include": (((50.0, 50.0), (60.0, 50.0), (60.0, 60.0)),)}, "leaves no pixel"),
        ({"ignore": (((-1.0, -1.0), (41.0, -1.0), (41.0, 41.0), (-1.0, 41.0)),)}, "leaves no pixel"),
        ({"runs": (1600,)}, "leaves no pixel"),
        ({"runs": (5, 6)}, "the runs cover 11 pixels, but the size is 40×40"),
        (
            {"runs": (0, 1600), "include": (SQUARE,)},
            "both outlines and runs of a picture are given; only one is allowed",
        ),
        ({"include": (((1.0, 1.0), (5.0, 5.0)),)}, "fewer than 3 points"),
    ],
)
def test_invalid_regions_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Roi((40, 40), **arguments)


# --- files


def test_files_of_all_forms_mean_the_same(tmp_path: Path) -> None:
    inside = np.zeros((40, 40), np.uint8)
    inside[10:30, 10:30] = 255
    plain = write(tmp_path / "a.json", {"size": [40, 40], "include": [SQUARE]})
    shares = [[x / 40, y / 40] for x, y in SQUARE]
    relative = write(tmp_path / "b.json", {"size": [40, 40], "include": [shares], "relative": True})
    shapes = [{"label": "bolt", "points": [[10, 10], [30, 30]], "shape_type": "rectangle"}]
    labelme = write(tmp_path / "c.json", {"shapes": shapes, "imagePath": "x", "imageHeight": 40, "imageWidth": 40})
    Image.fromarray(inside).save(tmp_path / "d.png")
    Image.fromarray(np.dstack([inside] * 3)).save(tmp_path / "e.bmp")
    Image.fromarray(inside // 255).save(tmp_path / "f.png")  # 0 and 1, as the project's masks may be
    Image.fromarray(inside).resize((400, 400), Image.Resampling.BILINEAR).save(tmp_path / "g.png")
    for path in (plain, relative, labelme, *(tmp_path / name for name in ("d.png", "e.bmp", "f.png", "g.png"))):
        assert_array_equal(read_roi(path).inside(40, 40), inside > 0, err_msg=path.name)
    assert read_roi(plain).fingerprint == read_roi(relative).fingerprint
    assert read_roi(plain) == Roi((40, 40), (SQUARE,))
    Image.fromarray(np.full((40, 40), 255, np.uint8)).save(tmp_path / "all.png")
    assert read_roi(tmp_path / "all.png").share == 1
    shapes.append({"label": "ignore", "points": HOLE, "shape_type": "polygon"})
    labelme = write(tmp_path / "c.json", {"shapes": shapes, "imagePath": "x", "imageHeight": 40, "imageWidth": 40})
    assert read_roi(labelme).inside(40, 40).sum() == 400 - 25


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"size": [40, 40]}, "it has no outline"),
        ({"include": [SQUARE]}, "there is no size"),
        ({"size": [40, 0], "include": [SQUARE]}, "size"),
        ({"size": [40, 40], "includes": [SQUARE]}, "unknown field includes"),
        ({"size": [40, 40], "include": [[[1, 2, 3]]]}, "include"),
        ({"size": [40, 40], "include": [[["1", 2], [3, 4], [5, 6]]]}, "expected a number"),
        ({"size": [40, 40], "include": [[[1, 2], [3, 4]]]}, "fewer than 3 points"),
        ({"size": [40, 40], "include": [[[50, 50], [60, 50], [60, 60]]]}, "leaves no pixel"),
        ({"size": [40, 40], "include": [[[1e12, 0], [0, 1e12], [0, 0]]]}, "billion pixels away"),
        ({"size": [10**9, 10**9], "include": [SQUARE]}, "size: has more than"),
        ({"shapes": [], "imageHeight": 4, "imageWidth": 4}, "it has no outline"),
        (
            {"shapes": [{"label": "a", "points": [[1, 1], [2, 2]], "shape_type": "circle"}], "imageHeight": 4}
            | {"imageWidth": 4},
            "a shape is a circle",
        ),
        ([1], "roi.json"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(DatasetError, match=said) as caught:
        read_roi(write(tmp_path / "roi.json", content))
    assert "roi.json" in str(caught.value)
    assert '"include": [[[x, y], …]]' in str(caught.value)  # what it should look like


def test_pictures_that_are_not_masks_are_refused(tmp_path: Path) -> None:
    Image.fromarray(picture(40, 40)).save(tmp_path / "photo.png")
    with pytest.raises(DatasetError, match=r"photo.png: \d+% of its pixels are neither black nor white"):
        read_roi(tmp_path / "photo.png")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "black.png")
    with pytest.raises(DatasetError, match=r"black.png: it leaves no pixel"):
        read_roi(tmp_path / "black.png")
    (tmp_path / "roi.txt").write_text("x")
    with pytest.raises(DatasetError, match=r"roi.txt: it is neither a .json file nor a picture"):
        read_roi(tmp_path / "roi.txt")
    with pytest.raises(DatasetError, match=r"none.json"):
        read_roi(tmp_path / "none.json")
    noise = np.random.default_rng(0).integers(0, 2, (1600, 1600), np.uint8) * 255
    Image.fromarray(noise).save(tmp_path / "noise.png")
    with pytest.raises(DatasetError, match="it is noise, not a mask"):
        read_roi(tmp_path / "noise.png")


# --- views


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("rule", ["squash", "crop", "trim", "pad"])
@pytest.mark.parametrize("shape", [(60, 80), (24, 17), (300, 211), (32, 32)])
def test_clear_pixels_of_a_frame_hold_nothing_from_outside(
    shape: tuple[int, int], rule: Any, interpolation: Any
) -> None:
    rng = np.random.default_rng(0)
    inside = np.zeros(shape, bool)
    inside[shape[0] // 5 : -shape[0] // 4, shape[1] // 6 :] = True
    inside[shape[0] // 2 :, shape[1] // 2] = False
    box = place(rule, *shape, 32)
    clear = clear_in_frame(inside, box, 32, interpolation)
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    seen, other = (into_frame(one, box, 32, interpolation) for one in (image, elsewhere(image, inside)))
    assert_array_equal(seen[clear], other[clear])
    assert clear.shape == (32, 32)
    changed = (seen != other).any(axis=2)
    if rule == "squash":
        assert 0 <= clear.sum() <= (~changed).sum() < 1024
    everything = clear_in_frame(np.ones(shape, bool), box, 32, interpolation)
    assert everything.all()


def test_views_without_an_inspected_pixel_are_left_out() -> None:
    roi = Roi((100, 100), (SQUARE,))
    layout = Layout(100, 100, Tiling(tiles=2, overlap=0.0), Frame(32), roi)
    assert len(layout) == 5
    assert layout.views == [0, 1]  # the whole, and the tile at the left above
    seen = layout.cut(np.zeros((100, 100, 3), np.uint8), 0)
    assert {tuple(pixel) for pixel in seen.reshape(-1, 3).tolist()} == {BLANK, (0, 0, 0)}
    assert Layout(100, 100, Tiling(tiles=2, overlap=0.0), Frame(32)).views == [0, 1, 2, 3, 4]


# --- what a model says

TILINGS = [Tiling(), Tiling("pad", tiles=2), Tiling("tiles", tile_size=24), Tiling(tiles=3, view_score="mean")]


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_nothing_outside_changes_what_a_model_says(head: Path, tiling: Tiling) -> None:
    outline = ((20.0, 5.0), (70.0, 12.0), (50.0, 55.0))
    roi = Roi((80, 60), (outline,), (((40.0, 20.0), (48.0, 20.0), (48.0, 30.0), (40.0, 30.0)),))
    image, inside = picture(60, 80), roi.inside(60, 80)
    model = model_of(head, roi=roi, tiling=tiling, pixel_threshold=0.0)
    one, other = model.predict(image), model.predict(elsewhere(image, inside))
    assert one.score == other.score
    assert_array_equal(one.anomaly_map, other.anomaly_map)
    assert one.score != model_of(head, tiling=tiling).predict(image).score
    assert one.inside is not None
    assert_array_equal(one.inside, inside)
    assert_array_equal(one.anomaly_map[~inside], one.anomaly_map[inside].min())
    assert one.mask is not None
    assert not one.mask[~inside].any()
    assert one.area == one.mask.sum() / inside.sum()
    assert one.inspected.size == inside.sum()
    assert not inside[:3].any()
    assert_array_equal(one.overlay()[:3], image[:3] // 3)  # dark; at the foot stands a caption


def test_area_and_mask_are_of_inspected_pixels() -> None:
    inside = np.zeros((4, 4), bool)
    inside[:2] = True
    found = Inspection(1.0, np.arange(16, dtype=np.float32).reshape(4, 4), 0.5, 3.5, inside=inside)
    assert found.mask is not None
    assert found.mask.sum() == 4
    assert found.area == 0.5
    assert found.regions is not None
    assert [(region.box, region.area, region.score) for region in found.regions] == [((0, 1, 4, 2), 4, 7.0)]


def test_few_shot_images_are_seen_likewise(tmp_path: Path) -> None:
    backbones: Backbones = {}
    arguments = {"layers": [2, 4, 6, 8]}
    path = write_head(tmp_path / "head.ckpt", backbones, "NearestNeighbours", arguments)
    roi = Roi((80, 60), (SQUARE,))
    shots = [picture(60, 80, seed) for seed in range(2)]
    inside = roi.inside(60, 80)
    image = picture(60, 80, 5)
    scores = [
        model_of(path, roi=roi, few_shot=given).predict(image).score
        for given in (shots, [elsewhere(shot, inside) for shot in shots])
    ]
    assert scores[0] == scores[1]
    assert model_of(path, roi=roi, few_shot=shots).predict(shots[0]).score == pytest.approx(0, abs=1e-3)


# --- calibrations


def calibrated(head: Path, place: Path, roi: Roi | None) -> Path:
    model = model_of(head, calibration=None, roi=roi)
    at = fixed(0.5, np.array([0.1]))
    Calibration(at, at, model.checkpoint, model.settings, roi=model.roi).save(place)
    return place


@pytest.mark.parametrize("form", ["outlines", "picture"])
def test_a_calibration_brings_its_region(head: Path, tmp_path: Path, form: str) -> None:
    roi = Roi((80, 60), (SQUARE,), source="mine.json")
    if form == "picture":
        Image.fromarray(roi.inside(60, 80)).save(tmp_path / "mine.png")
        roi = read_roi(tmp_path / "mine.png")
    place = calibrated(head, tmp_path / "a.calibration.json", roi)
    model = model_of(head, calibration=place)
    assert model.roi == roi
    assert model.roi is not None
    assert model.roi.source.endswith(("mine.json", "mine.png"))
    same = Roi((80, 60), roi.include, runs=roi.runs)
    assert model_of(head, calibration=place, roi=same).predict(picture(60, 80)).threshold == 0.5
    other = Roi((80, 60), (HOLE,))
    with pytest.raises(CheckpointError, match=r"the region of interest \w{16} when calibrated, .* now"):
        model_of(head, calibration=place, roi=other)
    whole = calibrated(head, tmp_path / "b.calibration.json", None)
    with pytest.raises(CheckpointError, match="the whole image when calibrated, the region of interest"):
        model_of(head, calibration=whole, roi=other)


def test_a_region_that_was_changed_by_hand_is_refused(head: Path, tmp_path: Path) -> None:
    place = calibrated(head, tmp_path / "a.calibration.json", Roi((80, 60), (SQUARE,)))
    content = json.loads(place.read_text())
    content["roi"]["include"][0][0] = [0, 0]
    with pytest.raises(DatasetError, match="made with another region of interest than the file holds"):
        Calibration.read(write(place, content))
    content["roi"] = None
    with pytest.raises(DatasetError, match="another region of interest"):
        Calibration.read(write(place, content))


def test_an_image_of_another_shape_is_an_error_of_that_image(head: Path) -> None:
    model = model_of(head, roi=Roi((80, 60), (SQUARE,), source="roi.json"))
    images = [picture(60, 80), picture(60, 60), picture(120, 160)]
    outcomes = dict(model.stream(images))
    assert isinstance(outcomes[0], Inspection)
    assert isinstance(outcomes[2], Inspection)
    assert isinstance(outcomes[1], DatasetError)
    assert "it has 60×60 pixels and roi.json was drawn on 80×60" in str(outcomes[1])
    assert outcomes[2].anomaly_map.shape == (120, 160)
    assert_allclose(outcomes[2].inside.mean() if outcomes[2].inside is not None else 0, 400 / 4800, atol=1e-6)
