"""Jobs on two nodes of a SLURM cluster: their files are those of one process.

`eval "$(SLURM_TEST_NODES=2 tests/slurm/cluster.sh start)"` makes two nodes of this machine.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from afclip_lightning.backbones import store_files
from afclip_lightning.backbones.store_layout import feature_files
from afclip_lightning.cli import features
from afclip_lightning.engine.app import main
from tests.support.clips import small_config
from tests.support.processes import assert_alike, assert_same_features, assert_same_training, files_of, rows
from tests.support.slurm import finish, needs_nodes, slurm, submit
from tests.support.spread import CODES, COMMANDS, assert_same_outcome, of_one_process, to, workers_until_the_end
from tests.support.table_runs import options, write_set

pytestmark = [*needs_nodes(2), pytest.mark.usefixtures("environment_of_jobs")]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with images to train on and to test on."""
    monkeypatch.chdir(tmp_path)
    small_config(tmp_path)
    write_set(tmp_path / "train", 0, {("a", 0): 3, ("a", 1): 3, ("b", 0): 1, ("b", 1): 2})  # 9: one filler
    write_set(tmp_path / "test", 1, {("a", 0): 3, ("a", 1): 4, ("b", 0): 2, ("b", 1): 2})
    return tmp_path


def on_two_nodes(*command: str) -> str:
    """Runs a command of the project on two nodes, one process each, and returns its output."""
    log = finish(submit("fit_ddp.sbatch", *command, nodes="2", ntasks_per_node="1"))
    assert "Starting with 2 processes" in log, log
    return log


def nodes_of(array: str) -> set[str]:
    """Returns the nodes on which the tasks of an array ran."""
    return set(re.findall(r"^ +NodeList=(\S+)$", slurm("scontrol", "show", "job", array), re.MULTILINE))


def test_fit_and_test_as_one_process_does(images: Path) -> None:
    assert main(["fit", *options("AFCLIP"), "--out=one/fit"]) == 0
    log = on_two_nodes("fit", *options("AFCLIP", 2))
    (two,) = (path.parent for path in (images / "runs").rglob("config.yaml"))  # named by the job
    assert re.fullmatch(r"slurm-\d+-0", two.name), log
    assert_same_training(two, images / "one/fit")
    assert_alike(rows(two / "results.csv"), rows(images / "one/fit/results.csv"))
    assert files_of(two) == files_of(images / "one/fit")

    trained = "--checkpoint=one/fit/head.ckpt"
    assert main(["test", *options("AFCLIP"), trained, "--out=one/test"]) == 0
    on_two_nodes("test", *options("AFCLIP", 2), trained, "--out=two/test")
    for name in ("results.csv", "scores.csv"):
        assert_alike(rows(images / "two/test" / name), rows(images / "one/test" / name))
    assert files_of(images / "two/test") == files_of(images / "one/test")


def test_features_build_as_one_process_does(images: Path) -> None:
    store = "--features.dtype=float32"
    assert features.main(["build", *options("AFCLIP"), store, "--features.cache=one"]) == 0
    on_two_nodes("features", "build", *options("AFCLIP", 2), store, "--features.cache=two")
    assert_same_features(images / "two", images / "one")
    assert files_of(images / "two") == files_of(images / "one")
    assert len({path.name for path in feature_files(images / "two")}) == 9 + 11
    assert store_files.verify(images / "two") == []


@pytest.mark.parametrize("verb", COMMANDS)
def test_an_array_on_both_nodes_does_what_one_process_does(
    work: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    out = work / "slurm" / verb
    place = ["--launcher=slurm", "--jobs=2", f"--sbatch=--cpus-per-task={os.cpu_count()}", to(verb, f"slurm/{verb}")]
    command = [sys.executable, "-m", *COMMANDS[verb], *place]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    workers = workers_until_the_end(verb, out, process)
    said, _ = process.communicate(timeout=1)
    assert process.returncode == CODES[verb], said
    assert_same_outcome(verb, out, of_one_process(verb, work))
    array = re.search(r"SLURM array (\d+)", said)
    assert array, said
    assert nodes_of(array[1]) == workers, said
    assert len(workers) == 2
