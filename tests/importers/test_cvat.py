"""CVAT for images 1.1: its shapes, its zip, and rejected XML."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.reference import rasterise as reference
from tests.support.imports import HEIGHT, WIDTH, box, import_set, mask_of, samples_of, write_images

HEAD = '<?xml version="1.0" encoding="utf-8"?>\n'


def xml(*images: str, meta: str = "") -> str:
    return f"{HEAD}<annotations><version>1.1</version><meta>{meta}</meta>{''.join(images)}</annotations>"


def image(name: str, *shapes: str, number: int = 0, more: str = "") -> str:
    size = f'width="{WIDTH}" height="{HEIGHT}"'
    return f'<image id="{number}" name="{name}" {size} {more}>{"".join(shapes)}</image>'


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def of_loops(found: set[tuple[int, int]]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for place in found:
        mask[place] = True
    return mask


SHAPES = {
    '<box label="crack" source="manual" occluded="1" xtl="2.00" ytl="3.00" xbr="7.00" ybr="5.00" z_order="3"></box>': (
        box(2, 3, 7, 5)
    ),
    '<box label="crack" occluded="0" xtl="10.00" ytl="10.00" xbr="20.00" ybr="12.00" rotation="90.00" z_order="0"/>': (
        box(14, 6, 16, 16)
    ),
    '<polygon label="crack" occluded="0" points="1.00,1.00;9.00,1.00;9.00,6.00;1.00,6.00" z_order="0"/>': (
        box(1, 1, 9, 6)
    ),
    '<ellipse label="crack" occluded="0" cx="20.00" cy="15.00" rx="12.00" ry="4.00" rotation="30.00" z_order="0"/>': (
        of_loops(reference.ellipse(20, 15, 12, 4, 30, HEIGHT, WIDTH))
    ),
    '<polyline label="crack" occluded="0" points="2.50,4.50;30.50,4.50;30.50,20.50" z_order="0"/>': (
        box(2, 4, 31, 5) | box(30, 4, 31, 21)
    ),
    '<mask label="crack" occluded="0" rle="1, 3, 1, 4, 1" left="5" top="6" width="5" height="2" z_order="0"/>': (
        box(5, 6, 10, 8) & ~box(5, 6, 6, 7) & ~box(9, 6, 10, 7) & ~box(9, 7, 10, 8)
    ),
}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape[1:24])
def test_shapes_with_an_area(tmp_path: Path, shape: str) -> None:
    images = write_images(tmp_path / "images", "a.png")
    code, out = import_set("cvat", write(tmp_path / "a.xml", xml(image("a.png", shape))), images)
    assert code == 0
    found = mask_of(out, "a.png")
    tips = found & ~SHAPES[shape]  # by the rule of passages between centres
    assert not (SHAPES[shape] & ~found).any()
    assert tips.sum() <= (2 if "ellipse" in shape else 0)


def test_all_kinds_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png", "b.png", "c.png")
    others = (
        '<points label="hole" occluded="0" points="3,3;5,5" z_order="0"/>',
        '<cuboid label="hole" occluded="0" xtl1="1" ytl1="1" xbl1="1" ybl1="5" xtr1="5" ytr1="1" xbr1="5" ybr1="5"/>',
        '<skeleton label="hole" z_order="0"><points label="1" occluded="0" points="3,3"/></skeleton>',
    )
    hidden = '<box label="crack" outside="1" occluded="0" xtl="2" ytl="3" xbr="7" ybr="5"/>'
    text = xml(
        image("a.png", *SHAPES),
        image("b.png", *others, number=1),
        image("c.png", '<tag label="OK" source="manual"></tag>', hidden, number=2),
        '<track id="0" label="crack"><box frame="0" xtl="1" ytl="1" xbr="2" ybr="2" outside="0" keyframe="1"/></track>',
    )
    code, out = import_set("cvat", write(tmp_path / "a.xml", text), images)
    assert code == 0
    found = samples_of(out)
    assert [found[name].label for name in ("a.png", "b.png", "c.png")] == [1, 1, 0]
    assert [found[name].mask_known for name in ("a.png", "b.png", "c.png")] == [True, False, True]
    told = capsys.readouterr().out
    for line in (
        "turned box: 1 (1 in masks",
        "turned ellipse: 1 (1 in masks",
        "polyline: 1 (1 in masks",
        "mask: 1 (1 in masks",
        "points: 1 (1 without an area",
        "cuboid: 1 (1 without an area",
        "skeleton: 1 (1 without an area",
        "tag: 1 (1 for normal",
        "box outside of its frame: 1 (not of defects)",
        "track of a video: 1 (not of defects)",
    ):
        assert line in told


def test_a_line_has_the_width_that_is_asked_for(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", "a.png")
    line = '<polyline label="crack" points="5,10;25,10"/>'
    _, out = import_set("cvat", write(tmp_path / "a.xml", xml(image("a.png", line))), images, "--line_width", "4")
    mask = mask_of(out, "a.png")
    assert mask[:, 5:25].sum(0).tolist() == [4] * 20
    assert np.flatnonzero(mask[:, 15]).tolist() == [8, 9, 10, 11]


def test_the_zip_is_read_as_it_is(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", "a.png")
    path = tmp_path / "task.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations.xml", xml(image("a.png", next(iter(SHAPES)))))
    code, out = import_set("cvat", path, images)
    assert code == 0
    assert np.array_equal(mask_of(out, "a.png"), box(2, 3, 7, 5))


def test_a_folder_stands_for_the_file_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, unpacked = write_images(tmp_path / "images", "a.png"), tmp_path / "task"
    unpacked.mkdir()
    assert import_set("cvat", unpacked, images)[0] == 2
    assert f"{unpacked} is a folder without annotations.xml" in capsys.readouterr().err
    write(unpacked / "annotations.xml", xml(image("a.png", next(iter(SHAPES)))))
    code, out = import_set("cvat", unpacked, images)
    assert code == 0
    assert np.array_equal(mask_of(out, "a.png"), box(2, 3, 7, 5))


def test_projects_and_subsets(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", "a.png", "b.png", "c.png")
    tasks = "<task><id>4</id><name>nut</name></task><task><id>5</id><name>pin</name></task>"
    draw = next(iter(SHAPES))
    text = xml(
        image("a.png", draw, more='task_id="4" subset="Train"'),
        image("b.png", draw, number=1, more='task_id="5" subset="test"'),
        image("c.png", draw, number=2, more='task_id="5" subset="Validation"'),
        meta=f"<project><tasks>{tasks}</tasks></project>",
    )
    path = write(tmp_path / "a.xml", text)
    code, out = import_set("cvat", path, images, "--category_by", "project", "--split", "subset")
    assert code == 0
    assert {name: sample.category for name, sample in samples_of(out, "train").items()} == {"a.png": "nut"}
    assert {name: sample.category for name, sample in samples_of(out).items()} == {"b.png": "pin"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not valid XML"),
        ("<annotations>", "is not valid XML"),
        ("<html/>", "its root is 'html'"),
        ("<annotations/>", "holds no image"),
        ("<annotations><track id='0'/></annotations>", "holds 1 tracks (it is CVAT for video)"),
        ("<annotations><image id='0'/></annotations>", "has no name"),
        ("<a>" * 100 + "</a>" * 100, "nested more than 64 deep"),
        ('<!DOCTYPE a [<!ENTITY e "x">]><annotations>&e;</annotations>', "declares a document type"),
        ('<!DOCTYPE a SYSTEM "a.dtd"><annotations/>', "declares a document type"),
        ('<?xml version="1.0" encoding="no-such"?><annotations/>', "cannot be read as XML"),
        (xml(image("a.png", '<box label="x" xtl="1" ytl="2" xbr="b" ybr="4"/>')), "its xbr is not a number: 'b'"),
        (xml(image("a.png", '<box label="x" xtl="1" ytl="2" xbr="3"/>')), "has no ybr"),
        (xml(image("a.png", '<box label="x" xtl="1" ytl="2" xbr="inf" ybr="4"/>')), "its xbr is not a number"),
        (xml(image("a.png", '<polygon label="x" points=""/>')), "its points are not numbers"),
        (xml(image("a.png", '<polygon label="x" points="1,2;3"/>')), "must be pairs"),
        (xml(image("a.png", '<ellipse label="x" cx="1" cy="2" rx="3"/>')), "has no ry"),
        (xml(image("a.png", '<mask label="x" rle="1,2" left="0" top="0" width="9" height="9"/>')), "add up to 3"),
        (
            xml(image("a.png", '<mask label="x" rle="1,b" left="0" top="0" width="1" height="1"/>')),
            "is not a whole number",
        ),
        (xml(image("a.png", '<mask label="x" rle="1" left="0" top="0" width="9e7" height="9"/>')), "its size is"),
        (xml('<image id="0" name="a.png" width="x" height="3"></image>'), "its width or height is not a number"),
    ],
)
def test_files_that_are_not_exports_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    images = write_images(tmp_path / "images", "a.png")
    path = write(tmp_path / "a.xml", text)
    assert import_set("cvat", path, images)[0] == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(path) in error
    assert len(error.splitlines()) <= 3


def test_a_zip_without_annotations_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png")
    path = tmp_path / "task.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.xml", "<a/>")
    assert import_set("cvat", path, images)[0] == 2
    assert "holds no annotations.xml" in capsys.readouterr().err
    path.write_bytes(b"PK\3\4 no zip")
    assert import_set("cvat", path, images)[0] == 2
    assert "cannot be unpacked" in capsys.readouterr().err


def test_an_unused_label_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", "a.png", "b.png")
    labels = "".join(f"<label><name>{name}</name><type>any</type></label>" for name in ("crack", "hole", "good"))
    shape = next(iter(SHAPES))
    text = xml(
        image("a.png", shape),
        image("b.png", '<tag label="good" source="manual"></tag>', number=1),
        meta=f"<job><labels>{labels}</labels></job>",
    )
    assert import_set("cvat", write(tmp_path / "c.xml", text), images)[0] == 0
    assert "Nothing is labelled 'hole', which the tool offers." in capsys.readouterr().out
