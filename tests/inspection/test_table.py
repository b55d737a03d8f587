"""The tables of `inspect`: a row is written completely or not at all, and moved files keep their rows."""

import errno
import os
from pathlib import Path

import pytest

from afclip_runtime.errors import WriteError
from afclip_runtime.inspection.inputs import Input
from afclip_runtime.inspection.table import Record, Table, json_line, verdicts_in
from afclip_runtime.thresholds import Verdict


def record(image: str, mtime_ns: int = 1, **more: str) -> Record:
    facts = {"name": image, "error": "", **more}
    return Record(path=f"in/{image}.png", size=5, mtime_ns=mtime_ns, score=0.5, **facts)


def item(name: str, mtime_ns: int = 1) -> Input:
    return Input(Path(f"in/{name}.png"), name, size=5, mtime_ns=mtime_ns)


def lines(folder: Path) -> list[int]:
    return [len((folder / name).read_bytes().splitlines()) for name in ("inspections.jsonl", "inspections.csv")]


@pytest.mark.parametrize("file", ["inspections.jsonl", "inspections.csv"])
@pytest.mark.parametrize("parts", [0, 1])
def test_a_full_disk_leaves_no_part_of_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, parts: int
) -> None:
    """The disk accepts ten bytes at a time, and is full after a number of such parts of a file."""
    write = os.write
    before_it = 0 if file == "inspections.jsonl" else -(-len(json_line(record("b"))) // 10)
    with Table(tmp_path, several=False) as table:
        table.add(record("a"))
        before = [(tmp_path / name).read_bytes() for name in ("inspections.jsonl", "inspections.csv")]
        calls = iter([*range(before_it + parts), None])

        def full(number: int, text: bytes) -> int:
            if next(calls) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(number, text[:10])

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(WriteError, match=rf"{file}: cannot be written \(No space left"):
                table.add(record("b"))
        assert [(tmp_path / name).read_bytes() for name in ("inspections.jsonl", "inspections.csv")] == before
        assert (None, os.path.abspath("in/b.png")) not in table.rows
        table.add(record("b"))
    assert lines(tmp_path) == [2, 3]
    assert len(Table(tmp_path, several=False).rows) == 2


@pytest.mark.parametrize("file", ["inspections.jsonl", "inspections.csv"])
@pytest.mark.parametrize("comes_back", [False, True])
def test_no_row_goes_into_a_file_that_was_removed_moved_or_replaced(
    tmp_path: Path, file: str, comes_back: bool
) -> None:
    with Table(tmp_path, several=False) as table:
        table.add(record("a"))
        here, there = tmp_path / file, tmp_path / "moved"
        here.rename(there)
        with pytest.raises(WriteError, match=rf"{file}: was removed or moved during the run"):
            table.add(record("b"))
        if comes_back:
            there.rename(here)
            table.add(record("b"))
            assert lines(tmp_path) == [2, 3]
        else:
            there.unlink()
            here.write_text("of another run\n")
            with pytest.raises(WriteError, match=rf"{file}: was removed or moved during the run"):
                table.add(record("b"))
            assert here.read_text() == "of another run\n"


def test_a_row_is_due_for_what_is_new_or_was_replaced(tmp_path: Path) -> None:
    with Table(tmp_path, several=False) as table:
        table.add(record("a"))
        table.add(record("b", error="cannot be read"))
        todo = table.todo([item("a"), item("a", 2), item("b"), item("c")], None)
    assert todo == [item("a", 2), item("c")]
    with Table(tmp_path, several=False) as table:
        assert table.todo([item("a"), item("b")], None) == [item("b")]  # what failed is tried again


def test_files_that_were_moved_keep_their_rows_when_another_gets_their_name(tmp_path: Path) -> None:
    with Table(tmp_path, several=False, moves=True) as table:
        for time in (1, 2, 3):
            assert table.todo([item("a", time)], None) == [item("a", time)]
            name = table.free_name(item("a", time))
            table.add(record("a", time, moved_to=f"good/a_{time}.png", name=name))
        table.add(record("b", error="cannot be read", moved_to="unread/b.png"))
    for _ in range(2):
        table = Table(tmp_path, several=False)
        assert [row.moved_to for row in table.rows.values()] == [
            *(f"good/a_{time}.png" for time in (1, 2, 3)),
            "unread/b.png",
        ]
        assert len({row.name for row in table.rows.values()}) == 4
    assert lines(tmp_path) == [4, 5]
    assert "moved_to" in (tmp_path / "inspections.csv").read_text().splitlines()[0]


def test_a_later_row_of_a_moved_file_takes_the_place_of_the_earlier_one(tmp_path: Path) -> None:
    with Table(tmp_path, several=False, moves=True) as table:
        table.add(record("a", moved_to="good/a.png"))
        table.add(record("a", moved_to="good/a_2.png"))
    assert [row.moved_to for row in Table(tmp_path, several=False).rows.values()] == ["good/a_2.png"]


def test_no_column_is_for_moves_where_nothing_is_moved(tmp_path: Path) -> None:
    with Table(tmp_path, several=False) as table:
        table.add(record("a"))
    assert "moved_to" not in (tmp_path / "inspections.csv").read_text()
    assert "moved_to" not in (tmp_path / "inspections.jsonl").read_text()


def test_a_share_that_is_away_is_an_error_that_may_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with Table(tmp_path, several=False) as table:
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", stale)
            with pytest.raises(WriteError, match=r"cannot be written \(Stale file handle"):
                table.add(record("a"))
        table.add(record("a"))
    assert lines(tmp_path) == [1, 2]


def test_verdicts_in_words() -> None:
    def row(method: str | None, score: float | None, threshold: float | None, verdict: Verdict | None) -> Record:
        return Record(path="a", name="a", error="", method=method, score=score, threshold=threshold, verdict=verdict)

    rows = [row(None, 10.65, 6.69859, "anomalous"), row(None, 1.81486, 6.69859, "normal"), row(None, None, None, None)]
    assert verdicts_in(rows) == {None: "1 anomalous, 1 normal (scores 1.815 to 10.65, threshold 6.699)"}
    rows = [row("CLIP", 0.5, None, None), row("CLIP", 0.5, None, None), row("AnoVL", 2.0, 1.0, "anomalous")]
    assert verdicts_in([*rows, row("AnoVL", 3.0, 1.5, "anomalous")]) == {
        "CLIP": "2 without a verdict (score 0.5, no threshold)",
        "AnoVL": "2 anomalous, 0 normal (scores 2 to 3, thresholds 1 to 1.5)",
    }
    assert verdicts_in([row(None, None, None, None)]) == {}
