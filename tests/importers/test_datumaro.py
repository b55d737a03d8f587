"""Datumaro's own format: its types of annotations, labels, subsets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afclip_lightning.annotations.rle import mask_to_coco
from tests.reference import rasterise as reference
from tests.support.imports import HEIGHT, WIDTH, box, import_set, mask_of, samples_of, write_images, write_json_file

DOTS = np.zeros((HEIGHT, WIDTH), bool)
DOTS[3:9, 5:30:2] = True
OVAL = np.zeros((HEIGHT, WIDTH), bool)
for place in reference.ellipse(12, 10, 8, 5, 0, HEIGHT, WIDTH):
    OVAL[place] = True
SHAPES: dict[str, tuple[dict[str, Any], np.ndarray]] = {
    "polygon": ({"points": [1, 1, 9, 1, 9, 6, 1, 6]}, box(1, 1, 9, 6)),
    "polyline": ({"points": [2.5, 4.5, 30.5, 4.5]}, box(2, 4, 31, 5)),
    "bbox": ({"bbox": [2.0, 3.0, 5.0, 2.0]}, box(2, 3, 7, 5)),
    "ellipse": ({"points": [4, 5, 20, 15]}, OVAL),
    "mask": ({"rle": mask_to_coco(DOTS)}, DOTS),
}


def item(name: str, *annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    drawn = [{"id": 0, "attributes": {}, "group": 0, "label_id": 0, "z_order": 0, **a} for a in annotations]
    image = {"path": f"{name}.png", "size": [HEIGHT, WIDTH]}
    return {"id": name, "annotations": drawn, "image": image, **more}


def write(path: Path, *items: dict[str, Any]) -> Path:
    labels = {"label": {"labels": [{"name": n, "parent": "", "attributes": []} for n in ("crack", "good")]}}
    head = {"dm_format_version": "1.0", "media_type": 2, "infos": {}, "categories": labels}
    return write_json_file(path, {**head, "items": list(items)})


@pytest.mark.parametrize("kind", SHAPES)
def test_shapes_with_an_area(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    images = write_images(tmp_path / "images", "a.png")
    annotation, wanted = SHAPES[kind]
    code, out = import_set("datumaro", write(tmp_path / "d.json", item("a", {"type": kind, **annotation})), images)
    assert code == 0
    assert np.array_equal(mask_of(out, "a.png"), wanted)
    assert f"{kind}: 1 (1 in masks" in capsys.readouterr().out


def test_a_dataset_of_two_subsets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "d/images", "train/a.png", "test/b.png", "test/c.png")
    write(tmp_path / "d/annotations/train.json", item("a", {"type": "label", "label_id": 1}))
    frame = {"id": "f", "video_frame": {"video_path": "v.mp4", "frame_index": 3}}
    write(
        tmp_path / "d/annotations/test.json",
        item("b", {"type": "points", "points": [1, 2]}, {"type": "caption", "caption": "x"}),
        item("c", {"type": "cuboid_2d", "points": []}, image={"path": "c.png"}),
        frame,
    )
    code, out = import_set("datumaro", tmp_path / "d", images, "--split", "subset")
    assert code == 0
    assert {name: s.label for name, s in samples_of(out, "train").items()} == {"train/a.png": 0}
    assert {name: s.label for name, s in samples_of(out).items()} == {"test/b.png": 1, "test/c.png": 1}
    told = capsys.readouterr().out
    for line in (
        "tag: 1 (1 for normal",
        "points: 1 (1 without an area",
        "cuboid_2d: 1 (1 without an area",
        "caption: 1 (not of defects)",
        "item that is not an image: 1 (not of defects)",
    ):
        assert line in told


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        ({"type": "bbox", "bbox": [1, 2, 3]}, "not x, y, width, height"),
        ({"type": "bbox"}, "not x, y, width, height"),
        ({"type": "polygon", "points": [1]}, "must be pairs"),
        ({"type": "polygon"}, "its points are not pairs of numbers"),
        ({"type": "ellipse", "points": [1, 2]}, "it has 2 numbers, and needs 4"),
        ({"type": "mask"}, "no size, or no counts"),
        ({"type": "bbox", "bbox": [1, 2, 3, 4], "label_id": 7}, "there is no label 7"),
    ],
)
def test_an_annotation_that_is_none_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], annotation: dict[str, Any], said: str
) -> None:
    images = write_images(tmp_path / "images", "a.png")
    path = write(tmp_path / "d.json", item("a", annotation))
    assert import_set("datumaro", path, images)[0] == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(path) in error


def test_invalid_datasets_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png")
    path = write_json_file(tmp_path / "d.json", {"items": [{"annotations": []}]})
    assert import_set("datumaro", path, images)[0] == 2
    assert "id" in capsys.readouterr().err
    path = write(path, item("a", image={"path": "a.png", "size": [3]}))
    assert import_set("datumaro", path, images)[0] == 2
    assert "its size is not a height and a width" in capsys.readouterr().err


def test_an_unused_label_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png")
    annotation = {"type": "polygon", **SHAPES["polygon"][0]}
    assert import_set("datumaro", write(tmp_path / "d.json", item("a", annotation)), images)[0] == 0
    assert "Nothing is labelled 'good', which the tool offers." in capsys.readouterr().out
