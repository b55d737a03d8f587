"""Supervisely projects: bitmaps, polygons with holes, turned boxes; coordinates are whole pixels there."""

import base64
import io
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.imports import HEIGHT, WIDTH, box, import_set, mask_of, samples_of, write_images, write_json_file

BLOCK = np.ones((3, 5), bool)
BLOCK[1, 1:3] = False
PLACED = box(7, 4, 12, 7)
PLACED[5, 8:10] = False


def packed(mask: np.ndarray, kind: str = "palette") -> str:
    """Returns a mask as Supervisely writes it: a PNG with transparency, packed once more."""
    buffer = io.BytesIO()
    if kind == "palette":
        picture = Image.fromarray(mask.astype(np.uint8))
        picture.putpalette([0, 0, 0, 255, 255, 255])
        picture.save(buffer, "PNG", transparency=0)
    else:
        colours = np.full((*mask.shape, 4), 200, np.uint8)
        colours[..., 3] = mask * np.uint8(255)
        Image.fromarray(colours).save(buffer, "PNG")
    content = buffer.getvalue()
    return base64.b64encode(content if kind == "bare" else zlib.compress(content)).decode()


def outline(*points: list[int], holes: list[list[list[int]]] | None = None) -> dict[str, Any]:
    return {"points": {"exterior": list(points), "interior": holes or []}}


RING = box(2, 3, 10, 9) & ~box(4, 5, 7, 8)
SHAPES: dict[str, tuple[dict[str, Any], np.ndarray]] = {
    "rectangle": (outline([2, 3], [6, 4]), box(2, 3, 7, 5)),
    "polygon": (outline([2, 3], [9, 3], [9, 8], [2, 8], holes=[[[4, 5], [6, 5], [6, 7], [4, 7]]]), RING),
    "multipolygon": (
        {"parts": [outline([1, 1], [3, 1], [3, 2], [1, 2])["points"], outline([10, 10], [12, 10], [12, 12])["points"]]},
        box(1, 1, 4, 3) | box(10, 10, 13, 11) | box(11, 11, 13, 12) | box(12, 12, 13, 13),
    ),
    "line": (outline([2, 4], [30, 4]), box(2, 4, 31, 5)),
    "bitmap": ({"bitmap": {"data": packed(BLOCK), "origin": [7, 4]}}, PLACED),
    "alpha_mask": ({"bitmap": {"data": packed(BLOCK, "alpha"), "origin": [7, 4]}}, PLACED),
    "oriented_bbox": ({"points": [[10, 10], [19, 11]], "angle": math.pi / 2}, box(14, 6, 16, 16)),
}


def write(path: Path, *objects: dict[str, Any], tags: tuple[dict[str, Any], ...] = ()) -> Path:
    size = {"height": HEIGHT, "width": WIDTH}
    things = [{"classTitle": "crack", "classId": 4, "tags": [], **thing} for thing in objects]
    return write_json_file(path, {"description": "", "tags": list(tags), "size": size, "objects": things})


@pytest.mark.parametrize("kind", SHAPES)
def test_shapes_with_an_area(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    project = tmp_path / "project"
    images = write_images(project, "ds/img/a.png")
    thing, wanted = SHAPES[kind]
    write(project / "ds/ann/a.png.json", {"geometryType": kind, **thing})
    code, out = import_set("supervisely", project, images)
    assert code == 0
    assert np.array_equal(mask_of(out, "ds/img/a.png"), wanted)
    assert f"{kind}: 1 (1 in masks" in capsys.readouterr().out


def test_a_bitmap_that_is_not_packed(tmp_path: Path) -> None:
    project = tmp_path / "project"
    images = write_images(project, "ds/img/a.png")
    write(
        project / "ds/ann/a.png.json",
        {"geometryType": "bitmap", "bitmap": {"data": packed(BLOCK, "bare"), "origin": [7, 4]}},
    )
    _, out = import_set("supervisely", project, images)
    assert np.array_equal(mask_of(out, "ds/img/a.png"), PLACED)


def test_a_project_of_two_datasets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = tmp_path / "project"
    images = write_images(project, "one/img/a.png", "two/img/a.png", "two/datasets/in/img/b.png", "two/img/c.png")
    write_json_file(project / "meta.json", {"classes": []})
    write(project / "one/ann/a.png.json", {"geometryType": "rectangle", **SHAPES["rectangle"][0]})
    write(project / "two/ann/a.png.json", tags=({"name": "good"},))
    write(
        project / "two/ann/c.png.json",
        {"geometryType": "cuboid_2d"},
        {"geometryType": "graph"},
        {"geometryType": "point"},
    )
    write(project / "two/datasets/in/ann/b.png.json", tags=({"name": "verdict", "value": "NOK"},))
    code, out = import_set("supervisely", project, images, "--category_by", "project")
    assert code == 0
    found = samples_of(out)
    assert {name: (s.category, s.label) for name, s in found.items()} == {
        "one/img/a.png": ("one", 1),
        "two/img/a.png": ("two", 0),
        "two/img/c.png": ("two", 1),
        "two/datasets/in/img/b.png": ("two/in", 1),
    }
    assert not found["two/img/c.png"].mask_known
    told = capsys.readouterr().out
    assert "crack, verdict=NOK" in told
    for kind in ("cuboid_2d", "graph", "point"):
        assert f"{kind}: 1 (1 without an area" in told


def test_one_dataset_and_its_folder_of_annotations(tmp_path: Path) -> None:
    dataset = tmp_path / "ds"
    images = write_images(dataset / "img", "a.png")
    write(dataset / "ann/a.png.json", {"geometryType": "rectangle", **SHAPES["rectangle"][0]})
    for place in (dataset, dataset / "ann"):
        assert import_set("supervisely", place, images)[0] == 0
    assert list(samples_of(dataset / "set")) == ["a.png"]


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        ({"geometryType": "rectangle", **outline([1, 2])}, "it needs two points"),
        ({"geometryType": "polygon", "points": 3}, "its points are invalid"),
        ({"geometryType": "polygon", **outline([1, 2, 3], [3, 4, 5])}, "its points are not pairs of numbers"),
        ({"geometryType": "bitmap"}, "it has no picture"),
        ({"geometryType": "bitmap", "bitmap": {"data": "~", "origin": [1, 2]}}, "is not base64"),
        ({"geometryType": "bitmap", "bitmap": {"data": "AAAA", "origin": [1, 2]}}, "cannot be unpacked"),
        ({"geometryType": "bitmap", "bitmap": {"data": packed(BLOCK)[:-12], "origin": [1, 2]}}, "its picture"),
        ({"geometryType": "oriented_bbox", "points": [[1, 2]]}, "it needs two points"),
        ({"geometryType": "bitmap", "bitmap": {"data": packed(BLOCK), "origin": [90, 2]}}, "outside of the image"),
    ],
)
def test_a_shape_that_is_none_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], thing: dict[str, Any], said: str
) -> None:
    images = write_images(tmp_path / "ds/img", "a.png")
    path = write(tmp_path / "ds/ann/a.png.json", thing)
    assert import_set("supervisely", tmp_path / "ds", images)[0] == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(path) in error


def test_folders_that_are_not_projects_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png")
    (tmp_path / "p.tar").touch()
    assert import_set("supervisely", tmp_path / "p.tar", images)[0] == 2
    assert "is not a folder. Unpack" in capsys.readouterr().err
    write_json_file(tmp_path / "p/meta.json", {})
    assert import_set("supervisely", tmp_path / "p", images)[0] == 2
    assert "holds no folder 'ann'" in capsys.readouterr().err


def test_an_unused_class_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = tmp_path / "project"
    images = write_images(project, "ds/img/a.png")
    write_json_file(project / "meta.json", {"classes": [{"title": "crack"}, {"title": "hole", "shape": "polygon"}]})
    write(project / "ds/ann/a.png.json", {"geometryType": "rectangle", **SHAPES["rectangle"][0]})
    assert import_set("supervisely", project, images)[0] == 0
    assert "Nothing is labelled 'hole', which the tool offers." in capsys.readouterr().out
    (project / "meta.json").write_text('{"classes": 3}')
    assert import_set("supervisely", project, images)[0] == 2
    assert "meta.json" in capsys.readouterr().err
