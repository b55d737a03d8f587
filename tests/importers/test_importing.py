"""Conversion of any export: the set on disk, empty images, sizes, orientation, faults, and a second run."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from afclip_lightning.cli.datasets import main
from tests.support.imports import (
    HEIGHT,
    WIDTH,
    box,
    import_set,
    mask_of,
    samples_of,
    write_export,
    write_images,
    write_json_file,
)

BOX = {"bbox": [2, 3, 5, 4]}


def export(path: Path, names: list[str], drawn: dict[int, dict[str, Any]], size: tuple[int, int] | None = None) -> Path:
    """Writes a COCO file; `drawn` has the annotation of an image by its place."""
    width, height = size or (WIDTH, HEIGHT)
    images = [{"id": i, "file_name": name, "width": width, "height": height} for i, name in enumerate(names)]
    shapes = [{"image_id": image, "category_id": 1, **shape} for image, shape in drawn.items()]
    names_of = [{"id": i, "name": name} for i, name in enumerate(("good", "crack", "hole", "outline"))]
    return write_json_file(path, {"images": images, "annotations": shapes, "categories": names_of})


def test_the_set_is_one_that_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "x/a.png", "y/a.png", "y/a.jpg", "b.png", "unlisted.png")
    path = export(
        tmp_path / "c.json", ["x/a.png", "y/a.png", "y/a.jpg", "b.png"], {0: BOX, 2: {**BOX, "category_id": 2}}
    )
    code, out = import_set("coco", path, images, "--empty", "normal")
    assert code == 0
    found = samples_of(out)
    assert {name: (s.label, s.defect_type) for name, s in found.items()} == {
        "x/a.png": (1, "crack"),
        "y/a.png": (0, ""),
        "y/a.jpg": (1, "hole"),
        "b.png": (0, ""),
    }
    assert found["y/a.jpg"].mask_path == out / "masks/y/a.jpg.png"
    assert {sample.category for sample in found.values()} == {"set"}
    told = capsys.readouterr().out
    assert "set: 2 normal, 2 anomalous (2 with a mask)" in told
    assert f"Images left out, as the export does not name them: 1 ({images / 'unlisted.png'})" in told
    assert "Defect types: crack, hole" in told
    assert not list(out.rglob(".*"))
    listing = json.loads((out / "meta.json").read_text())
    assert listing["test"]["set"][0] == {
        "img_path": "images/b.png",
        "mask_path": "",
        "cls_name": "set",
        "specie_name": "good",
        "anomaly": 0,
    }
    assert main(["check", "Listing", "--root", str(out)]) == 0


def test_an_image_without_a_shape_is_never_normal_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png", "b.png")
    path = export(tmp_path / "c.json", ["a.png", "b.png"], {0: BOX})
    assert import_set("coco", path, images)[0] == 2
    error = capsys.readouterr().err
    assert "image b.png: has no shape and no label" in error
    assert "--empty normal, or --empty skip" in error
    assert not (tmp_path / "set").exists()
    assert import_set("coco", path, images, "--empty", "skip")[0] == 0
    assert list(samples_of(tmp_path / "set")) == ["a.png"]


def test_images_are_links_or_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    images = write_images(tmp_path / "images", "a.png")
    path = export(tmp_path / "c.json", ["a.png"], {0: BOX})
    _, out = import_set("coco", path, images)
    assert os.path.samefile(out / "images/a.png", images / "a.png")
    for number, options in enumerate((["--place", "copy"], [])):
        other = write_images(tmp_path / str(number) / "images", "a.png")
        if not options:
            monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("another file system")))
        _, out = import_set("coco", path, other, *options)
        assert not os.path.samefile(out / "images/a.png", other / "a.png")
        assert (out / "images/a.png").read_bytes() == (other / "a.png").read_bytes()
        said = capsys.readouterr().out
        assert "Images copied, since hard links are not possible or --place copy was given: 1" in said


def test_a_stopped_run_goes_on_and_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png", "b.png")
    path = export(tmp_path / "c.json", ["a.png", "b.png"], {0: BOX, 1: BOX})
    _, out = import_set("coco", path, images)
    (out / "meta.json").unlink()
    (out / "masks/b.png.png").unlink()
    before = (out / "masks/a.png.png").stat()  # reading it may change when it was last read
    assert import_set("coco", path, images)[0] == 0
    after = (out / "masks/a.png.png").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(samples_of(out)) == ["a.png", "b.png"]
    for name, content in (("meta.json", b"{}"), ("masks/a.png.png", b"other"), ("images/b.png", b"other")):
        kept = (out / name).read_bytes()
        (out / name).unlink()
        (out / name).write_bytes(content)
        capsys.readouterr()
        assert import_set("coco", path, images)[0] == 2
        assert f"error: {out / name} already exists with other content" in capsys.readouterr().err
        assert (out / name).read_bytes() == content
        (out / name).write_bytes(kept)


def test_the_set_may_lie_in_the_folder_of_the_images(tmp_path: Path) -> None:
    images = write_images(tmp_path, "a.png")
    path = export(tmp_path / "c.json", ["a.png"], {0: BOX})
    out = tmp_path / "set"
    for _ in range(2):
        assert main(["import", str(path), "--from", "coco", "--images", str(images), "--out", str(out)]) == 0
    assert list(samples_of(out)) == ["a.png"]


def rotated(path: Path, orientation: int) -> None:
    """Writes an image with an EXIF orientation; upright it is WIDTH × HEIGHT."""
    size = (HEIGHT, WIDTH) if orientation >= 5 else (WIDTH, HEIGHT)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 9, 9)).save(path, exif=exif)


def test_what_is_to_be_typed_next_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png")
    path, out = export(tmp_path / "c.json", ["a.png"], {0: BOX}), tmp_path / "größe (2) $HOME"
    assert main(["import", str(path), "--from", "coco", "--images", str(images), "--out", str(out)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("Next: ", "Look: "))]
    assert len(lines) == 2
    assert all(shlex.split(line)[-2:] == ["--root", str(out)] for line in lines)
    assert main(shlex.split(lines[0])[5:]) == 0


def test_the_folder_of_the_images_is_no_place_for_the_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png")
    path = export(tmp_path / "c.json", ["a.png"], {0: BOX})
    assert main(["import", str(path), "--from", "coco", "--images", str(images), "--out", f"{images}/."]) == 2
    assert "is the folder of the images" in capsys.readouterr().err
    assert [file.name for file in images.iterdir()] == ["a.png"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_shapes_lie_on_the_upright_image(tmp_path: Path, orientation: int) -> None:
    """As shown by browsers and the tools."""
    rotated(tmp_path / "images/a.jpg", orientation)
    path = export(tmp_path / "c.json", ["a.jpg"], {0: BOX})
    code, out = import_set("coco", path, tmp_path / "images")
    assert code == 0
    assert np.array_equal(mask_of(out, "a.jpg"), box(2, 3, 7, 7))


@pytest.mark.parametrize(("orientation", "wanted"), [
    (5, box(3, 2, 7, 7)),  # x and y exchanged
    (6, box(WIDTH - 7, 2, WIDTH - 3, 7)),  # the image is turned clockwise to be seen
    (7, box(WIDTH - 7, HEIGHT - 7, WIDTH - 3, HEIGHT - 2)),
    (8, box(3, HEIGHT - 7, 7, HEIGHT - 2)),
])  # fmt: skip
def test_shapes_on_the_image_as_it_lies_in_the_file(tmp_path: Path, orientation: int, wanted: np.ndarray) -> None:
    """By the size in the export, its tool did not rotate the image."""
    rotated(tmp_path / "images/a.jpg", orientation)
    path = export(tmp_path / "c.json", ["a.jpg"], {0: BOX}, size=(HEIGHT, WIDTH))
    code, out = import_set("coco", path, tmp_path / "images")
    assert code == 0
    assert np.array_equal(mask_of(out, "a.jpg"), wanted)


def test_an_image_of_another_size_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png", "b.png")
    path = export(tmp_path / "c.json", ["a.png", "b.png"], {0: BOX, 1: BOX}, size=(80, 60))
    write_images(images, "b.png", size=(80, 60))
    assert import_set("coco", path, images)[0] == 2
    error = capsys.readouterr().err
    assert "image a.png: the export says that the image is 80×60 pixels, and it is 40×30." in error
    assert "Nothing was written" in error
    code, out = import_set("coco", path, images, "--on_error", "skip")
    assert code == 1
    assert list(samples_of(out)) == ["b.png"]
    told = capsys.readouterr()
    assert "left out: " in told.err
    assert "box: 2 (1 of images left out, 1 in masks" in told.out


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["gone.png"], "there is no image 'gone.png'"),
        (["a.png", "/x/a.png"], "is also named by"),
        (["b.png"], "may be"),
        (["../images/a.png"], "leads out of"),
        (["bad.png"], "cannot be read as an image"),
    ],
)
def test_images_that_are_not_as_they_should_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], said: str
) -> None:
    images = write_images(tmp_path / "images", "a.png", "one/b.png", "two/b.png")
    (images / "bad.png").write_bytes(b"no image")
    path = export(tmp_path / "c.json", names, dict.fromkeys(range(len(names)), BOX))
    assert import_set("coco", path, images)[0] == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 2
    assert import_set("coco", path, images, "--on_error", "skip")[0] == (1 if len(names) > 1 else 2)


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.pgm").write_bytes(b"P5 131072 131072 255\n")
    path = export(tmp_path / "c.json", ["a.pgm"], {0: BOX}, size=(2**17, 2**17))
    assert import_set("coco", path, tmp_path / "images")[0] == 2
    assert "has more than" in capsys.readouterr().err


def test_many_faults_are_reported_briefly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png")
    path = export(tmp_path / "c.json", [f"{i}.png" for i in range(30)], {})
    assert import_set("coco", path, images)[0] == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-2] == "and 22 more."


def test_categories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "nut/a.png", "pin/b.png")
    path = export(tmp_path / "c.json", ["nut/a.png", "pin/b.png"], {0: BOX, 1: BOX})
    code, out = import_set("coco", path, images, "--category_by", "folder")
    assert code == 0
    assert [sample.category for sample in samples_of(out).values()] == ["nut", "pin"]
    again = write_images(tmp_path / "2/images", "nut/a.png", "pin/b.png")
    assert import_set("coco", path, again, "--category", "metal nut", "--split", "train")[0] == 0
    assert {s.category for s in samples_of(tmp_path / "2/set", "train").values()} == {"metal nut"}
    assert import_set("coco", path, images, "--category_by", "project")[0] == 2
    assert "the export names no project" in capsys.readouterr().err
    flat = write_images(tmp_path / "3/images", "a.png")
    single = export(tmp_path / "d.json", ["a.png"], {0: BOX})
    assert import_set("coco", single, flat, "--category_by", "folder")[0] == 2
    assert "lies in no folder" in capsys.readouterr().err


def test_labels_that_mean_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png", "b.png", "c.png")
    shapes = {0: {**BOX, "category_id": 0}, 1: {**BOX, "category_id": 3}, 2: BOX}
    path = export(tmp_path / "c.json", ["a.png", "b.png", "c.png"], shapes)
    code, out = import_set("coco", path, images, "--ignore_label", "outline", "--empty", "normal")
    assert code == 0
    assert [s.label for s in samples_of(out).values()] == [0, 0, 1]
    told = capsys.readouterr().out
    assert "box: 3 (1 for normal, 1 ignored, 1 in masks)" in told
    assert "Labels that mean normal (--normal_label): good (1)\n" in told
    assert "Defect types: crack\n" in told
    again = write_images(tmp_path / "2/images", "a.png", "b.png", "c.png")
    assert import_set("coco", path, again, "--normal_label", "outline")[0] == 0
    assert {n: s.defect_type for n, s in samples_of(tmp_path / "2/set").items() if s.label} == {
        "a.png": "good",
        "c.png": "crack",
    }


def test_shapes_that_reach_beyond_are_cut_off_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png")
    path = export(tmp_path / "c.json", ["a.png"], {0: {"bbox": [-4, -4, 10, 10]}})
    _, out = import_set("coco", path, images)
    assert np.array_equal(mask_of(out, "a.png"), box(0, 0, 6, 6))
    assert "Shapes cut off at the border of their image: 1" in capsys.readouterr().out


@pytest.mark.parametrize("width", ["0.5", "x", "nan", "9999"])
def test_invalid_widths(tmp_path: Path, capsys: pytest.CaptureFixture[str], width: str) -> None:
    images = write_images(tmp_path / "images", "a.png")
    with pytest.raises(SystemExit):
        import_set("coco", tmp_path / "c.json", images, "--line_width", width)
    assert "must be from 1 to 1000 pixels" in capsys.readouterr().err


def test_packed_exports_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png")
    (tmp_path / "c.zip").touch()
    assert import_set("coco", tmp_path / "c.zip", images)[0] == 2
    assert "is packed. Unpack it" in capsys.readouterr().err
    assert import_set("coco", tmp_path / "no.json", images)[0] == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("tool", ["labelstudio", "cvat", "coco", "labelme", "supervisely", "datumaro"])
def test_a_shape_that_is_none_costs_its_image_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tool: str
) -> None:
    images = write_images(tmp_path / "x", "a.png", "b.png")
    path = write_export(tool, tmp_path / "x")
    text = path.read_text()
    harm = {
        "labelstudio": ("[[1, 1], [50, 1], [50, 50]]", "3"),
        "cvat": ("1,1;9,1;9,6", "1,1;9"),
        "coco": ("[[1, 1, 9, 1, 9, 5]]", "[[1, 1, 9]]"),
        "labelme": ("[[1, 1], [9, 1], [9, 5]]", "[]"),
        "supervisely": ('"origin": [1, 2]', '"origin": [1]'),
        "datumaro": ("[1, 1, 9, 1, 9, 5]", "[1]"),
    }[tool]
    assert harm[0] in text
    path.write_text(text.replace(*harm))
    export = path.parent if tool == "supervisely" else path
    assert import_set(tool, export, images, "--empty", "normal")[0] == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert "again" in error
    assert len(error.splitlines()) == 2
    if tool == "coco":
        path.write_text(path.read_text().replace('"images": [', '"images": [{"id": 7, "file_name": "b.png"}, '))
    elif tool != "labelme":
        return
    code, out = import_set(tool, export, images, "--empty", "normal", "--on_error", "skip")
    assert code == 1
    assert list(samples_of(out)) == ["b.png"]  # the other image is not normal because its shape cannot be read


def test_what_nobody_finished_need_not_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png", "b.png")
    tasks: list[dict[str, Any]] = [
        {"data": {"image": "gone.png"}, "annotations": []},
        {"data": {"image": "a.png"}, "annotations": []},  # the same image again, with an annotation below
        {"data": {"image": "a.png"}, "annotations": [{"result": []}]},
        {"data": {"image": "b.png"}, "annotations": []},
    ]
    code, out = import_set("labelstudio", write_json_file(tmp_path / "t.json", tasks), images)
    assert code == 0
    assert list(samples_of(out)) == ["a.png"]
    told = capsys.readouterr().out
    assert "Images left out, as nobody has finished annotating them: 3 (gone.png, a.png, b.png)" in told
    assert "does not name" not in told


def test_labels_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png")
    path = write_json_file(
        tmp_path / "c.json",
        {
            "images": [{"id": 0, "file_name": "a.png"}],
            "annotations": [{"image_id": 0, "category_id": 1, **BOX}],
            "categories": [{"id": 1, "name": "crack\x1b[31m"}, {"id": 2, "name": "\x1b[0m"}],
        },
    )
    assert import_set("coco", path, images)[0] == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "crack\\x1b[31m" in told
