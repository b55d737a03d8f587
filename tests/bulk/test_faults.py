"""Sharded inspection on a shared file system that lags, and on a disk that is full."""

import threading
from pathlib import Path

import pytest

from afclip_runtime.bulk.judging import Judge
from afclip_runtime.bulk.parts import Facts
from afclip_runtime.bulk.plan import FOLDER, PLAN, Plan, files_path
from afclip_runtime.errors import UserError
from afclip_runtime.files import shared
from tests.support.disks import half_written, small_disk
from tests.support.late_files import come_late
from tests.support.sharded import inspect, job_of, main, plan_of, rows_of, write_numbered

OUT = Path("out")
LOCAL = ("in", "--launcher", "local", "--shard_images", "4", "--save", "map")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_numbered(tmp_path / "in", 10)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shared, "LOOK", 0.02)
    monkeypatch.setattr(shared, "LONGEST_LAG", 5.0)


def test_a_worker_waits_for_the_plan_and_the_files_of_its_shard() -> None:
    plan_of(OUT, ["in"])
    timer = come_late(OUT / FOLDER / PLAN)
    judge = Judge(job_of(OUT))
    timer.join()
    timer = come_late(files_path(OUT, 1))
    assert isinstance(judge(1), Facts)
    timer.join()
    inspect(OUT, "in")
    assert sorted(row["path"] for row in rows_of(OUT)) == [f"in/{number:05d}.png" for number in range(10)]


def test_a_plan_that_is_older_than_the_job_is_read_again() -> None:
    plan_of(OUT, ["in"])
    plan = OUT / FOLDER / PLAN
    judge, old = Judge(job_of(OUT)), plan.read_bytes()
    write_numbered(Path("in"), 4, begin=10)
    assert len(plan_of(OUT, ["in"]).shards) == 4
    new = plan.rename(plan.with_name("new"))
    plan.write_bytes(old)
    timer = threading.Timer(0.2, new.rename, [plan])
    timer.start()
    assert not judge.is_done(3)
    assert isinstance(judge(3), Facts)
    timer.join()
    assert Plan.read(OUT).todo(OUT) == [0, 1, 2]


def test_a_missing_list_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    plan_of(OUT, ["in"])
    files_path(OUT, 1).unlink()
    monkeypatch.setattr(shared, "LONGEST_LAG", 0.1)
    with pytest.raises(UserError, match=r"000001.jsonl has not appeared within 0.1 s"):
        Judge(job_of(OUT))(1)


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_full_disk_ends_the_job_and_the_same_command_goes_on(jobs: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_numbered(Path("in"), 40)
    with small_disk(OUT, 160) as give_space:
        assert main([*LOCAL, "--jobs", jobs]) == 2
        said = capsys.readouterr().err
        assert "cannot be written" in said
        assert "No space left on device" in said
        assert said.count("error: ") == 1
        assert half_written(OUT) == []
        kept = {path: path.stat().st_mtime_ns for path in (OUT / "parts").rglob("*.parquet")}
        assert kept
        give_space()
        assert main([*LOCAL, "--jobs", jobs]) == 0
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        assert sorted(row["path"] for row in rows_of(OUT)) == [f"in/{number:05d}.png" for number in range(40)]
        assert {row["error"] for row in rows_of(OUT)} == {None}
