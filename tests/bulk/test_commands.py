"""`inspect` by shards from the command line: options, exit codes, workers that share one output."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from afclip_runtime.bulk.parts import part_path
from tests.support import REPOSITORY
from tests.support.sharded import main, rows_of, write_numbered, write_tar
from tests.support.watcher import is_anomalous

LOCAL = ("--launcher", "local", "--shard_images", "4")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_numbered(tmp_path / "in", 10)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(count: int) -> None:
    """Each image has one row with its own verdict."""
    rows = rows_of(Path("out"))
    assert sorted(row["path"] for row in rows) == [f"in/{number:05d}.png" for number in range(count)]
    for row in rows:
        number = int(Path(row["path"]).stem)
        assert row["verdict"] == ("anomalous" if is_anomalous(number) else "normal")


def test_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["in", *LOCAL]) == 0
    said = capsys.readouterr()
    assert "10 inspected, 0 failed, 0 left out" in said.out
    anomalous = sum(map(is_anomalous, range(10)))
    assert f"Verdicts: {anomalous} anomalous, {10 - anomalous} normal\n" in said.out
    check(10)
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert (manifest["anomalous"], manifest["normal"]) == (anomalous, 10 - anomalous)
    assert (manifest["shards"], manifest["done"], manifest["rows"]) == (3, 3, 10)
    assert [part["file"] for part in manifest["parts"]] == [f"parts/0000/00000{number}.parquet" for number in range(3)]
    table = parquet.read_table("out/parts")  # as pandas, polars and others read it
    assert (table.num_rows, table["error"].null_count, table["method"].null_count) == (10, 10, 10)
    Path("in/bad.png").write_bytes(b"")
    assert main(["in", *LOCAL]) == 1
    said = capsys.readouterr()
    assert "10 inspected, 1 failed, 0 left out" in said.out
    assert [row["path"] for row in rows_of(Path("out")) if row["error"] is not None] == ["in/bad.png"]
    (note,) = [line for line in said.err.splitlines() if "failed" in line]
    assert note.startswith("note: 1 failed: in/bad.png: cannot be read as an image")
    assert "The others" not in note


def test_the_first_failure_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("in/00000.heic").write_bytes(b"")  # left out, so not a failure
    for name in ("b.png", "a.png"):
        Path("in", name).write_bytes(b"")
    write_tar(Path("0.tar"), Path("in"))
    Path("0.tar").write_bytes(Path("0.tar").read_bytes()[:5000])
    assert main(["0.tar", "in", *LOCAL]) == 1
    said = capsys.readouterr()
    assert "3 failed, 1 left out" in said.out
    (note,) = [line for line in said.err.splitlines() if "failed" in line]
    assert note.startswith("note: 3 failed, the first: in/a.png: cannot be read as an image")
    assert note.endswith(f" The others: column error of {Path('out/parts').absolute()}.")


def test_an_archive_is_inspected_by_shards_without_being_asked(capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(Path("a.tar"), Path("in"))
    assert main(["a.tar"]) == 0
    assert "10 inspected" in capsys.readouterr().out
    Path("a.tar").write_bytes(Path("a.tar").read_bytes()[:5000])
    assert main(["a.tar"]) == 1
    assert "\nnote: a.tar: the archive is damaged or cut off" in capsys.readouterr().err


def test_an_archive_that_is_missing_is_not_called_damaged(capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(Path("a.tar"), Path("in"))
    assert main(["a.tar", "b.tar"]) == 1
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "note: b.tar does not exist."
    assert "damaged" not in said


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["in", *LOCAL, "--webhook", "http://x"], "--webhook does not go with --launcher local: inspect local files"),
        (["a.tar", "--watch", "in"], "--watch does not go with tar archives, Parquet files and URLs"),
        (["in", "--shard_images", "5"], "--shard_images needs an inspection by shards: add --launcher local."),
        (["in", "--jobs", "2"], "--jobs needs an inspection by shards: add --launcher local."),
        (["in", "--image_column", "x"], "--image_column needs an inspection by shards: add --launcher local."),
        (
            ["in", "--ray_address", "x"],
            "--ray_address needs --launcher ray: add that, or leave",
        ),
        (["in", *LOCAL, "--sbatch=-G1"], "--sbatch needs --launcher slurm: add that, or leave out --sbatch."),
    ],
)
def test_options_that_do_not_go_together(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("source", "missing", "said"),
    [
        ("s3://bucket/images/", "s3fs", "pip install s3fs"),
        ("s3://bucket/images/", "fsspec.core", "pip install 'afclip_lightning[scale]'"),
        ("of_urls.parquet", "s3fs", "pip install s3fs"),
        ("of_urls.parquet", "pyarrow.parquet", "pip install 'afclip_lightning[scale]'"),
    ],
)
def test_a_missing_package_ends_the_command_before_any_work(
    source: str, missing: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet.write_table(pa.table({"url": ["s3://bucket/a.png"]}), "of_urls.parquet")
    monkeypatch.setitem(sys.modules, missing, None)
    assert main([source, "--out", "out"]) == 2
    told = capsys.readouterr()
    assert told.err.splitlines()[-1].endswith(f"{said}.")
    assert not told.out
    assert not Path("out/parts").exists()


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (["none", *LOCAL], "none does not exist. Check the path."),
        (["none/*.png", *LOCAL], "nothing matches none/*.png. Check the path."),
        (["none/{000..003}.tar"], "none of the 4 named sources exists, the first is none/000.tar. Check their paths."),
        (["file:///n/a.tar", "b.tar"], "none of the 2 named sources exists, the first is /n/a.tar. Check their paths."),
    ],
)
def test_sources_of_which_none_exists_end_the_command_before_any_work(
    sources: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.support.sharded.load", lambda: pytest.fail("the model is loaded"))
    assert main(sources) == 2
    assert capsys.readouterr().err == f"error: {said}\n"
    assert not Path("out").exists()


def test_a_launcher_that_is_not_there_ends_the_command_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.support.sharded.load", lambda: pytest.fail("the model is loaded"))
    monkeypatch.setenv("PATH", "")
    assert main(["in", "--launcher", "slurm"]) == 2
    assert capsys.readouterr().err == (
        "error: sbatch was not found: --launcher slurm needs a SLURM cluster. Use --launcher local or ray.\n"
    )
    assert not Path("out").exists()


def test_if_some_sources_exist_the_others_have_a_row() -> None:
    assert main(["in", "none", *LOCAL]) == 1
    assert [row["path"] for row in rows_of(Path("out")) if row["error"]] == ["none"]


def test_one_output_is_of_one_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["in", *LOCAL]) == 0
    assert main(["in", *LOCAL, "--threshold", "0.9"]) == 2
    assert "out holds inspections with another threshold" in capsys.readouterr().err
    assert main(["in"]) == 2
    other = "(out/inspect.json). Choose another --out, or remove the folder."
    said = f"error: out holds Parquet files (parts/), and this command writes a CSV table (inspections.csv) {other}"
    assert said in capsys.readouterr().err
    check(10)


def test_an_output_without_shards_is_not_mixed_with_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["in"]) == 0
    assert main(["in", *LOCAL]) == 2
    said = (
        f"{Path('out').absolute()} holds a CSV table (inspections.csv), and this command writes Parquet files (parts/)"
    )
    assert said in capsys.readouterr().err
    assert not Path("out/plan/plan.json").exists()


def test_ctrl_c_before_there_is_a_plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as here:
        here.setattr("tests.support.sharded.load", stop)
        assert main(["in", *LOCAL]) == 130
    assert capsys.readouterr().err == "Stopped before this run inspected an image.\n"
    assert not Path("out").exists()


def test_a_stopped_job_counts_its_own_shards(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as here:
        here.setattr("afclip_runtime.cli.bulk._Progress.add_shard", lambda *_: signal.raise_signal(signal.SIGINT))
        assert main(["in", *LOCAL]) == 130
    assert "in 1 shard, 1 of them in this run" in capsys.readouterr().out
    assert main(["in", *LOCAL]) == 0
    assert "in 3 shards, 2 of them in this run" in capsys.readouterr().out


@pytest.mark.parametrize("shards", [(), LOCAL, pytest.param((*LOCAL, "--jobs", "2"), marks=pytest.mark.slow)])
def test_without_a_terminal_progress_is_lines(
    shards: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("afclip_runtime.progress.EVERY", 0.05)
    assert main(["in", *shards, "--slow"]) == 0
    said = capsys.readouterr().err
    assert re.search(r"^(Blue: +)?\d+% \d+/10 \[\d\d:\d\d<\S+, .*images/s\]$", said, re.MULTILINE)
    assert "\r" not in said


def test_shards_that_another_job_has(capsys: pytest.CaptureFixture[str]) -> None:
    from afclip_runtime.bulk.judging import claim

    lock = claim(Path("out").absolute(), 1)
    assert lock is not None
    with lock:
        assert main(["in", *LOCAL]) == 75
    said = capsys.readouterr()
    assert "1 of 3 shards are not inspected yet: another job with this output has them" in said.err
    assert "in 2 shards, 2 of them in this run" in said.out
    assert main(["in", *LOCAL]) == 0
    assert "in 3 shards, 1 of them in this run" in capsys.readouterr().out
    check(10)


def start(*args: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.sharded", "in", *LOCAL, *args],
        env={"PATH": "", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_workers_and_two_jobs_share_one_output() -> None:
    write_numbered(Path("in"), 200)
    jobs = [start("--jobs", "2"), start("--jobs", "2")]
    said = [job.communicate(timeout=300) for job in jobs]
    assert all(job.returncode in (0, 75) for job in jobs), said
    assert start().wait(300) == 0
    check(200)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_job_that_is_stopped_goes_on_where_it_was(number: signal.Signals) -> None:
    write_numbered(Path("in"), 200)
    job = start("--jobs", "2", "--slow")
    while not part_path(Path("out"), 2).exists():
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)
    job.send_signal(number)
    _, said = job.communicate(timeout=120)  # until its workers, which share its output, have ended
    assert job.returncode == {signal.SIGINT: 130, signal.SIGTERM: 75, signal.SIGKILL: -9}[number], said
    stopping = "Stopping between two images, at the latest in 60 s."
    assert (stopping in said) == (number != signal.SIGKILL)
    assert (f"{stopping} Ctrl-C again stops at once.\n" in said) == (number == signal.SIGINT)
    parts = {path: path.stat().st_mtime_ns for path in Path("out/parts").rglob("*.parquet")}
    assert 3 <= len(parts) < 50
    assert start("--jobs", "2").wait(300) == 0
    check(200)
    assert {path: path.stat().st_mtime_ns for path in parts} == parts


@pytest.mark.slow
def test_an_image_that_kills_its_worker_is_a_line_of_its_shard() -> None:
    Path("in/kill.png").write_bytes(Path("in/00001.png").read_bytes())
    job = start("--jobs", "2", "--deadly")
    _, said = job.communicate(timeout=300)
    assert job.returncode == 1, said
    rows = rows_of(Path("out"))
    assert len(rows) == 11
    errors = {row["path"]: row["error"] for row in rows if row["error"]}
    assert set(errors) == {"in/00008.png", "in/00009.png", "in/kill.png"}
    assert "in/kill.png: the shard could not be judged: its process died 3 times" in errors["in/kill.png"]


@pytest.mark.slow
def test_an_image_that_kills_the_command_does_so_three_times_and_the_others_are_inspected() -> None:
    Path("in/kill.png").write_bytes(Path("in/00001.png").read_bytes())
    write_numbered(Path("in/more"), 5)
    assert [start("--deadly").wait(300) for _ in range(4)] == [9, 9, 9, 1]
    rows = rows_of(Path("out"))
    assert len(rows) == 16
    errors = {row["path"]: row["error"] for row in rows if row["error"]}
    assert set(errors) == {"in/00008.png", "in/00009.png", "in/kill.png", "in/more/00000.png"}
    assert "in/kill.png: the shard could not be judged: its process died 3 times" in errors["in/kill.png"]
