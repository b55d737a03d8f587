"""Watching a folder, end to end: in any case, each image is inspected once, reported at least once and moved once."""

import csv
import errno
import json
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afclip_runtime.errors import WriteError
from afclip_runtime.inspection.calibration import Calibration, from_normals
from afclip_runtime.inspection.drift import keep
from afclip_runtime.inspection.inspector import Inspector
from afclip_runtime.inspection.line import Line
from afclip_runtime.inspection.moving import Destinations, Mover
from afclip_runtime.inspection.outbox import Outbox
from afclip_runtime.inspection.table import Record, Table
from afclip_runtime.inspection.watching import WatchedFolder
from afclip_runtime.inspection.webhook import Webhook
from afclip_runtime.types import Tiling
from tests.support.receiver import Receiver, receiving
from tests.support.watcher import Blue, is_anomalous, main, number_in, save_image, start, stop

MOVES = ("--move_to", "good/,bad/")
BY_HAND = ("--threshold", "0.5")
QUICK = (*BY_HAND, "--watch", "in", "--watch_quiet", "0", "--watch_poll", "0.02")
ONCE = (*QUICK, "--watch_idle", "0")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def put(number: int, folder: str = "in") -> None:
    """Writes an image like a careful camera: under another name, then renamed."""
    name = Path(folder, f"{number:05d}.png")
    name.parent.mkdir(parents=True, exist_ok=True)
    save_image(name.with_name(f".{name.name}.tmp"), number)
    name.with_name(f".{name.name}.tmp").rename(name)


def rows() -> list[dict[str, Any]]:
    """Returns the rows of the JSON lines, after checking that the CSV has the same."""
    found = [json.loads(line) for line in Path("out/inspections.jsonl").read_text().splitlines()]
    with Path("out/inspections.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [row["path"] for row in found]
    return found


def wait_for(holds: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def written() -> int:
    path = Path("out/inspections.jsonl")
    return path.read_bytes().count(b"\n") if path.exists() else 0


def check_all_moved(count: int) -> None:
    """Each image has one row, and is once and completely in the folder of its verdict, as the row states."""
    found = rows()
    assert sorted(row["path"] for row in found) == [f"in/{number:05d}.png" for number in range(count)]
    assert not [path for path in Path("in").rglob("*") if path.is_file()]
    for row in found:
        number = number_in(Path(row["moved_to"]))
        assert row["path"] == f"in/{number:05d}.png"
        assert row["verdict"] == ("anomalous" if is_anomalous(number) else "normal")
        assert row["moved_to"] == f"{'bad' if is_anomalous(number) else 'good'}/{number:05d}.png"
    assert sum(1 for place in ("good", "bad") for _ in Path(place).iterdir()) == count


def check_all_told(receiver: Receiver, count: int) -> None:
    """Each image arrived at least once, and repeated messages have the same id."""
    said = {(request.headers["webhook-id"], json.loads(request.body)["data"]["path"]) for request in receiver.requests}
    assert {path for _, path in said} == {f"in/{number:05d}.png" for number in range(count)}
    assert len({id for id, _ in said}) == len(said) == count


def test_files_are_inspected_reported_and_moved(
    folder: Path, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        put(number)
    (folder / "in" / "notes.txt").write_text("no image")
    (folder / "in" / "upload.part").write_text("half")
    (folder / "secret").write_text("a secret of enough many letters")
    args = [*ONCE, *MOVES, "--webhook", receiver.url, "--webhook_secret_file", "secret"]
    (folder / "secret").chmod(0o644)
    assert main(args) == 0
    said = capsys.readouterr()
    assert said.out == (
        "5 inspected, 0 failed, 0 left out: out/inspections.csv\n"
        "In the table: 2 anomalous, 3 normal (scores 0 to 1, threshold 0.5)\n"
    )
    assert "warning: secret can be read or changed by other users of this machine: chmod 600 it." in said.err
    found = rows()
    assert [row["moved_to"] for row in found] == [
        "bad/00000.png",
        "good/00001.png",
        "good/00002.png",
        "bad/00003.png",
        "good/00004.png",
    ]
    assert sorted(path.name for path in Path("in").iterdir()) == ["notes.txt", "upload.part"]
    bodies = [json.loads(request.body) for request in receiver.requests]
    assert [body["data"] for body in bodies] == found
    assert {body["type"] for body in bodies} == {"image.judged"}
    assert [body["id"] for body in bodies] == receiver.ids
    assert main(args) == 0  # nothing is left to do
    assert len(receiver.requests) == 5
    assert rows() == found


def test_without_moves_each_file_is_judged_once_across_restarts(folder: Path) -> None:
    for number in range(3):
        put(number, "in/sub" if number else "in")
    assert main([*ONCE]) == 0
    first = rows()
    put(3)
    assert main([*ONCE]) == 0
    assert rows()[:3] == first
    assert [row["path"] for row in rows()[3:]] == ["in/00003.png"]
    time.sleep(0.01)
    save_image(Path("in/00000.png"), 1)  # replaced: it was anomalous
    assert main([*ONCE]) == 0
    latest = {row["path"]: row["verdict"] for row in rows()}
    assert latest["in/00000.png"] == "normal"
    assert len(latest) == 4


def test_a_camera_that_uses_a_name_again_overwrites_nothing(folder: Path) -> None:
    for number in (1, 2, 4, 5):
        put(number)
        Path(f"in/{number:05d}.png").rename("in/photo.png")
        assert main([*ONCE, *MOVES]) == 0
    assert [number_in(Path(row["moved_to"])) for row in rows()] == [1, 2, 4, 5]
    assert {path.name for path in Path("good").iterdir()} == {"photo.png", *(f"photo_{n}.png" for n in (2, 3, 4))}
    assert len({row["name"] for row in rows()}) == 4


def test_a_file_that_cannot_be_read_costs_a_line_and_stays(folder: Path) -> None:
    put(1)
    whole = Path("in/00001.png").read_bytes()
    Path("in/00001.png").write_bytes(whole[:40])
    Path("in/photo.heic").write_bytes(b"\0")
    assert main([*ONCE, *MOVES]) == 1
    errors = {row["path"]: row["error"] for row in rows()}
    assert "cannot be read as an image" in errors["in/00001.png"]
    assert "left out" in errors["in/photo.heic"]
    assert len(list(Path("in").iterdir())) == 2
    Path("in/00001.png").write_bytes(whole)
    Path("in/photo.heic").unlink()
    assert main([*ONCE, *MOVES]) == 0
    assert [(row["path"], row["moved_to"]) for row in rows()] == [("in/00001.png", "good/00001.png")]


def test_a_third_folder_receives_unreadable_files(folder: Path) -> None:
    Path("in/sub").mkdir()
    Path("in/sub/cut.png").write_bytes(b"\x89PNG")
    args = [*ONCE, "--move_to", "in/good,in/bad,in/unread"]
    assert [main(args), main(args)] == [1, 0]
    assert [row["moved_to"] for row in rows()] == ["in/unread/sub/cut.png"]
    assert Path("in/unread/sub/cut.png").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((*ONCE[2:], *MOVES), "--move_to needs a threshold of the score: calibrate first"),
        (("in", *MOVES), "--move_to goes with --watch DIR"),
        (("in", "--webhook", "http://host/"), "--webhook goes with --watch DIR"),
        (("in", *ONCE), "give either files and folders, or --watch DIR"),
        (("--watch", "none"), "--watch none: there is no such folder"),
        ((*ONCE, "--webhook_secret_file", "secret"), "which is not given"),
        ((*ONCE, "--webhook", "ftp://host/"), "--webhook takes a URL"),
        ((*ONCE, "--webhook", "http://host/", "--webhook_secret_file", "none"), "none does not exist"),
        ((*ONCE, "--move_to", "in,bad"), "is or holds the watched folder"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], message: str
) -> None:
    assert main([*args]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out/inspections.jsonl").exists()


class Stage:
    """A line in this process, with a clock that advances while it sleeps."""

    def __init__(
        self, idle: float | None = 0.0, moves: bool = False, webhook: Webhook | None = None, drift: bool = False
    ) -> None:
        self.now, self.said, self.seen = 0.0, [], []
        self.events: dict[float, Callable[[], None]] = {}
        self.ended = False
        self.table = Table(Path("out"), several=False, moves=moves).__enter__()
        model = Inspector(Blue(), Tiling(), "object", 4)
        model.threshold = 0.5
        if drift:
            scores = np.linspace(0.1, 0.4, 50)
            model.use(Calibration(from_normals(scores, 0.05), None, "", {}, None, keep(scores)))
        watched = WatchedFolder(Path("in"), [Path("out")], 2.0, self.said.append, clock=lambda: self.now)
        destinations = Destinations(Path("good"), Path("bad"))
        self.line = Line(
            {"Blue": model},
            watched,
            self.table,
            Path("out"),
            saves=[],
            num_workers=0,
            poll=1.0,
            idle=idle,
            say=self.said.append,
            stopped=lambda: self.ended,
            observers=[lambda row, outcome: self.seen.append(row.path)],
            mover=Mover(destinations, Path("in"), self.table) if moves else None,
            webhook=webhook,
            clock=lambda: self.now,
            sleep=self.sleep,
        )

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for due in [at for at in self.events if at <= self.now]:
            self.events.pop(due)()
        assert self.now < 100_000, "it never ends"

    def run(self) -> list[Record]:
        self.line.run()
        self.table.__exit__()
        return list(self.table.rows.values())


def test_a_watch_ends_after_so_long_without_a_new_file(folder: Path) -> None:
    Path("out").mkdir()
    put(1)
    stage = Stage(idle=30.0)
    stage.events = {20.0: lambda: put(2), 45.0: lambda: put(3)}
    assert len(stage.run()) == 3
    assert stage.seen == ["in/00001.png", "in/00002.png", "in/00003.png"]
    assert 45 + 2 + 30 <= stage.now <= 45 + 2 + 30 + 3


def test_a_watch_ends_when_it_is_told_to(folder: Path) -> None:
    Path("out").mkdir()
    stage = Stage(idle=None)
    stage.events = {500.0: lambda: setattr(stage, "ended", True)}
    assert stage.run() == []
    assert 500 <= stage.now < 501


@pytest.mark.parametrize("moves", [False, True])
def test_a_disk_that_is_full_for_a_while_is_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, moves: bool
) -> None:
    Path("out").mkdir()
    for number in range(10):
        put(number)
    stage = Stage(moves=moves, idle=1000.0, drift=True)
    write = os.write
    calls = iter(range(1000))

    def full(file: int, text: bytes) -> int:
        if next(calls) >= 7 and stage.now < 300:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, text)

    monkeypatch.setattr(os, "write", full)
    found = stage.run()
    assert sorted(row.path for row in found) == [f"in/{number:05d}.png" for number in range(10)]
    assert sorted(stage.seen) == sorted(row.path for row in found)  # each was told to observers once
    assert len(rows()) == 10
    assert stage.line.drifts["Blue"].images == 10  # so does what tells of drift
    assert len(stage.said) == 2
    assert "No space left on device" in stage.said[0]
    assert stage.said[1] == "Writing is possible again."
    assert not moves or len(list(Path("good").iterdir())) + len(list(Path("bad").iterdir())) == 10


@pytest.mark.parametrize("moves", [False, True])
def test_a_drift_is_reported_once_and_lasts_across_a_restart(folder: Path, moves: bool) -> None:
    """Normal images score 0 here; in the calibration they scored 0.1 to 0.4."""
    Path("out").mkdir()
    for number in range(90):
        put(number)
    stage = Stage(moves=moves, drift=True)
    stage.run()
    marks = [row.get("drift") for row in rows()]
    first = marks.index("lower")
    assert 20 < first < 70
    assert set(marks[:first]) == {None}
    assert set(marks[first:]) == {"lower"}
    assert [said.startswith("Blue: the calibration no longer holds: scores are lower") for said in stage.said] == [True]
    put(90)
    again = Stage(moves=moves, drift=True)
    again.run()
    assert rows()[-1]["drift"] == "lower"
    assert again.line.drifts["Blue"].alarm == stage.line.drifts["Blue"].alarm


@pytest.mark.parametrize("moves", [False, True])
def test_results_that_are_moved_away_are_waited_for_and_no_file_moves_without_its_line(
    folder: Path, moves: bool
) -> None:
    Path("out").mkdir()
    put(1)
    stage = Stage(moves=moves, idle=1000.0)

    def away() -> None:
        Path("out").rename("old")
        put(2)

    def back() -> None:
        assert Path("in/00002.png").exists()
        Path("old").rename("out")

    stage.events = {20.0: away, 200.0: back}
    stage.run()
    assert [row["path"] for row in rows()] == ["in/00001.png", "in/00002.png"]
    assert stage.seen == ["in/00001.png", "in/00002.png"]
    assert ["was removed or moved during the run" in said for said in stage.said] == [True, False]
    assert stage.said[1] == "Writing is possible again."


def test_a_disk_that_stays_full_ends_a_watch_that_is_to_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("out").mkdir()
    put(1)
    stage = Stage(idle=60.0)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(WriteError, match="No space left"):
        stage.run()
    assert 60 <= stage.now < 130


def test_a_folder_of_verdicts_that_is_away_is_waited_for(folder: Path) -> None:
    Path("out").mkdir()
    Path("good").write_text("a file where the folder should be")
    for number in range(4):
        put(number)
    stage = Stage(moves=True, idle=1000.0)
    stage.events = {200.0: lambda: Path("good").unlink()}
    stage.run()
    check_all_moved(4)
    assert "good/" in stage.said[0]


def test_a_queue_that_cannot_be_written_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("out").mkdir()
    for number in range(4):
        put(number)
    outbox = Outbox(Path("out/webhook.sqlite"))
    stage = Stage(idle=1000.0, webhook=Webhook("http://127.0.0.1:9/", outbox, None, print))
    insert = outbox.put

    def full(id: str, body: bytes) -> None:
        if stage.now < 100:
            raise WriteError("the disk is full")
        insert(id, body)

    monkeypatch.setattr(outbox, "put", full)
    assert len(stage.run()) == len(outbox) == 4
    outbox.close()


def test_a_watched_folder_that_is_away_is_waited_for(folder: Path) -> None:
    Path("out").mkdir()
    put(1)
    stage = Stage(idle=500.0)
    stage.events = {
        50.0: lambda: Path("in").rename("away"),
        150.0: lambda: (put(2, "away"), Path("away").rename("in")),
    }
    assert [row.path for row in stage.run()] == ["in/00001.png", "in/00002.png"]
    assert len(stage.said) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_watch_in_order(folder: Path, number: signal.Signals) -> None:
    put(1)
    process = start(folder, *QUICK, *MOVES)
    wait_for(lambda: written() == 1)
    put(2)
    wait_for(lambda: written() == 2)
    code, out, err = stop(process, number)
    verdicts = "In the table: 0 anomalous, 2 normal (score 0, threshold 0.5)\n"
    assert (code, out) == (0, f"2 inspected, 0 failed, 0 left out: out/inspections.csv\n{verdicts}"), err
    assert sorted(path.name for path in Path("good").iterdir()) == ["00001.png", "00002.png"]


@pytest.mark.slow
def test_two_watchers_of_one_output_are_refused(folder: Path) -> None:
    process = start(folder, *QUICK)
    wait_for(lambda: Path("out/inspections.csv").exists())
    other = start(folder, *QUICK)
    _, err = other.communicate(timeout=60)
    assert other.returncode == 2
    assert "another process is writing there" in err
    assert stop(process)[0] == 0


@pytest.mark.slow
def test_a_burst_of_ten_thousand_files_neither_loses_nor_doubles_one(folder: Path, receiver: Receiver) -> None:
    count = 10_000
    process = start(folder, *QUICK, *MOVES, "--webhook", receiver.url)
    for number in range(count):
        if number % 2:
            save_image(Path(f"in/{number:05d}.png"), number)  # written under its own name, then closed
        else:
            put(number)
    wait_for(lambda: written() >= count and not any(Path("in").iterdir()), 300)
    wait_for(lambda: len(receiver.requests) >= count, 300)
    code, out, err = stop(process)
    assert (code, len(err.splitlines())) == (0, 2), err
    assert out.startswith(f"{count} inspected")
    check_all_moved(count)
    check_all_told(receiver, count)
    assert len(receiver.requests) == count


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_kills_at_random_moments_neither_lose_nor_double_an_image(folder: Path, receiver: Receiver, seed: int) -> None:
    """While images arrive, the watcher is killed ten times; the receiver answers some messages with an error."""
    count, draw = 3000, random.Random(seed)
    args = (*QUICK, *MOVES, "--webhook", receiver.url)
    finished = threading.Event()

    def camera() -> None:
        for number in range(count):
            put(number, str(folder / "in"))  # not below another test's folder, should this one end first
            if number % 10 == 0:
                time.sleep(0.01)
        finished.set()

    thread = threading.Thread(target=camera)
    thread.start()
    progress = []
    for _ in range(10):
        before = written()
        process = start(folder, *args)
        receiver.answers = [500]
        wait_for(lambda before=before: written() > before or is_done(finished))  # type: ignore[misc]
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        process.communicate()
        progress.append(written())
    thread.join()
    process = start(folder, *args, "--watch_idle", "0")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    check_all_moved(count)
    wait_for(lambda: start_again_until_told(folder, args, receiver, count), 60)
    check_all_told(receiver, count)
    assert 0 < progress[0] < progress[4] < count  # the kills came while there was work


def is_done(finished: threading.Event) -> bool:
    return finished.is_set() and not any(Path("in").iterdir())


def start_again_until_told(folder: Path, args: tuple[str, ...], receiver: Receiver, count: int) -> bool:
    """Returns whether all messages have arrived; if not, another run sends the waiting ones."""
    if len(set(receiver.ids)) < count:
        start(folder, *args, "--watch_idle", "0").communicate(timeout=60)
    return len(set(receiver.ids)) >= count


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of a running process are of Linux")
def test_a_disk_that_fills_under_a_running_watcher_loses_nothing(folder: Path, receiver: Receiver) -> None:
    """For a while, no file may grow beyond a limit; the system enforces it in the middle of a row."""
    process = start(folder, *QUICK, *MOVES, "--webhook", receiver.url)
    for number in range(20):
        put(number)
    wait_for(lambda: written() == 20)
    size = Path("out/inspections.jsonl").stat().st_size
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
    for number in range(20, 40):
        put(number)
    time.sleep(1)
    assert written() == 20
    assert Path("out/inspections.jsonl").stat().st_size == size  # no half of a row
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    wait_for(lambda: written() == 40)
    wait_for(lambda: not any(Path("in").iterdir()))
    code, _, err = stop(process)
    assert code == 0
    assert "cannot be written" in err
    assert "Writing is possible again." in err
    check_all_moved(40)
    check_all_told(receiver, 40)
