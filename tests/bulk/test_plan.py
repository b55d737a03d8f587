"""The plan: shards stay, new images become new shards, replaced images are inspected again, and no image twice."""

import os
from pathlib import Path

import pytest

from afclip_runtime.bulk import judging
from afclip_runtime.bulk.judging import Judge, claim, write_failure
from afclip_runtime.bulk.parts import Facts, facts_of, part_path
from afclip_runtime.bulk.plan import Plan, files_path
from afclip_runtime.bulk.routes import judge_shards
from afclip_runtime.bulk.sources import Listing, expand_braces, is_sharded
from afclip_runtime.bulk.summary import finish
from afclip_runtime.errors import UserError
from afclip_runtime.launch.where import HERE
from tests.support.sharded import inspect, job_of, load, plan_of, rows_of, write_numbered, write_table, write_tar
from tests.support.watcher import save_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_numbered(tmp_path / "in", 10)
    return tmp_path / "in"


def names(out: Path) -> list[str]:
    return [Path(row["path"]).name for row in rows_of(out)]


def times(out: Path) -> list[int]:
    return [part_path(out, number).stat().st_mtime_ns for number in range(len(Plan.read(out).shards))]


def replaced(path: Path, number: int) -> None:
    save_image(path, number)
    os.utime(path, ns=(1, 10**9))


def test_a_finished_job_is_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    first = inspect(tmp_path / "out", folder)
    before = times(tmp_path / "out")
    assert inspect(tmp_path / "out", folder) == first
    assert times(tmp_path / "out") == before
    assert names(tmp_path / "out") == [f"{number:05d}.png" for number in range(10)]


def test_new_images_become_new_shards(folder: Path, tmp_path: Path) -> None:
    inspect(tmp_path / "out", folder)
    before = times(tmp_path / "out")
    save_image(folder / "00000a.png", 1)  # sorted among the old ones
    write_numbered(folder / "sub", 6, 100)
    assert inspect(tmp_path / "out", folder).shards == 5
    assert times(tmp_path / "out")[:3] == before
    new = ["00000a.png", *(f"{number:05d}.png" for number in range(100, 106))]
    assert names(tmp_path / "out")[10:] == new


def test_a_replaced_image_is_judged_again_with_its_shard(folder: Path, tmp_path: Path) -> None:
    inspect(tmp_path / "out", folder)
    before = times(tmp_path / "out")
    assert rows_of(tmp_path / "out")[5]["verdict"] == "normal"
    replaced(folder / "00005.png", 3)
    plan = plan_of(tmp_path / "out", [str(folder)])
    assert plan.todo(tmp_path / "out") == [1]
    inspect(tmp_path / "out", folder)
    after = times(tmp_path / "out")
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    assert rows_of(tmp_path / "out")[5]["verdict"] == "anomalous"
    assert names(tmp_path / "out") == [f"{number:05d}.png" for number in range(10)]


def test_what_failed_is_tried_again_once_per_run(folder: Path, tmp_path: Path) -> None:
    content = (folder / "00002.png").read_bytes()
    state = (folder / "00002.png").stat()
    (folder / "00002.png").write_bytes(content[:20])
    os.truncate(folder / "00002.png", state.st_size)
    os.utime(folder / "00002.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert inspect(tmp_path / "out", folder).failed == 1
    assert Plan.read(tmp_path / "out").todo(tmp_path / "out") == []  # in the same run
    (folder / "00002.png").write_bytes(content)
    os.utime(folder / "00002.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    before = times(tmp_path / "out")
    assert inspect(tmp_path / "out", folder).failed == 0
    assert [a == b for a, b in zip(before, times(tmp_path / "out"), strict=True)] == [False, True, True]


def test_a_file_that_is_named_twice_is_judged_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inspect(tmp_path / "out", "in/00003.png", folder, "in/*.png", "./in/../in/00004.png")
    assert sorted(names(tmp_path / "out")) == [f"{number:05d}.png" for number in range(10)]


def test_other_sources_are_added_to_the_plan(folder: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", folder)
    inspect(tmp_path / "out", folder)
    before = times(tmp_path / "out")
    assert inspect(tmp_path / "out", tmp_path / "a.tar").shards == 4
    assert times(tmp_path / "out")[:3] == before
    write_numbered(folder, 1, 10)
    write_tar(tmp_path / "a.tar", folder)
    assert inspect(tmp_path / "out", tmp_path / "a.tar").rows == 10 + 11
    assert times(tmp_path / "out")[:3] == before


def test_a_table_that_was_replaced_by_a_shorter_one_leaves_no_row_behind(folder: Path, tmp_path: Path) -> None:
    data = [(folder / f"{number:05d}.png").read_bytes() for number in range(10)]
    write_table(tmp_path / "a.parquet", {"image": data})
    assert inspect(tmp_path / "out", tmp_path / "a.parquet").rows == 10
    write_table(tmp_path / "a.parquet", {"image": data[:4]})
    found = inspect(tmp_path / "out", tmp_path / "a.parquet")
    assert found.rows == 4
    assert (found.shards, found.done) == (2, 2)
    assert inspect(tmp_path / "out", tmp_path / "a.parquet", shard_images=3).rows == 4


@pytest.mark.parametrize("damaged", [False, True])
def test_a_table_that_was_replaced_by_another_kind_fails_once(folder: Path, tmp_path: Path, damaged: bool) -> None:
    pixels = [path.read_bytes() for path in sorted(folder.iterdir())]
    write_table(tmp_path / "a.parquet", {"image": pixels})
    assert inspect(tmp_path / "out", tmp_path / "a.parquet").shards > 1
    write_table(tmp_path / "a.parquet", {"picture": pixels[:2]})
    if damaged:
        (tmp_path / "a.parquet").write_bytes(b"no table")
    found = inspect(tmp_path / "out", tmp_path / "a.parquet")
    assert (found.rows, found.failed) == ((1, 1) if damaged else (2, 0))


def test_a_table_keeps_its_shards_until_it_is_replaced(folder: Path, tmp_path: Path) -> None:
    data = [(folder / f"{number:05d}.png").read_bytes() for number in range(10)]
    write_table(tmp_path / "a.parquet", {"image": data})
    assert inspect(tmp_path / "out", tmp_path / "a.parquet").shards == 2
    assert inspect(tmp_path / "out", tmp_path / "a.parquet", shard_images=1).shards == 2
    write_table(tmp_path / "a.parquet", {"image": data}, group=2)
    found = inspect(tmp_path / "out", tmp_path / "a.parquet", shard_images=1)
    assert found.rows == 10
    assert sorted(Path(path).name for path in names(tmp_path / "out")) == [f"{number}" for number in range(10)]


def test_a_run_that_was_killed_while_it_planned_loses_no_change(folder: Path, tmp_path: Path) -> None:
    inspect(tmp_path / "out", folder)
    plan = (tmp_path / "out/plan/plan.json").read_bytes()
    replaced(folder / "00005.png", 3)
    plan_of(tmp_path / "out", [str(folder)])
    (tmp_path / "out/plan/plan.json").write_bytes(plan)  # the files of the shard were written, and the plan was not
    inspect(tmp_path / "out", folder)
    assert rows_of(tmp_path / "out")[5]["verdict"] == "anomalous"


def test_a_worker_that_read_the_old_files_leaves_the_shard_to_be_judged(folder: Path, tmp_path: Path) -> None:
    plan_of(tmp_path / "out", [str(folder)])
    judge = Judge(job_of(tmp_path / "out"))
    replaced(folder / "00005.png", 3)
    plan_of(tmp_path / "out", [str(folder)])  # another job with this output
    (facts,) = [judge(number) for number in [1]]
    assert facts is not None
    assert Plan.read(tmp_path / "out").todo(tmp_path / "out") == [0, 1, 2] or facts.rows == 4
    inspect(tmp_path / "out", folder)
    assert rows_of(tmp_path / "out")[5]["verdict"] == "anomalous"


def test_a_shard_that_another_process_has_is_passed_over(folder: Path, tmp_path: Path) -> None:
    plan_of(tmp_path / "out", [str(folder)])
    job = job_of(tmp_path / "out")
    judged: list[Facts] = []
    lock = claim(tmp_path / "out", 1)
    assert lock is not None
    with lock:
        judge_shards(job, [1, 0], HERE, load(), judged.append)
    assert [facts.shard for facts in judged] == [0]
    judge_shards(job, [0, 1], HERE, load(), judged.append)
    assert [facts.shard for facts in judged] == [0, 1]
    manifest = finish(tmp_path / "out", {None: None})
    assert (manifest.done, manifest.shards) == (2, 3)


def test_a_part_that_is_damaged_is_judged_again(folder: Path, tmp_path: Path) -> None:
    inspect(tmp_path / "out", folder)
    whole = part_path(tmp_path / "out", 1).read_bytes()
    for content in (b"", whole[:-9], whole[: len(whole) // 2]):
        part_path(tmp_path / "out", 1).write_bytes(content)
        assert facts_of(tmp_path / "out", 1) is None
        assert inspect(tmp_path / "out", folder).done == 3
    assert names(tmp_path / "out") == [f"{number:05d}.png" for number in range(10)]


def test_a_damaged_plan_is_one_clear_error(folder: Path, tmp_path: Path) -> None:
    inspect(tmp_path / "out", folder)
    files_path(tmp_path / "out", 1).write_text("{")
    with pytest.raises(UserError, match=r"000001\.jsonl.*Choose another --out"):
        plan_of(tmp_path / "out", [str(folder)])
    (tmp_path / "out/plan/plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan\.json.*Choose another --out"):
        plan_of(tmp_path / "out", [str(folder)])


def test_a_shard_whose_process_died_has_a_line_per_image_and_is_tried_again(folder: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", folder)
    plan_of(tmp_path / "out", [str(folder), str(tmp_path / "a.tar")])
    write_failure(tmp_path / "out", 1, "its process died: killed by SIGKILL")
    write_failure(tmp_path / "out", 3, "its process died: killed by SIGKILL")
    facts = facts_of(tmp_path / "out", 1), facts_of(tmp_path / "out", 3)
    assert [(found.rows, found.failed) for found in facts if found] == [(4, 4), (1, 1)]
    assert Plan.read(tmp_path / "out").todo(tmp_path / "out") == [0, 2]
    assert inspect(tmp_path / "out", folder, tmp_path / "a.tar").failed == 0


def test_no_folder_holds_many_files(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afclip_runtime.bulk.parts.PER_FOLDER", 3)
    monkeypatch.setattr(judging, "PER_FOLDER", 3)
    inspect(tmp_path / "out", folder, shard_images=1, saves=("map",))
    write_tar(tmp_path / "a.tar", folder)
    inspect(tmp_path / "out", tmp_path / "a.tar", shard_images=1, saves=("map",))
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(list((tmp_path / "out" / "maps").rglob("*.png"))) == 20
    assert max(sum(1 for path in files if path.parent == folder) for folder in {path.parent for path in files}) <= 3


def test_pictures_of_a_shard_that_became_shorter_are_gone(folder: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", folder)
    inspect(tmp_path / "out", tmp_path / "a.tar", saves=("map",))
    (folder / "00009.png").unlink()
    write_tar(tmp_path / "a.tar", folder)
    inspect(tmp_path / "out", tmp_path / "a.tar", saves=("map",))
    maps = {
        path.relative_to(tmp_path / "out/maps").with_suffix("").as_posix() for path in tmp_path.rglob("maps/**/*.png")
    }
    assert maps == {row["name"] for row in rows_of(tmp_path / "out")}
    assert len(maps) == 9


def test_listing_leaves_out_the_output_and_streams(folder: Path, tmp_path: Path) -> None:
    write_numbered(folder / "out" / "maps", 3)
    stream = iter(Listing([str(folder)], folder / "out"))
    assert not hasattr(stream, "__len__")
    assert [Path(item.path).name for item in stream] == [f"{number:05d}.png" for number in range(10)]


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("a-{000..002}.tar", ["a-000.tar", "a-001.tar", "a-002.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{00..100}", [f"{number:03d}" for number in range(101)]),
        ("{0..10}", [str(number) for number in range(11)]),
        ("{x,y}-{0..1}", ["x-0", "x-1", "y-0", "y-1"]),
        ("{x}", ["{x}"]),
        ("s3://b/{00..01}.tar", ["s3://b/00.tar", "s3://b/01.tar"]),
        ("plain", ["plain"]),
    ],
)
def test_braces(pattern: str, meant: list[str]) -> None:
    assert list(expand_braces(pattern)) == meant


def test_what_is_inspected_by_shards(tmp_path: Path) -> None:
    (tmp_path / "folder.tar").mkdir()
    for yes in (
        "a.tar",
        "a-{0..9}.TAR",
        "x/*.tar.gz",
        "b.parquet",
        "s3://b/images",
        "https://host/a.png",
        "memory://a",
    ):
        assert is_sharded([yes]), yes
    for no in ("a.png", "folder", "a.gz", "C:\\images", "c://images", str(tmp_path / "folder.tar")):
        assert not is_sharded([no]), no
