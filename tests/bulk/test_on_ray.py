"""Shards on Ray Data: one actor per device, and the same table as by all routes even if processes die."""

import csv
import json
import signal
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from afclip_runtime.bulk.judging import Job
from afclip_runtime.bulk.parts import Facts
from afclip_runtime.bulk.plan import make_plan
from afclip_runtime.bulk.routes import judge_shards
from afclip_runtime.bulk.sources import Listing
from afclip_runtime.cli.inspect import main
from afclip_runtime.errors import UserError
from afclip_runtime.launch import Where
from afclip_runtime.launch.ray_actors import share_of
from tests.support.bundles import write_bundle
from tests.support.kills import inspect_with_kills, load_deadly, start, table_of, write_slow_images

CPU, GPU = {"CPU": 8.0}, {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "jobs", "gpu", "actors", "cpus", "gpus"),
    [
        ([CPU], 1, False, 1, 8, 0),
        ([CPU], 3, False, 3, 2, 0),
        ([CPU, CPU], 3, False, 3, 4, 0),  # 5 would leave room for 2
        ([CPU, CPU], 1, False, 1, 8, 0),
        ([{"CPU": 2.0}], 4, False, 4, 1, 0),
        ([GPU, GPU], 4, True, 4, 4, 1),
        ([GPU, CPU], 16, True, 2, 8, 1),
        ([GPU], 2, False, 2, 4, 0),
        ([CPU], 2, True, 2, 4, 0),
    ],
)
def test_actors_share_the_processors_and_find_room(
    nodes: list[Mapping[str, float]], jobs: int, gpu: bool, actors: int, cpus: int, gpus: int
) -> None:
    assert share_of(nodes, jobs, gpu) == (actors, {"num_cpus": cpus, "num_gpus": gpus})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.mark.slow
def test_all_routes_give_the_same_table(bundle: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_slow_images(images, 14, side=60)
    (images / "0003.png").unlink()
    (images / "0003.png").write_bytes(b"no image")
    tables = {}
    for name, options in {
        "here": ["--launcher", "local"],
        "local": ["--launcher", "local", "--jobs", "2"],
        "ray": ["--launcher", "ray", "--jobs", "2"],
    }.items():
        run = start(bundle, images, tmp_path / name, "--threshold", "0.5", "--pixel_threshold", "0.5", *options)
        assert run.communicate()[0].count("13 inspected, 1 failed") == run.returncode == 1
        tables[name] = table_of(tmp_path / name)
    assert tables["here"].num_rows == 14
    assert tables["local"].equals(tables["here"])
    assert tables["ray"].equals(tables["here"])

    whole = ["inspect", str(images), "--bundle", str(bundle), "--out", str(tmp_path / "whole"), "--engine", "onnx"]
    assert main([*whole[1:], "--threshold", "0.5", "--pixel_threshold", "0.5"]) == 1
    with (tmp_path / "whole/inspections.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name != "name"]  # files of pictures are called by shard and row
    of_ray = [[_cell(row[name]) for name in names] for row in tables["ray"].to_pylist()]
    assert of_ray == [[row[name] for name in names] for row in rows]


def _cell(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else "" if value is None else str(value)


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "of_drivers"), [("local", 5), ("ray", 3)])
def test_kills_neither_repeat_nor_lose_an_image(launcher: str, of_drivers: int, bundle: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    paths = write_slow_images(images, 120)
    out = tmp_path / "out"
    command = [bundle, images, out, "--launcher", launcher, "--jobs", "2"]
    killed = inspect_with_kills(command, launcher, kills=10, of_drivers=of_drivers, seed=25)
    assert len(killed) == 10
    assert killed.count("driver") == of_drivers
    table = table_of(out)
    assert table["path"].to_pylist() == [str(path) for path in paths]
    whole = start(bundle, images, tmp_path / "whole", "--launcher", "local")
    whole.communicate()
    assert table.equals(table_of(tmp_path / "whole"))
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["done"], manifest["rows"], manifest["failed"]) == (40, 120, 0)


@pytest.mark.slow
def test_a_shard_that_kills_its_actors_fails_and_the_others_are_judged(bundle: Path, tmp_path: Path) -> None:
    paths = write_slow_images(tmp_path / "images", 6, side=60)
    plan = make_plan(tmp_path / "out", Listing([str(tmp_path / "images")], tmp_path / "out"), "settings", 2)
    judged: list[Facts] = []
    job = Job(tmp_path / "out", partial(load_deadly, bundle, paths[3]))
    ended = judge_shards(job, plan.todo(job.out), Where("ray"), {}, judged.append)
    assert ended.signal is None
    assert {facts.shard: facts.failed for facts in judged} == {0: 0, 1: 2, 2: 0}
    errors = table_of(job.out)["error"].to_pylist()
    assert [bool(error) for error in errors] == [False, False, True, True, False, False]
    assert errors[3] == f"{paths[3]}: the shard could not be judged: its process died 3 times"


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_one_error(tmp_path: Path) -> None:
    write_slow_images(tmp_path / "images", 2, side=60)
    plan = make_plan(tmp_path / "out", Listing([str(tmp_path / "images")], tmp_path / "out"), "settings", 1)
    job = Job(tmp_path / "out", partial(load_deadly, tmp_path / "nowhere", tmp_path))
    with pytest.raises(UserError, match="nowhere"):
        judge_shards(job, [0, 1], Where("ray"), {}, print)
    assert plan.todo(tmp_path / "out") == [0, 1]


@pytest.mark.slow
def test_a_signal_stops_the_job_at_once_and_the_same_command_goes_on(bundle: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    write_slow_images(images, 60, side=1500)
    command = (bundle, images, out, "--launcher", "ray")
    run = start(*command)
    while not list(out.glob("parts/*/*.parquet")):
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.05)
    begin = time.monotonic()
    run.send_signal(signal.SIGTERM)
    text = run.communicate()[0]
    assert time.monotonic() - begin < 30  # of which shutting Ray down takes most
    assert run.returncode == 75
    assert text.endswith("Stopped. The same command goes on from here.\n")
    left = 20 - len(list(out.glob("parts/*/*.parquet")))
    assert 0 < left < 20
    again = start(*command)
    assert f"in 20 shards, {left} of them in this run" in again.communicate()[0]
    assert again.returncode == 0
