"""Damaged and unusual sources: each gives one row or one clear error, and the other images are inspected."""

import os
import sys
import tarfile
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pytest

from afclip_runtime.bulk import urls
from afclip_runtime.bulk.parts import part_path
from afclip_runtime.bulk.summary import first_failed
from afclip_runtime.errors import MissingPackageError, UserError, shown
from tests.support.sharded import (
    add_member,
    images_in,
    inspect,
    plan_of,
    rows_of,
    web_server,
    write_numbered,
    write_table,
    write_tar,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_numbered(tmp_path / "images", 6)
    return tmp_path / "images"


@pytest.fixture
def archive(folder: Path, tmp_path: Path) -> Path:
    """Four blocks of 512 bytes per image: header and content of the image, header and content of its label."""
    write_tar(tmp_path / "whole.tar", folder, form=tarfile.USTAR_FORMAT)
    return tmp_path / "whole.tar"


@pytest.mark.parametrize(
    ("kept", "judged"),
    [
        (0, 0),
        (300, 0),  # in the first header
        (512, 0),  # before the first image
        (3 * 512, 1),  # before the first label
        (4 * 512, 1),  # between two members: tarfile alone takes that for the end
        (4 * 512 + 99, 1),  # in a header: tarfile alone takes that for the end
        (4 * 512 + 550, 1),  # in an image
    ],
)
def test_a_cut_archive_is_named_and_keeps_what_was_read(
    kept: int, judged: int, archive: Path, folder: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.tar"
    cut.write_bytes(archive.read_bytes()[:kept])
    found = inspect(tmp_path / "out", cut, folder)
    rows = rows_of(tmp_path / "out")
    assert [row["path"] for row in rows if not row["error"]][:judged] == [f"{cut}/00000.png"][:judged]
    assert rows[judged]["path"] == str(cut)
    assert rows[judged]["error"].startswith(f"{cut}: the archive is damaged or cut off (")
    assert (found.rows, found.failed) == (judged + 1 + 6, 1)  # and the folder was judged
    (damage,) = found.damaged
    assert (damage.path, damage.shard, damage.problem) == (str(cut), 0, rows[judged]["error"])


def test_a_damaged_header_in_the_middle_is_not_the_end(archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[4 * 512 : 4 * 512 + 100] = b"\xff" * 100  # of the second image; tarfile alone takes that for the end
    archive.write_bytes(content)
    found = inspect(tmp_path / "out", archive)
    assert (found.rows, found.failed, len(found.damaged)) == (2, 1, 1)


def test_a_cut_gzip(archive: Path, folder: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.tar.gz"
    write_tar(packed, folder, "w:gz")
    packed.write_bytes(packed.read_bytes()[:-40])
    found = inspect(tmp_path / "out", packed, archive)
    assert len(found.damaged) == 1
    assert found.failed == 1
    assert sum(not row["error"] for row in rows_of(tmp_path / "out")) >= 6


def test_members_with_odd_names_and_kinds(folder: Path, tmp_path: Path) -> None:
    image = images_in(folder)[0].read_bytes()
    odd = tmp_path / "odd.tar"
    with tarfile.open(odd, "w") as archive:
        for name in ("../../up.png", "/abs.png", "same.png", "same.png", "._same.png", "notes.txt", "empty.png"):
            add_member(archive, name, b"" if name in ("empty.png", "notes.txt") else image)
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    found = inspect(tmp_path / "out", odd, saves=("map", "mask", "npy", "overlay"))
    rows = rows_of(tmp_path / "out")
    assert [row["path"].removeprefix(f"{odd}/") for row in rows] == [
        "../../up.png",
        "/abs.png",
        "same.png",
        "same.png",
        "empty.png",
        "link.png",
    ]
    assert [bool(row["error"]) for row in rows] == [False] * 4 + [True] * 2
    assert rows[5]["error"] == f"{odd}/link.png: is a link or a device, not a file. Store the image itself."
    assert not found.damaged
    maps = {
        path.relative_to(tmp_path / "out/maps").with_suffix("").as_posix() for path in tmp_path.rglob("*/maps/**/*.png")
    }
    assert maps == {row["name"] for row in rows[:4]}  # nothing was written elsewhere, and no two are alike
    assert not list(tmp_path.glob("*.png"))
    for kind, suffix in (("masks", "png"), ("npy", "npy"), ("overlays", "jpg")):
        assert len(list((tmp_path / "out" / kind).rglob(f"*.{suffix}"))) == 4


def test_an_archive_without_an_image(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "none.tar", "w") as archive:
        add_member(archive, "notes.txt", b"nothing")
    found = inspect(tmp_path / "out", tmp_path / "none.tar")
    assert [damage.problem for damage in found.damaged] == [f"{tmp_path}/none.tar: the archive has no image."]


def test_tables_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    data = [path.read_bytes() for path in images_in(folder)]
    write_table(tmp_path / "a_numbers.parquet", {"label": [1, 2]})
    write_table(tmp_path / "b_two.parquet", {"left": data, "right": data})
    (tmp_path / "c_text.parquet").write_text("no table")
    write_table(tmp_path / "d_whole.parquet", {"image": data})
    whole = (tmp_path / "d_whole.parquet").read_bytes()
    (tmp_path / "e_cut.parquet").write_bytes(whole[: len(whole) // 2])
    write_table(tmp_path / "f_empty.parquet", {"image": pa.array([], pa.binary())})  # type: ignore[dict-item]
    found = inspect(tmp_path / "out", f"{tmp_path}/*.parquet")
    errors = {Path(row["path"]).name: row["error"] for row in rows_of(tmp_path / "out") if row["error"]}
    assert list(errors) == [f"{name}.parquet" for name in ("a_numbers", "b_two", "c_text", "e_cut", "f_empty")]
    assert errors["a_numbers.parquet"] == (
        f"{tmp_path}/a_numbers.parquet: no column holds images. Its columns: label. Name the one of the images: "
        "--image_column NAME."
    )
    assert "several columns hold bytes. Its columns: left, right." in errors["b_two.parquet"]
    assert "the Parquet file is damaged" in errors["c_text.parquet"]
    assert "the Parquet file is damaged" in errors["e_cut.parquet"]
    assert errors["f_empty.parquet"].endswith("the table has no row.")
    assert found.rows - found.failed == 6


def test_a_table_that_is_damaged_behind_its_footer(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "pages.parquet"
    write_table(table, {"image": [path.read_bytes() * 20 for path in images_in(folder)]})
    content = bytearray(table.read_bytes())
    content[4:200] = bytes(196)  # of the first row group's pages
    table.write_bytes(content)
    found = inspect(tmp_path / "out", table, folder)
    assert [damage.path for damage in found.damaged][:1] == [str(table)]
    assert "the Parquet file is damaged" in found.damaged[0].problem
    assert sum(not row["error"] for row in rows_of(tmp_path / "out")) >= 6


def test_cells_that_are_empty(folder: Path, tmp_path: Path) -> None:
    image = images_in(folder)[0].read_bytes()
    write_table(tmp_path / "bytes.parquet", {"image": [image, None, b"", image]})
    write_table(tmp_path / "paths.parquet", {"path": ["images/00000.png", None, "", "images/none.png"]})
    inspect(tmp_path / "out", tmp_path / "bytes.parquet", tmp_path / "paths.parquet")
    errors = [row["error"] for row in rows_of(tmp_path / "out")]
    assert [bool(error) for error in errors] == [False, True, True, False, False, True, True, True]
    assert errors[1] == f"{tmp_path}/bytes.parquet, row 1: the cell is empty."
    assert errors[5] == f"{tmp_path}/paths.parquet, row 1: the cell is empty."
    assert "does not exist" in errors[7]


def test_a_column_that_is_named_wrongly(folder: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", {"label": [1], "image": [b""]})
    for column, problem in (
        ("picture", "the column 'picture' does not exist"),
        ("label", "holds neither bytes nor paths"),
    ):
        found = inspect(tmp_path / column, tmp_path / "a.parquet", column=column)
        assert problem in found.damaged[0].problem
        assert "Its columns: label, image." in found.damaged[0].problem


def test_files_of_a_folder_that_are_not_images(folder: Path, tmp_path: Path) -> None:
    (folder / "0.png").write_bytes(b"")
    (folder / "photo.heic").write_bytes(b"x")
    (folder / "x.ignored").write_bytes(b"x\0")
    (folder / "notes.txt").write_text("x")
    (folder / "away").symlink_to("nowhere")
    (tmp_path / "none").mkdir()
    found = inspect(tmp_path / "out", folder, tmp_path / "none", tmp_path / "missing.png", tmp_path / "*.jpg")
    errors = {Path(row["path"]).name: row["error"] for row in rows_of(tmp_path / "out") if row["error"]}
    assert set(errors) == {"0.png", "photo.heic", "away", "none", "missing.png", "*.jpg"}
    assert (found.failed, found.left_out) == (5, 1)
    assert "leads nowhere" in errors["away"]
    assert "has no image" in errors["none"]


def test_urls_that_cannot_be_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "PAUSE", 0.01)
    write_tar(tmp_path / "a.tar", folder)
    (folder / "page.png").write_text("<html>")
    with web_server(tmp_path, {"/images/00001.png": 2, "/images/00002.png": 9}) as address:
        found = inspect(
            tmp_path / "out",
            f"{address}/images/00000.png",
            f"{address}/images/00001.png",  # answers at the third attempt
            f"{address}/images/00002.png",
            f"{address}/images/none.png",
            f"{address}/images/page.png",
            f"{address}/none.tar",
            f"{address}/a.tar",
            "http://127.0.0.1:9/x.png",
            "memory://none/of/these/*.png",
            "memory://nothing/",
        )
    rows = rows_of(tmp_path / "out")
    errors = {row["path"].replace(address, ""): (row["error"] or "").replace(address, "") for row in rows}
    assert not errors["/images/00000.png"]
    assert not errors["/images/00001.png"]
    assert errors["/images/00002.png"].startswith("/images/00002.png: cannot be read (503")
    assert errors["/images/none.png"] == "/images/none.png does not exist."
    assert "it is not an image in a supported format" in errors["/images/page.png"]
    assert errors["/none.tar"] == "/none.tar does not exist."
    assert "cannot be read" in errors["http://127.0.0.1:9/x.png"]
    assert errors["memory://none/of/these/*.png"].endswith("nothing matches this pattern.")
    assert errors["memory://nothing/"]
    assert not any(errors[f"/a.tar/0000{number}.png"] for number in range(6))
    assert found.failed == 7


def test_a_file_system_whose_package_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"^s3:// is read by a package that is not installed: pip install s3fs\.$"):
        urls.fetch("s3://bucket/a.png")
    with pytest.raises(UserError, match=r"^nosuch://a: nosuch:// cannot be used"):
        urls.fetch("nosuch://a")
    with monkeypatch.context() as here:
        here.setattr("fsspec.core.get_filesystem_class", Mock(side_effect=ImportError))
        with pytest.raises(MissingPackageError, match=r"^https:// is read by .*: pip install aiohttp\.$"):
            urls.require_packages("https://host/a.png")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UserError, match=r"fsspec, which is not installed: pip install 'afclip_lightning\[scale\]'"):
        urls.fetch("memory://a")


def test_nothing_to_inspect(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is nothing to inspect"):
        plan_of(tmp_path, [])


@pytest.mark.parametrize("seconds", [2**63 // 10**9 + 1, 10**10, 10**14, -(10**14)])
def test_a_time_that_parquet_cannot_hold_is_null(seconds: int, folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, time in (("a.png", 1), ("b.png", seconds)):
            header = archive.gettarinfo(images_in(folder)[0], name)
            header.mtime = time
            with images_in(folder)[0].open("rb") as file:
                archive.addfile(header, file)
    inspect(tmp_path / "out", tmp_path / "a.tar")
    assert [row["mtime_ns"] for row in rows_of(tmp_path / "out")] == [10**9, None]
    assert [row["error"] for row in rows_of(tmp_path / "out")] == [None, None]


def test_an_image_whose_clock_was_wrong_is_inspected_once(folder: Path, tmp_path: Path) -> None:
    image = images_in(folder)[0]
    os.utime(image, (10**10, 10**10))  # the year 2286
    first = inspect(tmp_path / "out", image)
    assert [row["mtime_ns"] for row in rows_of(tmp_path / "out")] == [
        None if image.stat().st_mtime_ns >= 2**63 else image.stat().st_mtime_ns
    ]
    part = part_path(tmp_path / "out", 0).stat().st_mtime_ns
    assert inspect(tmp_path / "out", image) == first
    assert part_path(tmp_path / "out", 0).stat().st_mtime_ns == part


def test_secrets_of_urls_are_in_no_result_and_no_message(folder: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", folder)
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:3000])
    signed = "?X-Amz-Signature=SECRET&page=2"
    with web_server(tmp_path) as address:
        sources = [f"{address}/{name}{signed}" for name in ("images/00000.png", "images/none.png", "a.tar", "none.tar")]
        sources.append(address.replace("http://", "http://user:SECRET@") + "/images/00001.png")
        found = inspect(tmp_path / "out", *sources, saves=("map",))
        paths = [row["path"].replace(address, "") for row in rows_of(tmp_path / "out")]
        assert inspect(tmp_path / "out", sources[0], saves=("map",)).shards == found.shards  # the plan knows the image
    assert [paths[0], paths[1]] == [f"/images/{name}.png?X-Amz-Signature=***&page=2" for name in ("00000", "none")]
    assert "http://user:***@127.0.0.1" in paths[-1]
    assert found.failed == 3
    first = first_failed(tmp_path / "out", found)
    assert first is not None
    assert first[0].endswith("/images/none.png?X-Amz-Signature=***&page=2")
    results = [path for path in (tmp_path / "out").rglob("*") if "plan" not in path.parts]
    assert sum(path.suffix == ".png" for path in results) == 3
    assert "SECRET" not in str([rows_of(tmp_path / "out"), found, first, results])
    assert "SECRET" not in (tmp_path / "out/manifest.json").read_text()


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("ftp://user:a:b@c@host:21/x@y.png", "ftp://user:***@host:21/x@y.png"),
        ("https://host:8080/a@b.png?page=2&sig=ab%2B=&x=1", "https://host:8080/a@b.png?page=2&sig=***&x=1"),
        (
            "s3://b/k?X-Amz-Security-Token=a&X-Goog-Signature=b",
            "s3://b/k?X-Amz-Security-Token=***&X-Goog-Signature=***",
        ),
        ("postgresql://me:pw@db/s: refused (http://me:pw@x/)", "postgresql://me:***@db/s: refused (http://me:***@x/)"),
        ("https://host/design=3?designer=b&page=1", "https://host/design=3?designer=b&page=1"),
        ("a?sig=b, user:pw@host", "a?sig=b, user:pw@host"),
    ],
)
def test_secrets_of_urls_are_hidden(text: str, safe: str) -> None:
    assert shown(text) == safe
    assert str(UserError(text)) == safe
