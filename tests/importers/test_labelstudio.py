"""Label Studio's JSON and JSON-MIN: shapes in percent, brushes, choices, skipped tasks, annotations, predictions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afclip_lightning.annotations.rle import mask_to_brush
from tests.reference import rasterise as reference
from tests.support.imports import (
    HEIGHT,
    WIDTH,
    box,
    import_set,
    mask_of,
    png_text,
    samples_of,
    write_images,
    write_json_file,
)

Json = dict[str, Any]
SIZE: Json = {"original_width": WIDTH, "original_height": HEIGHT}


def result(kind: str, value: Json, label: str | None = "crack", **more: Any) -> Json:
    """Returns a result of a control such as PolygonLabels."""
    labels = {f"{kind}labels": [label]} if label else {}
    return {"type": f"{kind}labels", "value": {**value, **labels}, "image_rotation": 0, **SIZE, **more}


def percent(x: float, y: float) -> list[float]:
    return [100 * x / WIDTH, 100 * y / HEIGHT]


def rectangle(left: float, top: float, width: float, height: float, rotation: float = 0) -> Json:
    (x, y), (w, h) = percent(left, top), percent(width, height)
    return {"x": x, "y": y, "width": w, "height": h, "rotation": rotation}


def task(name: str, *results: Json, **more: Any) -> Json:
    return {"id": 1, "data": {"image": name}, "annotations": [{"result": list(results)}], **more}


def of_loops(found: set[tuple[int, int]]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for place in found:
        mask[place] = True
    return mask


DOTS = np.zeros((HEIGHT, WIDTH), bool)
DOTS[3:9, 5:30:2] = True
CORNER = np.ones((HEIGHT, WIDTH), bool)
CORNER[:20, :30] = False
SHAPES = {
    "rectangle": (rectangle(2, 3, 5, 4), box(2, 3, 7, 7)),
    "turned rectangle": (rectangle(20, 4, 8, 2, 90), box(18, 4, 20, 12)),  # about its first corner, in pixels
    "ellipse": (
        dict(zip(("x", "y", "radiusX", "radiusY", "rotation"), [50, 50, 30, 20, 0], strict=True)),
        of_loops(reference.ellipse(20, 15, 12, 6, 0, HEIGHT, WIDTH)),
    ),
    "turned ellipse": (
        dict(zip(("x", "y", "radiusX", "radiusY", "rotation"), [50, 50, 30, 10, 40], strict=True)),
        of_loops(reference.ellipse(20, 15, 12, 3, 40, HEIGHT, WIDTH)),
    ),
    "polygon": (
        {"points": [percent(1, 1), percent(9, 1), percent(9, 6), percent(1, 6)], "closed": True},
        box(1, 1, 9, 6),
    ),
    "brush": ({"format": "rle", "rle": mask_to_brush(DOTS)}, DOTS),
    "bitmask": ({"imageDataURL": "data:image/png;base64," + png_text(CORNER)}, CORNER),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("minimal", [False, True])
def test_shapes_with_an_area(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, minimal: bool) -> None:
    images = write_images(tmp_path / "images", "a.png")
    value, wanted = SHAPES[name]
    drawn = result(name.rpartition(" ")[2], value)
    entry = task("a.png", drawn)
    if minimal:
        entry = {"image": "a.png", "id": 1, "annotation_id": 4, "defects": [{**drawn["value"], **SIZE}]}
    code, out = import_set("labelstudio", write_json_file(tmp_path / "p.json", [entry]), images)
    assert code == 0
    found = mask_of(out, "a.png")
    assert not (wanted & ~found).any()
    assert (found & ~wanted).sum() <= (2 if "ellipse" in name else 0)
    assert f"{name}: 1 (1 in masks" in capsys.readouterr().out
    assert samples_of(out)["a.png"].label == 1


def test_how_the_image_was_turned_on_the_screen_changes_nothing(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", "a.png")
    drawn = result("rectangle", rectangle(2, 3, 5, 4), image_rotation=90)
    _, out = import_set("labelstudio", write_json_file(tmp_path / "p.json", [task("a.png", drawn)]), images)
    assert np.array_equal(mask_of(out, "a.png"), box(2, 3, 7, 7))


def test_a_region_of_several_results_is_one_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png")
    value = rectangle(2, 3, 5, 4)
    region = [
        {"id": "r1", "type": "rectangle", "value": value, **SIZE},
        {"id": "r1", "type": "labels", "value": {**value, "labels": ["crack", "deep"]}, **SIZE},
        {"id": "r1", "type": "choices", "value": {**value, "choices": ["old"]}, **SIZE},
        {"type": "relation", "from_id": "r1", "to_id": "r1", "direction": "right"},
        {"id": "t", "type": "textarea", "value": {"text": ["look here"]}},
    ]
    _, out = import_set("labelstudio", write_json_file(tmp_path / "p.json", [task("a.png", *region)]), images)
    told = capsys.readouterr().out
    assert "rectangle: 1 (1 in masks" in told
    assert "relation: 1 (not of defects)" in told
    assert "textarea: 1 (not of defects)" in told
    assert "Defect types: crack+deep" in told
    assert np.array_equal(mask_of(out, "a.png"), box(2, 3, 7, 7))


def test_what_has_no_area_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("a.png", "b.png", "c.png")
    images = write_images(tmp_path / "images", *names)
    drawn = [
        result("keypoint", {"x": 10, "y": 10, "width": 0.5}),
        result("vector", {"vertices": [{"x": 1, "y": 2}], "closed": False}),
        result("timeline", {"ranges": []}),
    ]
    tasks = [task(name, one) for name, one in zip(names, drawn, strict=True)]
    code, out = import_set("labelstudio", write_json_file(tmp_path / "p.json", tasks), images)
    assert code == 0
    told = capsys.readouterr().out
    for kind in ("keypoint", "vector", "timeline"):
        assert f"{kind}: 1 (1 without an area" in told
    assert [(s.label, s.mask_known) for s in samples_of(out).values()] == [(1, False)] * 3


def test_choices_and_finished_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("ok.png", "bad.png", "empty.png", "skipped.png", "open.png", "guess.png")
    images = write_images(tmp_path / "images", *names)
    draw = result("rectangle", rectangle(2, 3, 5, 4))

    def choice(*texts: Any) -> Json:
        return {"type": "choices", "value": {"choices": list(texts)}}

    tasks = [
        task("ok.png", choice("OK")),
        task("bad.png", choice("scratch"), {"type": "taxonomy", "value": {"taxonomy": [["wear", "edge"]]}}),
        task("empty.png"),
        {"data": {"image": "skipped.png"}, "annotations": [{"result": [draw], "was_cancelled": True}]},
        {"data": {"image": "open.png"}, "annotations": []},
        {"data": {"image": "guess.png"}, "annotations": [], "predictions": [{"result": [draw], "score": 0.5}]},
    ]
    path = write_json_file(tmp_path / "p.json", tasks)
    code, out = import_set("labelstudio", path, images)
    assert code == 0
    found = samples_of(out)
    assert {name: sample.label for name, sample in found.items()} == {"ok.png": 0, "bad.png": 1, "empty.png": 0}
    assert not found["bad.png"].mask_known
    told = capsys.readouterr().out
    assert "Defect types: scratch+wear / edge" in told
    assert "Annotations not read, as they were skipped (cancelled) in the tool: 1" in told
    assert "Predictions not read (--predictions reads them for tasks without annotation): 1" in told
    assert "Images left out, as nobody has finished annotating them: 3 " in told

    images = write_images(tmp_path / "more/images", *names)
    assert import_set("labelstudio", path, images, "--predictions")[0] == 0
    assert np.array_equal(mask_of(tmp_path / "more/set", "guess.png"), box(2, 3, 7, 7))
    assert "Tasks read by their prediction, as they have no annotation: 1" in capsys.readouterr().out


NEWER, OLDER = box(8, 8, 9, 9), box(2, 2, 3, 3)


@pytest.mark.parametrize("minimal", [False, True])
@pytest.mark.parametrize(("several", "wanted"), [("latest", NEWER), ("union", NEWER | OLDER)])
def test_of_several_annotations_one_is_chosen(tmp_path: Path, several: str, wanted: np.ndarray, minimal: bool) -> None:
    images = write_images(tmp_path / "images", "a.png")
    newer, older = (result("rectangle", rectangle(at, at, 1, 1)) for at in (8, 2))
    times = ("2026-02-01T10:00:00Z", "2026-01-01T10:00:00Z")
    entry: Any = task("a.png")
    entry["annotations"] = [{"result": [r], "updated_at": t} for r, t in zip((newer, older), times, strict=True)]
    entries = [entry]
    if minimal:
        entries = [
            {"image": "a.png", "annotation_id": i, "updated_at": t, "defects": [{**r["value"], **SIZE}]}
            for i, (r, t) in enumerate(zip((newer, older), times, strict=True))
        ]
    path = write_json_file(tmp_path / "p.json", entries)
    _, out = import_set("labelstudio", path, images, "--several", several)
    assert np.array_equal(mask_of(out, "a.png"), wanted)
    assert import_set("labelstudio", path, images, "--several", "error")[0] == 2


def test_copies_of_an_annotation_keep_their_regions_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png")
    entry = task("a.png")
    entry["annotations"] = [{"result": [result("rectangle", rectangle(at, at, 1, 1), id="r1")]} for at in (2, 8)]
    path = write_json_file(tmp_path / "p.json", [entry])
    _, out = import_set("labelstudio", path, images, "--several", "union")
    assert np.array_equal(mask_of(out, "a.png"), NEWER | OLDER)
    assert "rectangle: 2 (2 in masks" in capsys.readouterr().out


@pytest.mark.parametrize("minimal", [False, True])
def test_a_bad_shape_in_one_of_several_annotations_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], minimal: bool
) -> None:
    images = write_images(tmp_path / "images", "a.png")
    bad, good = result("polygon", {"points": 3}), result("rectangle", rectangle(2, 2, 1, 1))
    entries: list[Json] = [{**task("a.png"), "annotations": [{"result": [bad]}, {"result": [good]}]}]
    if minimal:
        entries = [
            {"image": "a.png", "annotation_id": i, "updated_at": str(i), "x": [{**r["value"], **SIZE}]}
            for i, r in enumerate((bad, good))
        ]
    path = write_json_file(tmp_path / "p.json", entries)
    assert import_set("labelstudio", path, images, "--several", "union")[0] == 2
    assert "its points are not pairs of numbers" in capsys.readouterr().err


def test_the_starred_annotation_comes_first(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", "a.png")
    entry = task("a.png")
    entry["annotations"] = [
        {"result": [result("rectangle", rectangle(2, 2, 1, 1))], "ground_truth": True, "updated_at": "2025"},
        {"result": [result("rectangle", rectangle(8, 8, 1, 1))], "ground_truth": False, "updated_at": "2026"},
    ]
    _, out = import_set("labelstudio", write_json_file(tmp_path / "p.json", [entry]), images)
    assert np.array_equal(mask_of(out, "a.png"), box(2, 2, 3, 3))


def test_texts_of_json_min_may_be_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A single choice is a text among the fields of the task: it must not make an image normal."""
    images = write_images(tmp_path / "images", "a.png", "b.png")
    entries = [
        {"image": f"{name}.png", "line": "L4", "verdict": verdict, "annotation_id": i, "annotator": 1, "id": i}
        for i, (name, verdict) in enumerate([("a", "scratch"), ("b", "good")])
    ]
    path = write_json_file(tmp_path / "p.json", entries)
    assert import_set("labelstudio", path, images)[0] == 2
    assert "no shape and no label" in capsys.readouterr().err
    code, out = import_set("labelstudio", path, images, "--choice_key", "verdict")
    assert code == 0
    assert {name: sample.label for name, sample in samples_of(out).items()} == {"a.png": 1, "b.png": 0}


@pytest.mark.parametrize(
    "address",
    [
        "a b.png",
        "/data/upload/12/0a1b2c3d-a b.png",
        "/data/local-files/?d=project/x/a%20b.png",
        "s3://bucket/deep/a%20b.png",
        "https://host.example/files/a%20b.png?token=x",
        "gs://bucket/a b.png",
        "C:\\images\\a b.png",
    ],
)
def test_addresses_of_images(tmp_path: Path, address: str) -> None:
    images = write_images(tmp_path / "images", "a b.png")
    code, out = import_set("labelstudio", write_json_file(tmp_path / "p.json", [task(address)]), images)
    assert code == 0
    assert list(samples_of(out)) == ["a b.png"]


def test_the_field_of_the_image_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png", "b.png")
    entry = task("a.png")
    entry["data"]["before"] = "b.png"
    path = write_json_file(tmp_path / "p.json", entry)
    assert import_set("labelstudio", path, images)[0] == 2
    assert "several images (a.png, b.png)" in capsys.readouterr().err
    code, out = import_set("labelstudio", path, images, "--image_key", "before")
    assert code == 0
    assert list(samples_of(out)) == ["b.png"]


SMALL = rectangle(1, 1, 1, 1)
WIDER = {"original_width": 41}


def annotated(*results: Any) -> Json:
    return {"annotations": [{"result": list(results)}]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": 3}, "its data is not an object"),
        ({"data": {"text": "x"}}, "its data names no image"),
        ({"data": {"image": "data:image/png;base64,AAAA.png"}}, "its data names no image"),
        ({"annotations": 3}, "are not a list of objects"),
        (annotated(3), "are not a list of objects"),
        (annotated(result("rectangle", {"x": 1, "y": 1, "width": "a", "height": 1})), "its width is not a number"),
        (annotated({**result("rectangle", SMALL), "original_width": None}), "has no original_width"),
        (annotated(result("polygon", {"points": [[1, 2, 3]]})), "its points are not pairs of numbers"),
        (annotated(result("polygon", {"points": []})), "its points are not pairs of numbers"),
        (annotated(result("brush", {"format": "png", "rle": [1]})), "format is 'png', not rle"),
        (annotated(result("brush", {"format": "rle", "rle": [1, 2]})), "cut off"),
        (annotated(result("brush", {"format": "rle", "rle": "x"})), "are not a list of bytes"),
        (annotated(result("bitmask", {"imageDataURL": "data:x"})), "base64"),
        (annotated(result("rectangle", {**SMALL, "rotation": "x"})), "rotation is not a number"),
        (annotated(result("rectangle", rectangle(90, 1, 1, 1))), "outside of the image"),
        (annotated(result("rectangle", SMALL, item_index=1)), "several images"),
        (annotated(result("rectangle", SMALL), {**result("rectangle", SMALL), **WIDER}), "two sizes of the image"),
        (annotated({**result("rectangle", SMALL), "original_width": 80}), "80×30 pixels, and it is 40×30"),
    ],
)
def test_entries_that_are_not_tasks_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Json, said: str
) -> None:
    images = write_images(tmp_path / "images", "a.png")
    path = write_json_file(tmp_path / "p.json", [{**task("a.png"), **change}])
    assert import_set("labelstudio", path, images)[0] == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(path) in error


@pytest.mark.parametrize("content", [3, [3], None, "x"])
def test_files_that_are_not_exports_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any
) -> None:
    images = write_images(tmp_path / "images", "a.png")
    path = write_json_file(tmp_path / "p.json", content)
    assert import_set("labelstudio", path, images)[0] == 2
    assert f"error: {path}, entry 1: is not a task." in capsys.readouterr().err
    assert import_set("labelstudio", tmp_path, images)[0] == 2
    assert "is a folder" in capsys.readouterr().err
