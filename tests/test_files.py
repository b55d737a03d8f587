"""Files: only regular ones are opened, contents are checked, names survive, and writing is atomic."""

import errno
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afclip_runtime.errors import DatasetError, UserError, WriteError
from afclip_runtime.files import (
    LOCK_FILE,
    atomic_path,
    csv_text,
    new_folder,
    only_writer,
    open_regular,
    parse_json,
    parse_yaml,
    read_bytes,
    read_csv,
    read_json,
    read_json_lines,
    read_rows,
    read_text,
    read_yaml,
    shown,
    to_type,
    write_json,
    write_text,
)

BAD_NAME = os.fsdecode(b"caf\xe9\x1b[31m.png")  # Latin-1, with a terminal's escape for red


@dataclass
class Entry:
    image: str
    score: Annotated[float, msgspec.Meta(ge=0)]
    count: int = 1
    weight: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- opening ---


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name, reason in (
            ("pipe", "is a named pipe, not a file"),
            ("link", "is a named pipe, not a file"),
            ("loop", "cannot be opened"),
            ("socket", "is a socket, not a file"),
            ("", "is a folder, not a file"),
            ("/dev/zero", "is a device, not a file"),
            ("absent", "does not exist"),
            ("x" * 300, "cannot be opened"),
            ("nul\0", "cannot be opened"),
            ("\ud800", "cannot be opened"),
        ):
            with pytest.raises(DatasetError, match=reason):
                open_regular(tmp_path / name, error=DatasetError)
    with open_regular(write(tmp_path / "file", b"abc")) as file:
        assert file.read() == b"abc"
        assert not os.get_inheritable(file.fileno())


def test_a_file_that_may_not_be_read_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "file", b"abc")

    def refuse(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # root may read any file
    with pytest.raises(UserError, match=r"cannot be opened \(Permission denied: allow it to be read\)\."):
        open_regular(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match=r"sparse\.json has 1,099,511,627,776 bytes; at most 67,108,864 are read"):
        read_json(path, dict[str, Any])
    assert read_bytes(write(tmp_path / "a", b"1234"), limit=4) == b"1234"
    with pytest.raises(UserError, match="has 4 bytes; at most 3"):
        read_bytes(tmp_path / "a", limit=3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a\nb\n\xff\n", r"line 3: holds the byte 0xff, so it is not UTF-8 text"),
        ("a,b\n".encode("utf-16"), r"line 1: holds"),
        (b"a\n\0\0", r"line 2: holds NUL"),
        (b"\x89PNG\r\n\x1a\n\0\0", r"line 1: holds"),
    ],
)
def test_invalid_text_is_reported_with_its_line(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_text(write(tmp_path / "a.csv", content))


def test_line_breaks_of_all_systems_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    assert read_text(write(tmp_path / "a", "\ufeffa\r\nb\rc\u2028d\n")) == "a\nb\nc\u2028d\n"


# --- names ---


def test_names_are_shown_without_what_a_terminal_obeys() -> None:
    assert shown(Path("ä/ß 1.png")) == "ä/ß 1.png"
    assert shown(BAD_NAME) == r"caf\xe9\x1b[31m.png"
    assert shown("a\nb\u202egnp.exe\U000e0001") == r"a\nb".replace("\\n", "\\x0a") + r"\u202egnp.exe\U000e0001"
    assert str(UserError(f"{BAD_NAME}: bad\nsecond line")) == "caf\\xe9\\x1b[31m.png: bad\nsecond line"


@pytest.mark.parametrize(
    "name",
    [
        BAD_NAME,
        "=1+1",
        "+a",
        "-a.png",
        "@x",
        "\ta",
        "'a",
        "''\\x41",
        "a\\b",
        "\\x41",
        'a"b,c',
        "a\r\nb",
        "\ud800",
        "\x85",
        "ﬀ　x",
        "",
    ],
)
def test_a_name_survives_csv_and_json(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / "a.csv", csv_text(["image", "score"], [(name, 0.1), ("b", 1e-7)]))
    assert [row.image for row in read_csv(tmp_path / "a.csv", Entry)] == [name, "b"]
    ((_, cells), _) = read_rows(tmp_path / "a.csv")
    assert not cells["image"].startswith(("=", "+", "-", "@", "\t", "\r"))
    write_json(tmp_path / "a.json", {name: name})
    assert read_json(tmp_path / "a.json", dict[str, str]) == {name: name}


@given(st.text(st.characters(exclude_categories=[])), st.floats(0, allow_nan=False, allow_infinity=False))
def test_every_text_and_number_survives_csv(tmp_path_factory: pytest.TempPathFactory, text: str, number: float) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    write_text(path, csv_text(["image", "score", "count"], [(text, number, None), ("", -0.0, 3)]))
    assert read_csv(path, Entry) == [Entry(text, number, 1), Entry("", 0.0, 3)]


def test_numbers_in_csv_stay_numbers() -> None:
    assert csv_text(["a", "-b"], [(-0.5, "-0.5"), (1, None)]) == "a,'-b\n-0.5,'-0.5\n1,\n"


# --- JSON ---


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "a.json: is empty"),
        ('{"image": "a"}', "a.json: there is no score"),
        ('{"image": "a", "score": "1"}', "a.json: score: expected a number, got text"),
        ('{"image": "a", "score": true}', "a.json: score: expected a number, got true or false"),
        ('{"image": "a", "score": -1}', "a.json: score: expected a number >= 0"),
        ('{"image": "a", "score": NaN}', "a.json: score: expected a finite number, got nan"),
        ('{"image": "a", "score": 1e999}', "a.json: score: expected a finite number, got inf"),
        ('{"image": "a", "score": 1, "parts": {"b": -Infinity}}', r"parts\.b: expected a finite number, got -inf"),
        ('{"image": "a", "score": 1, "score": 2}', "'score' occurs twice"),
        ('{"image": "a",\n "score"}', "a.json, line 2: is not valid JSON"),
        ('{"image": ["a"], "score": 1}', "image: expected text, got a list"),
        ('{"image": "a", "score": ' + "9" * 5000 + "}", "cannot be read as JSON"),
        ('{"\\udcff": 1}', "is not read here"),
        ("[1, 2]", "a.json: expected a mapping, got a list"),
        ("null", "a.json: expected a mapping, got nothing"),
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ("[" * 100 + "]" * 100, "nested more than 64 deep"),
    ],
)
def test_json_is_refused_with_its_field(tmp_path: Path, content: str, reason: str) -> None:
    with pytest.raises(DatasetError, match=reason) as caught:
        read_json(write(tmp_path / "a.json", content), Entry, remedy="Mend it.", error=DatasetError)
    assert str(caught.value).endswith("Mend it.")
    assert len(str(caught.value)) < 300


def test_json_becomes_a_type(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '\ufeff{"image": "ä", "score": 1, "parts": {"b": 2}, "other": [null]}')
    assert read_json(path, Entry) == Entry("ä", 1.0, parts={"b": 2.0})
    assert parse_json("[NaN]", list[float], "x", finite=False) != []
    assert to_type({"image": "a", "score": 1}, Entry, "x").score == 1.0


def test_lines_of_json_name_theirs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"image": "a", "score": 1}\n\n{"image": "b", "score": "x"}\n{"ima')
    with pytest.raises(UserError, match=r"a\.jsonl, line 3: score: expected a number, got text"):
        read_json_lines(path, Entry)
    path = write(tmp_path / "b.jsonl", '{"image": "a\u2028b", "score": 1}\r\n\n{"image": "b", "score": 2}\n{"ima')
    assert read_json_lines(path, Entry, cut_end=True) == [(1, Entry("a\u2028b", 1.0)), (3, Entry("b", 2.0))]
    with pytest.raises(UserError, match=r"b\.jsonl, line 4: is not valid JSON"):
        read_json_lines(path, Entry)
    write(path, "")
    assert read_json_lines(path, Entry) == []


# --- YAML ---


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "expected a mapping, got nothing"),
        ("image: a\nscore: [1", "line 2: cannot be read as YAML"),
        ("image: a\nscore: 1\nscore: 2", "line 3: cannot be read as YAML .'score' occurs twice"),
        ("image: 01\nscore: 1", "image: expected text, got a whole number"),
        ("image: a\nscore: '1'", "score: expected a number, got text"),
        ("image: a\nscore: !!python/object/apply:print [1]", "line 2: cannot be read as YAML"),
        ("a: 2026-13-45", "cannot be read as YAML"),
        ("a: !!int x", "cannot be read as YAML"),
        ("a: !!bool x", "cannot be read as YAML"),
        ("a: !!timestamp x", "cannot be read as YAML"),
        ("? [a]\n: b", "a key is a list or a mapping"),
        ("a: &a [*a]", "a value contains itself"),
        ("[" * 100_000, "nested more than 64 deep"),
        ("- " * 100_000, "nested more than 64 deep"),
        ("a: [" + "{b: " * 200, "nested more than 64 deep"),
        (
            "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))]),
            "1,048,576 values",
        ),
        ("a: 1\n--- \nb: 2", "cannot be read as YAML"),
        ("\x07", "cannot be read as YAML"),
    ],
)
def test_yaml_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        read_yaml(write(tmp_path / "a.yaml", content), Entry)
    assert len(str(caught.value)) < 400


def test_yaml_becomes_a_type(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "base: &b {b: 2.5}\nimage: ä\nscore: 1\nparts: {<<: *b, c: 1}\n")
    assert read_yaml(path, Entry) == Entry("ä", 1.0, parts={"b": 2.5, "c": 1.0})
    assert parse_yaml("[1, no]", list[Any], "--x") == [1, False]


# --- CSV ---


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "a.csv: is empty"),
        ("image,score,image\n", "line 1: the column 'image' occurs twice"),
        ("image\n", "line 1: there is no column 'score'"),
        ("image\na\n", "line 2: there is no score"),
        ("image,score\na,1\nb\n", "line 3: has 1 cells, and there are 2 columns"),
        ("image,score\na,1,2\n", "line 2: has 3 cells, and there are 2 columns"),
        ("image,score\n\na,x\n", "line 3: score: expected a number, got text"),
        ("image,score\na,nan\n", "line 2: score: expected a number >= 0"),
        ("image,score\na,1e999\n", "line 2: score: number out of range"),
        ("image,score,weight\na,1,nan\n", "line 2: weight: expected a finite number, got nan"),
        ("image,score,count\na,1,1.5\n", "line 2: count: expected a whole number"),
        ('image,score\na,1\n"b,2\nc,3\nd,4\n', "line 3: a quote is not closed"),
        ('image,score\na,"1\nb,2\nc,"\n', "line 2: a cell holds whole lines: a quote is not closed"),
        ('image,score\na,"1"x\n', "line 2: cannot be read as CSV"),
        ("image,score\na," + "1" * 200_000, "line 2: cannot be read as CSV .field larger"),
    ],
)
def test_csv_is_refused_with_its_line(tmp_path: Path, content: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_csv(write(tmp_path / "a.csv", content), Entry)


def test_csv_of_others_is_read_as_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '\ufeffimage; note ;\r\n\'a;"two\r\nlines";\r\n\r\nb;-1;\r\n')
    rows = list(read_rows(path, delimiter=";"))
    assert rows == [(2, {"image": "'a", "note": "two\nlines", "": ""}), (5, {"image": "b", "note": "-1", "": ""})]


# --- writing ---


def fail_halfway(path: Path, error: BaseException) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise error


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep/results.csv"
    write_text(path, "old")
    with pytest.raises(UserError, match=r"results\.csv: cannot be written \(No space left"):
        fail_halfway(path, OSError(errno.ENOSPC, "No space left on device"))
    assert path.read_text() == "old"
    with pytest.raises(KeyboardInterrupt):
        fail_halfway(path, KeyboardInterrupt())
    assert [p.name for p in path.parent.iterdir()] == ["results.csv"]
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n  "a": 1\n}\n'


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deep" / "bundle"
    with new_folder(folder) as temporary:
        (temporary / "part").mkdir()
        write_text(temporary / "part" / "a.txt", "old")

    def fails(error: BaseException) -> None:
        with new_folder(folder) as temporary:
            write_text(temporary / "b.txt", "new")
            raise error

    with pytest.raises(WriteError, match=r"bundle: cannot be written \(No space left"):
        fails(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(KeyboardInterrupt):
        fails(KeyboardInterrupt())
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(errno.EACCES, "Permission denied")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(WriteError, match=r"bundle: cannot be written \(Permission denied\)"), new_folder(folder):
            pass
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    assert (folder / "part" / "a.txt").read_text() == "old"
    with new_folder(folder) as temporary:
        write_text(temporary / "b.txt", "new")
    assert [path.name for path in folder.parent.rglob("*")] == ["bundle", "b.txt"]


@pytest.mark.parametrize("ends", [(".tmp",), (".tmp", ".before")], ids=["put back", "cannot be put back"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")], ids=repr)
def test_an_old_folder_survives_an_exchange_that_ends_halfway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: tuple[str, ...], error: BaseException
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_text(folder / "a.txt", "old")
    rename = Path.rename

    def halfway(self: Path, target: Path) -> Path:
        if self.name.endswith(ends):
            raise error if self.name.endswith(".tmp") else OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", halfway)
    with pytest.raises((KeyboardInterrupt, WriteError)), new_folder(folder):
        pass
    (left,) = tmp_path.rglob("a.txt")
    assert left.read_text() == "old"
    assert len(ends) == 2 or left.parent == folder
    assert [path.suffix for path in tmp_path.iterdir()] == [".before" if len(ends) == 2 else ""]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"table\.csv: cannot be written"):
        write_text(tmp_path / "file/table.csv", "x")


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with only_writer(folder):
        with pytest.raises(UserError, match="run: another process is writing there"), only_writer(folder):
            pytest.fail("two writers")
        (folder / "table.csv").write_text("")
    assert [path.name for path in folder.iterdir()] == ["table.csv"]
    with only_writer(folder), only_writer(tmp_path / "other"):
        pass
    assert not (tmp_path / "other").exists()  # nothing was written there
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written"), only_writer(tmp_path / "file"):
        pytest.fail("a file is not a folder")


def test_a_killed_writer_leaves_its_folder_free(tmp_path: Path) -> None:
    hold = "import sys, time, pathlib\nfrom afclip_runtime.files import only_writer\n"
    hold += "with only_writer(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    process = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process"), only_writer(tmp_path):
            pytest.fail("two writers")
    finally:
        process.kill()
        process.wait()
    with only_writer(tmp_path):
        assert (tmp_path / LOCK_FILE).exists()


def test_a_name_as_long_as_the_disk_allows_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 125 + ".json")  # 255 bytes
    write_json(path, 1)
    assert path.read_text() == "1\n"
