"""Survey of a folder: images, left-out files, and problems."""

import os
from pathlib import Path

import pytest

from afclip_runtime.errors import DatasetError
from afclip_runtime.images.find import list_images, other_files, say_others, survey, walk_images
from tests.support.layouts import write_image

DICOM = bytes(128) + b"DICM"


def test_files_of_unknown_kinds_are_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    for name in ("b.heic", "c.HEIC", "d.cr2", "below/e.eps"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0whatever")
    for name in ("Thumbs.db", "notes.txt", "meta.json", "list.csv", ".DS_Store", "README", "x.YAML"):
        (tmp_path / name).write_text("words")
    (tmp_path / "binary").write_bytes(b"\0\1\2")
    found = survey(tmp_path)
    assert [p.name for p in found.images] == ["a.png"]
    assert [p.relative_to(tmp_path).as_posix() for p in found.others] == [
        "b.heic", "below/e.eps", "binary", "c.HEIC", "d.cr2",
    ]  # fmt: skip
    assert not found.problems
    assert [p.name for p in other_files(tmp_path)] == ["b.heic", "binary", "c.HEIC", "d.cr2"]
    sentence = say_others(found.others)
    assert sentence.startswith(
        "5 files are of a kind that is not read here, and left out: 2 .heic, 1 .cr2, 1 .eps, 1 wit"
    )
    assert str(tmp_path / "b.heic") in sentence
    assert say_others([]) == ""


def test_dicom_is_told_by_its_content(tmp_path: Path) -> None:
    for name in ("IM000001", "a.IMA", "1.2.840.10008.5"):
        (tmp_path / name).write_bytes(DICOM)
    (tmp_path / "b.ima").write_bytes(b"\0" * 200)
    (tmp_path / "DICOMDIR").write_bytes(DICOM)  # a table of contents
    assert [p.name for p in list_images(tmp_path)] == ["1.2.840.10008.5", "IM000001", "a.IMA"]
    assert [p.name for p in other_files(tmp_path)] == ["b.ima"]


def test_names_that_are_not_utf8_and_pipes_are_listed(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    Path(os.fsdecode(odd)).write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")  # would hang whoever opened it
    assert sorted(os.fsencode(p.name) for p in list_images(tmp_path)) == [b"pipe.png", b"\xff\xfe.png"]
    assert not other_files(tmp_path)


def test_a_survey_goes_on_after_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a/1.png")
    write_image(tmp_path / "closed/2.png")
    write_image(tmp_path / "z/3.png")
    (tmp_path / "a/again").symlink_to(tmp_path)
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    real = os.scandir

    def refuse(folder: Path) -> object:  # root may list everything
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    found = survey(tmp_path)
    assert [p.name for p in found.images] == ["1.png", "3.png"]
    assert len(found.problems) == 3
    assert any("closed: cannot be listed (Permission denied)" in problem for problem in found.problems.values())
    assert any("again: this link leads back to" in problem for problem in found.problems.values())
    assert any("lost: this link leads nowhere" in problem for problem in found.problems.values())
    with pytest.raises(DatasetError, match="leads"):
        walk_images(tmp_path)
    assert [p.name for p in survey(tmp_path, leave_out=[tmp_path / "z"]).images] == ["1.png"]
