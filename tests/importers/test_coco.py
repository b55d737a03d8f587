"""COCO's instances: polygons of several parts, run lengths, crowds and boxes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afclip_lightning.annotations.rle import mask_to_coco, mask_to_runs
from tests.support.imports import HEIGHT, WIDTH, box, import_set, mask_of, samples_of, write_images, write_json_file

ONE = {"id": 1, "name": "crack"}


def export(path: Path, annotations: list[dict[str, Any]], names: tuple[str, ...] = ("a.png",), **more: Any) -> Path:
    images = [{"id": i, "file_name": n, "width": WIDTH, "height": HEIGHT} for i, n in enumerate(names, 1)]
    drawn = [{"id": i, "image_id": 1, "category_id": 1, **a} for i, a in enumerate(annotations, 1)]
    return write_json_file(path, {"images": images, "annotations": drawn, "categories": [ONE], **more})


def test_every_shape_of_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png")
    dots = np.zeros((HEIGHT, WIDTH), bool)
    dots[20, ::2] = True
    block = box(30, 2, 36, 8)
    drawn = [
        {"segmentation": [[1, 1, 5, 1, 5, 4, 1, 4], [7, 1, 9, 1, 9, 3, 7, 3]], "bbox": [1, 1, 8, 3]},
        {"segmentation": mask_to_coco(dots), "iscrowd": 1},
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": mask_to_runs(block, by_columns=True)}, "iscrowd": 1},
        {"segmentation": [], "bbox": [10, 10, 4, 2], "area": 8},
        {"bbox": [20, 10, 8, 2], "attributes": {"rotation": 90.0}},
    ]
    code, out = import_set("coco", export(tmp_path / "c.json", drawn), images)
    assert code == 0
    wanted = box(1, 1, 5, 4) | box(7, 1, 9, 3) | dots | block | box(10, 10, 14, 12) | box(23, 7, 25, 15)
    assert np.array_equal(mask_of(out, "a.png"), wanted)
    told = capsys.readouterr().out
    assert "Shapes and tags in the export: 5" in told
    for line in ("polygon: 1 (1 in masks", "run lengths: 1 (1 in", "uncompressed run lengths: 1 (1 in", "box: 2 (2 in"):
        assert line in told


def test_a_crack_of_one_pixel_does_not_vanish(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", "a.png")
    thin = {"segmentation": [[2, 10.4, 30, 10.4, 30, 10.5, 2, 10.5]]}
    _, out = import_set("coco", export(tmp_path / "c.json", [thin]), images)
    assert np.array_equal(mask_of(out, "a.png"), box(2, 10, 30, 11))


def test_what_has_no_area_is_named_and_its_image_stays_anomalous(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", "a.png", "b.png", "c.png")
    points = {"keypoints": [3, 4, 2], "num_keypoints": 1}
    drawn = [points, {"image_id": 2, "bbox": [1, 1, 2, 2]}, {"image_id": 2, **points}, {"image_id": 3}]
    code, out = import_set("coco", export(tmp_path / "c.json", drawn, ("a.png", "b.png", "c.png")), images)
    assert code == 0
    found = samples_of(out)
    assert [found[name].label for name in ("a.png", "b.png", "c.png")] == [1, 1, 1]
    assert not any(sample.mask_known for sample in found.values())  # not even where another shape has an area
    told = capsys.readouterr().out
    assert "keypoints: 2 (2 without an area" in told
    assert "annotation without a shape: 1 (1 without an area" in told
    assert "box: 1 (1 in no mask, since another shape of the image is without an area" in told
    assert "Anomalous images without a mask, since one of their shapes has no area: 3 " in told


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"images": 3}, "images: expected a list"),
        ({"images": [{"id": 1}]}, "file_name"),
        ([], "expected a mapping"),
    ],
)
def test_files_that_are_not_coco_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, said: str
) -> None:
    images = write_images(tmp_path / "images", "a.png")
    path = write_json_file(tmp_path / "c.json", content)
    assert import_set("coco", path, images)[0] == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert said in error
    assert "Export it again" in error


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_id": 9}, "there is no image 9"),
        ({"category_id": 9}, "there is no category 9"),
        ({"segmentation": [[1, 2, 3]]}, "must be pairs"),
        ({"segmentation": "x"}, "neither polygons nor run lengths"),
        ({"segmentation": [["a", "b"]]}, "its points are not pairs of numbers"),
        ({"bbox": [1, 2, 3]}, "not x, y, width, height"),
        ({"bbox": [1, 2, 3, -1]}, "not x, y, width, height"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [5, 5]}}, "add up to 10 pixels"),
        ({"segmentation": {"size": [3, 3], "counts": [9]}}, "are of 3×3 pixels, and the image is 40×30"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "~~"}}, "are not in COCO's text form"),
        ({"segmentation": {"counts": [5]}}, "no size"),
        ({"bbox": [100, 100, 5, 5]}, "lies outside of the image"),
    ],
)
def test_a_shape_that_is_none_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    images = write_images(tmp_path / "images", "a.png")
    path = export(tmp_path / "c.json", [{"bbox": [1, 1, 2, 2]}, change])
    assert import_set("coco", path, images)[0] == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(path) in error
    assert not (tmp_path / "set").exists()


def test_two_images_with_one_number_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png")
    path = export(tmp_path / "c.json", [], images=[{"id": 1, "file_name": n} for n in "ab"])
    assert import_set("coco", path, images)[0] == 2
    assert "two images have the number 1" in capsys.readouterr().err


def test_a_category_without_a_shape_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png")
    path = export(tmp_path / "c.json", [{"bbox": [1, 1, 2, 2]}], categories=[ONE, {"id": 2, "name": "hole"}])
    assert import_set("coco", path, images)[0] == 0
    assert "Nothing is labelled 'hole', which the tool offers." in capsys.readouterr().out
