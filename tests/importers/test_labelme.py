"""LabelMe's files: every shape, embedded masks, paths, and images without a file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afclip_lightning.cli.datasets import main
from tests.reference import rasterise as reference
from tests.support.imports import HEIGHT, WIDTH, box, import_set, mask_of, png_text, samples_of, write_images

SOLID = np.ones((4, 6), bool)
SOLID[0, 0] = False
PLACED = box(3, 2, 9, 6)
PLACED[2, 3] = False
DISC = np.zeros((HEIGHT, WIDTH), bool)
for place in reference.ellipse(12, 10, 5, 5, 0, HEIGHT, WIDTH):
    DISC[place] = True
SHAPES: dict[str, tuple[dict[str, Any], np.ndarray]] = {
    "polygon": ({"points": [[1, 1], [9, 1], [9, 6], [1, 6]]}, box(1, 1, 9, 6)),
    "rectangle": ({"points": [[7, 5], [2, 3]]}, box(2, 3, 7, 5)),
    "oriented_rectangle": ({"points": [[2, 2], [8, 2], [8, 4], [2, 4]]}, box(2, 2, 8, 4)),
    "circle": ({"points": [[12, 10], [15, 14]]}, DISC),
    "line": ({"points": [[2.5, 4.5], [30.5, 4.5]]}, box(2, 4, 31, 5)),
    "linestrip": ({"points": [[2.5, 4.5], [30.5, 4.5], [30.5, 20.5]]}, box(2, 4, 31, 5) | box(30, 4, 31, 21)),
    "mask": ({"points": [[3.0, 2.0], [8.0, 5.0]], "mask": png_text(SOLID)}, PLACED),
}


def write(path: Path, *shapes: dict[str, Any], image: str = "a.png", **more: Any) -> Path:
    content = {
        "version": "6.3.1",
        "flags": {},
        "shapes": [
            {"label": "crack", "group_id": None, "description": "", "flags": {}, "mask": None, **s} for s in shapes
        ],
        "imagePath": image,
        "imageData": "AAAA no picture",
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, **more}))
    return path


@pytest.mark.parametrize("kind", SHAPES)
def test_shapes_with_an_area(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    images = write_images(tmp_path / "images", "a.png")
    shape, wanted = SHAPES[kind]
    code, out = import_set("labelme", write(tmp_path / "images/a.json", {"shape_type": kind, **shape}), images)
    assert code == 0
    assert np.array_equal(mask_of(out, "a.png"), wanted)
    assert f"{kind}: 1 (1 in masks" in capsys.readouterr().out


def test_a_folder_of_files_with_flags_and_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png", "deep/b.png", "deep/c.png", "d.png")
    write(tmp_path / "images/a.json", {"shape_type": "point", "points": [[3, 3]]})
    write(tmp_path / "images/deep/b.json", image="b.png", flags={"good": True, "scratch": False})
    write(tmp_path / "images/deep/c.json", image="c.png")
    code, _ = import_set("labelme", images, images)
    assert code == 2  # an image without a file may be either
    assert f"{images / 'd.png'} (without a file of the tool): has no shape" in capsys.readouterr().err
    code, out = import_set("labelme", images, images, "--empty", "skip")
    assert code == 0
    assert {n: s.label for n, s in samples_of(out).items()} == {"a.png": 1, "deep/b.png": 0, "deep/c.png": 0}
    assert "point: 1 (1 without an area" in capsys.readouterr().out


def test_paths_from_another_folder_and_another_machine(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", "a.png", "deep/b.png")
    write(tmp_path / "labels/a.json", image="..\\images\\a.png")
    write(tmp_path / "labels/b.json", image="C:\\Users\\x\\deep\\b.png")
    code, out = import_set("labelme", tmp_path / "labels", images)
    assert code == 0
    assert list(samples_of(out)) == ["a.png", "deep/b.png"]


@pytest.mark.parametrize("name", ["../../secret/a.png", "../a.png", "x/../../a.png"])
def test_a_path_that_leads_out_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    images = write_images(tmp_path / "images", "a.png")
    path = write(tmp_path / "images/a.json", image=name)
    assert import_set("labelme", path, images)[0] == 2
    assert f"its image {name!r} lies outside of {images}; refused" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"shape_type": "circle", "points": [[1, 2]]}, "it has 1 points, and needs 2"),
        ({"shape_type": "polygon", "points": []}, "its points are 0 numbers"),
        ({"shape_type": "polygon", "points": [[1, 2, 3], [4, 5, 6]]}, "its points are not pairs of numbers"),
        ({"shape_type": "mask", "points": [[1, 1], [3, 3]]}, "its picture is not text"),
        ({"shape_type": "mask", "points": [[1, 1], [3, 3]], "mask": png_text(SOLID)}, "and its box has another size"),
        ({"shape_type": "mask", "points": [[1, 1], [3, 3]], "mask": "AAAA"}, "its picture"),
    ],
)
def test_a_shape_that_is_none_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: dict[str, Any], said: str
) -> None:
    images = write_images(tmp_path / "images", "a.png")
    path = write(tmp_path / "a.json", shape)
    assert import_set("labelme", path, images)[0] == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(path) in error


def test_files_that_are_not_labelme_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png")
    (tmp_path / "a.json").write_text('{"images": []}')
    assert import_set("labelme", tmp_path / "a.json", images)[0] == 2
    assert "shapes" in capsys.readouterr().err
    assert import_set("labelme", images, images)[0] == 2
    assert "holds no .json file" in capsys.readouterr().err


def test_sets_among_the_photos_are_not_taken_for_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png", "b.png")
    write(images / "a.json", {"points": [[1, 1], [9, 1], [9, 6], [1, 6]]})
    for out in ("first", "first", "second"):
        options = ["--from", "labelme", "--images", str(images), "--out", str(images / out), "--empty", "normal"]
        assert main(["import", str(images), *options]) == 0
        assert {name: s.label for name, s in samples_of(images / out).items()} == {"a.png": 1, "b.png": 0}
    assert f"{images / 'first'} holds a set that was written before" in capsys.readouterr().out


def test_linked_folders_of_files_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png")
    write(tmp_path / "elsewhere/a.json", {"points": [[1, 1], [9, 1], [9, 6], [1, 6]]})
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "monday").symlink_to(tmp_path / "elsewhere")
    code, out = import_set("labelme", labels, images)
    assert code == 0
    assert {name: sample.label for name, sample in samples_of(out).items()} == {"a.png": 1}
    (labels / "back").symlink_to(labels)
    assert import_set("labelme", labels, images)[0] == 2
    assert f"{labels / 'back'}" in capsys.readouterr().err
