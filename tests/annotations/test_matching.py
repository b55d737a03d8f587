"""The image of a folder that a path in an export refers to."""

from pathlib import Path

import pytest

from afclip_lightning.annotations.matching import ImageFolder
from afclip_runtime.errors import DatasetError, UserError
from tests.support.imports import write_images


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    return ImageFolder(write_images(tmp_path / "i", "a.png", "one/b.png", "two/b.png", "one/c.png", "gepr\u00fcft.png"))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a.png", "a.png"),
        ("/data/x/a.png", "a.png"),
        ("one/b.png", "one/b.png"),
        ("/root/two/b.png", "two/b.png"),
        ("c.png", "one/c.png"),
        ("C:\\x\\one\\c.png", "one/c.png"),
        ("./one/c.png", "one/c.png"),
        ("gepru\u0308ft.png", "gepr\u00fcft.png"),
    ],
)
def test_paths_end_alike(folder: ImageFolder, name: str, wanted: str) -> None:
    assert folder.relative(folder.find([name])).as_posix() == wanted


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("b.png", "may be .*one/b.png and .*two/b.png"),
        ("z.png", "there is no image 'z.png'"),
        ("two/c.png", "there is no image"),  # one of another folder is not taken for it
        ("A.png", "there is no image"),
        ("one/../a.png", "leads out of"),
        ("../i/a.png", "leads out of"),
        ("..\\a.png", "leads out of"),
        ("", "names nothing"),
        ("/", "names nothing"),
    ],
)
def test_what_is_not_sure_is_refused(folder: ImageFolder, name: str, said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        folder.find([name])


def test_the_second_name_counts_where_the_first_is_none(tmp_path: Path) -> None:
    folder = ImageFolder(write_images(tmp_path / "i", "a.png"))
    assert folder.find(["b.png", "a.png"]).name == "a.png"


def test_the_prefix_of_an_upload_is_known(tmp_path: Path) -> None:
    folder = ImageFolder(write_images(tmp_path / "i", "a.png", "0a1b2c3d-b.png", "b.png"))
    assert folder.find(["/data/upload/3/0a1b2c3d-a.png"]).name == "a.png"
    assert folder.find(["0a1b2c3d-b.png"]).name == "0a1b2c3d-b.png"  # what is called so comes first
    with pytest.raises(DatasetError, match="there is no image"):
        folder.find(["0a1b2c3d-c.png"])


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    for place, said in ((tmp_path, "holds no image"), (tmp_path / "x", "is not a folder")):
        with pytest.raises(UserError, match=said):
            ImageFolder(place)
