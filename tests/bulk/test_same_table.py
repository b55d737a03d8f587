"""The same images give the same table from every kind of source, equal to `inspections.csv` in each value."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.utils import infer_storage_options

from afclip_runtime.inspection.folder import inspect as inspect_files
from afclip_runtime.inspection.inputs import find_inputs
from tests.support.sharded import images_in, inspect, load, rows_of, web_server, write_images, write_table, write_tar

JUDGED = ("score", "probability", "threshold", "threshold_from", "verdict", "area", "regions", "drift")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("same") / "images"
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The rows of inspections.csv, by path."""
    out = tmp_path_factory.mktemp("csv")
    inspect_files(load(), find_inputs([str(folder)], out), out, [], 1)
    with (out / "inspections.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["path"])
    assert [row["path"] for row in rows] == list(map(str, images_in(folder)))
    assert sum(bool(row["error"]) for row in rows) == 2
    return rows


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    with web_server(folder.parent) as address:
        yield address


@pytest.fixture
def memory(folder: Path) -> Iterator[str]:
    system = fsspec.filesystem("memory")
    system.put(str(folder), "/images", recursive=True)
    yield "memory://images"
    system.rm("/images", recursive=True)


def cell(value: Any) -> str:
    """Returns a value in the form of inspections.csv."""
    return json.dumps(value) if isinstance(value, list) else "" if value is None else str(value)


def check(out: Path, expected: list[dict[str, str]], folder: Path, place: str, paths: list[str] | None = None) -> None:
    """Each row equals that of inspections.csv, except path and error, which name the place of the image."""
    rows = rows_of(out)
    images = images_in(folder)
    assert [row["path"] for row in rows] == (paths or [f"{place}/{p.relative_to(folder).as_posix()}" for p in images])
    for row, image, wanted in zip(rows, images, expected, strict=True):
        assert {name: cell(row[name]) for name in JUDGED} == {name: wanted[name] for name in JUDGED}
        assert cell(row["error"]).replace(row["path"], str(image)) == wanted["error"]
        assert row["size"] in (image.stat().st_size, None)
        assert row["error"] != ""
        assert row["method"] is None
    assert len({row["name"] for row in rows}) == len(rows)


def test_folder(folder: Path, expected: list[dict[str, str]], tmp_path: Path) -> None:
    found = inspect(tmp_path, folder)
    check(tmp_path, expected, folder, str(folder))
    assert (found.shards, found.rows, found.failed, found.left_out) == (2, 8, 2, 0)
    assert [row["mtime_ns"] for row in rows_of(tmp_path)] == [path.stat().st_mtime_ns for path in images_in(folder)]


def test_files_and_patterns_in_their_order(folder: Path, expected: list[dict[str, str]], tmp_path: Path) -> None:
    inspect(tmp_path, f"{folder}/c*.png", f"{folder}/deep", f"{folder}/{{empty,grey}}.png", f"{folder}/turned.jpg")
    check(tmp_path, expected, folder, str(folder))


def test_file_url(folder: Path, expected: list[dict[str, str]], tmp_path: Path) -> None:
    inspect(tmp_path, folder.as_uri())
    check(tmp_path, expected, folder, str(folder))


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_tar(suffix: str, mode: str, folder: Path, expected: list[dict[str, str]], tmp_path: Path) -> None:
    archive = tmp_path / f"shard-000{suffix}"
    write_tar(archive, folder, mode)
    inspect(tmp_path / "out", tmp_path / f"shard-{{000..000}}{suffix}")
    check(tmp_path / "out", expected, folder, str(archive))


@pytest.mark.parametrize("form", ["bytes", "large", "struct"])
def test_parquet_with_bytes(form: str, folder: Path, expected: list[dict[str, str]], tmp_path: Path) -> None:
    import pyarrow as pa

    names = [path.relative_to(folder).as_posix() for path in images_in(folder)]
    data = [path.read_bytes() for path in images_in(folder)]
    column: Any = {
        "bytes": data,
        "large": pa.array(data, pa.large_binary()),
        "struct": [{"bytes": content, "path": name} for content, name in zip(data, names, strict=True)],
    }[form]
    table = tmp_path / "train.parquet"
    write_table(table, {"label": [0] * len(data), "image": column})
    found = inspect(tmp_path / "out", table)
    assert found.shards == 2  # row groups of 3, 3 and 2 rows: a shard has 4 or more
    places = [f"{table}/{row}/{name}" if form == "struct" else f"{table}/{row}" for row, name in enumerate(names)]
    check(tmp_path / "out", expected, folder, "", places)


def test_parquet_with_paths(folder: Path, expected: list[dict[str, str]], tmp_path: Path, server: str) -> None:
    images = images_in(folder)
    table = folder.parent / "paths.parquet"
    relative = [path.relative_to(folder.parent).as_posix() for path in images]
    urls = [f"{server}/{name}" for name in relative]
    write_table(table, {"file_name": relative, "url": urls})
    inspect(tmp_path / "paths", table)
    check(tmp_path / "paths", expected, folder, str(folder))
    inspect(tmp_path / "urls", table, column="url")
    check(tmp_path / "urls", expected, folder, f"{server}/images")


def test_parquet_with_a_path_in_place_of_bytes(folder: Path, expected: list[dict[str, str]], tmp_path: Path) -> None:
    table = folder.parent / "struct.parquet"
    names = [path.relative_to(folder.parent).as_posix() for path in images_in(folder)]
    import pyarrow as pa

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    write_table(table, {"image": pa.array([{"bytes": None, "path": name} for name in names], kind)})  # type: ignore[dict-item]
    inspect(tmp_path, table)
    check(tmp_path, expected, folder, str(folder))


def test_memory_folder_pattern_and_archives(
    folder: Path, expected: list[dict[str, str]], tmp_path: Path, memory: str
) -> None:
    inspect(tmp_path / "folder", memory)
    check(tmp_path / "folder", expected, folder, "memory:///images")
    write_tar(tmp_path / "a.tar", folder)
    write_table(tmp_path / "a.parquet", {"image": [path.read_bytes() for path in images_in(folder)]})
    for name in ("a.tar", "a.parquet"):
        fsspec.filesystem("memory").put(str(tmp_path / name), f"/images/{name}")
    inspect(tmp_path / "tar", f"{memory}/*.tar")
    check(tmp_path / "tar", expected, folder, "memory:///images/a.tar")
    inspect(tmp_path / "parquet", f"{memory}/a.parquet")
    check(tmp_path / "parquet", expected, folder, "", [f"{memory}/a.parquet/{row}" for row in range(8)])


class _Host(MemoryFileSystem):
    """A file system whose names lack the host, like ftp and sftp. Only the host `rack` has the files."""

    protocol = "rack"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol("memory://" + infer_storage_options(path)["path"])

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        return {"host": infer_storage_options(path).get("host", "")}

    def __init__(self, host: str = "") -> None:
        super().__init__()
        assert host == "server"


@pytest.mark.parametrize("source", ["", "/", "/**"])
def test_files_of_a_host(
    source: str,
    folder: Path,
    expected: list[dict[str, str]],
    tmp_path: Path,
    memory: str,
) -> None:
    fsspec.register_implementation("rack", _Host, clobber=True)
    inspect(tmp_path / "out", f"rack://user@server:21/images{source}")
    check(tmp_path / "out", expected, folder, "rack://user@server:21/images")


def test_web_server_of_images_and_archives(
    folder: Path, expected: list[dict[str, str]], tmp_path: Path, server: str
) -> None:
    inspect(tmp_path / "images", *[f"{server}/images/{p.relative_to(folder).as_posix()}" for p in images_in(folder)])
    check(tmp_path / "images", expected, folder, f"{server}/images")
    inspect(tmp_path / "folder", f"{server}/images/")
    check(tmp_path / "folder", expected, folder, f"{server}/images")
    write_tar(folder.parent / "b.tar.gz", folder, "w:gz")
    write_table(folder.parent / "b.parquet", {"image": [path.read_bytes() for path in images_in(folder)]})
    inspect(tmp_path / "tar", f"{server}/b.tar.gz")
    check(tmp_path / "tar", expected, folder, f"{server}/b.tar.gz")
    inspect(tmp_path / "parquet", f"{server}/b.parquet")
    check(tmp_path / "parquet", expected, folder, "", [f"{server}/b.parquet/{row}" for row in range(8)])
