"""The options of the launcher, and the command that tasks on other machines run."""

import argparse
import sys

import pytest

from afclip_lightning.cli.features import build
from afclip_runtime.cli.launch_options import add_launch_options, where_of
from afclip_runtime.cli.parser import CommandParser
from afclip_runtime.errors import UserError
from afclip_runtime.launch import Where


def read(args: list[str], optional: bool = False) -> Where:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--retry", action="store_true")
    add_launch_options(parser, "cells", optional)
    end = args.index("--") if "--" in args else len(args)
    return where_of(parser.parse_args(args[:end]), "benchmark", args, drop=("--retry",))


def test_a_task_runs_the_same_command_with_one_local_worker() -> None:
    cluster = ["--launcher", "slurm", "--jobs=8", "--retry", "--sbatch", "--gres=gpu:1 --time=1"]
    where = read([*cluster, "--config=--jobs", "--", "--jobs=3"])
    assert (where.launcher, where.jobs, where.ray_address) == ("slurm", 8, None)
    assert list(where.sbatch) == ["--gres=gpu:1", "--time=1"]
    task = ["--config=--jobs", "--launcher=local", "--jobs=1", "--", "--jobs=3"]
    assert list(where.command) == [sys.executable, "-m", "afclip_lightning", "benchmark", *task]


def test_without_options_the_work_runs_here() -> None:
    assert (read([]).launcher, read([]).jobs) == ("local", 1)


@pytest.mark.parametrize(
    "args", [["--jobs", "0"], ["--jobs", "x"], ["--launcher", "cloud"], ["--sbatch", "'"], ["--launcher"]]
)
def test_wrong_values_are_refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read(args)
    assert args[0] in capsys.readouterr().err


def test_a_value_that_begins_with_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser("afclip benchmark")
    add_launch_options(parser, "cells")
    assert parser.parse_args(["--sbatch=-G1"]).sbatch == ["-G1"]
    with pytest.raises(SystemExit):
        parser.parse_args(["--sbatch", "-G1"])
    said = "argument --sbatch: expected one argument. A value that begins with - follows =, as in --sbatch=-1"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("args", [["--sbatch=-G1"], ["--launcher=ray", "--sbatch=-G1"], ["--ray_address=auto"]])
def test_an_option_of_another_launcher_is_refused(args: list[str]) -> None:
    with pytest.raises(UserError, match=r"needs --launcher (slurm|ray): add"):
        read(args)


@pytest.mark.parametrize("args", [["--jobs=2"], ["--sbatch=-G1"], ["--launcher=local", "--ray_address=auto"]])
def test_features_build_refuses_what_would_do_nothing(args: list[str]) -> None:
    with pytest.raises(UserError, match=rf"^{args[-1].partition('=')[0]} needs "):
        build(["--config", "x.yaml", "--features.cache=store", *args])
