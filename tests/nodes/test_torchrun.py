"""Runs that torchrun starts on two nodes that share one folder: their files are those of one process."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from afclip_lightning.backbones import store_files
from afclip_lightning.backbones.store_layout import feature_files
from tests.support import REPOSITORY
from tests.support.nodes import TwoNodes, finished, two_nodes
from tests.support.processes import assert_alike, assert_same_features, assert_same_training, files_of, rows

pytestmark = pytest.mark.slow

ONE_PROCESS = """
from afclip_lightning.cli import features
from afclip_lightning.engine.app import main
demo = "--config={repository}/configs/afclip_demo.yaml"
configs = [demo, "--config=one.yaml"]
assert main(["fit", *configs, "--out=one/fit"]) == 0
assert main(["test", *configs, "--checkpoint=one/fit/head.ckpt", "--out=one/test"]) == 0
assert features.main(["build", demo, "--config=two.yaml", "--features.cache=one/store"]) == 0
"""
CONFIGS = [f"--config={REPOSITORY}/configs/afclip_demo.yaml", "--config=two.yaml"]


def write_config(path: Path, batch_size: int) -> None:
    """Writes a run of seconds over AF-CLIP's demo; its pictures are drawn on the own disk of whoever reads them."""
    fixed = {"num_workers": 0, "batch_size": batch_size, "train_normal": 1}
    train = {**fixed, "root": "/tmp/trained", "categories": ["cloth"], "test_normal": 8, "test_anomalous": 8}
    tested = {**fixed, "root": "/tmp/tested", "categories": ["gear"], "test_normal": 6, "test_anomalous": 5}
    sets = [{"class_path": "Synthetic", "init_args": arguments} for arguments in (train, tested)]
    trainer = {"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 1}
    config = {
        "test_before_fit": False,
        "features": {"temporary": True, "dtype": "float32"},
        "trainer": {**trainer, "enable_progress_bar": False, "enable_model_summary": False},
        "data": {"init_args": {"train": sets[0], "test": [sets[1]]}},
    }
    path.write_text(yaml.safe_dump(config))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    """Two nodes, in whose folder the runs of one process lie under `one`."""
    with two_nodes(tmp_path_factory.mktemp("torchrun")) as nodes:
        for name, batch_size in (("one", 4), ("two", 2)):
            write_config(nodes.folder / f"{name}.yaml", batch_size)
        nodes.run(1, "python", "-c", ONE_PROCESS.format(repository=REPOSITORY))
        yield nodes


def without(names: list[str], start: str) -> list[str]:
    return [name for name in names if not name.startswith(start)]


def test_fit_with_a_tracker(nodes: TwoNodes) -> None:
    folder = nodes.folder
    loggers = f"--config={REPOSITORY}/configs/loggers/wandb.yaml"
    finished(*nodes.torchrun("job7", "fit", *CONFIGS, loggers, WANDB_MODE="offline"))
    one, run = folder / "one/fit", folder / "runs/wandb/job7"  # named by torchrun, below the last config's name
    assert_same_training(run, one)
    for name in ("results.csv", "scores.csv", "nearest_words.csv"):
        assert_alike(rows(run / name), rows(one / name), limit=1e-4 if name == "scores.csv" else 1e-5)
    assert without(files_of(run), "wandb/") == files_of(one)
    assert len(list((run / "wandb").glob("offline-run-*"))) == 1
    assert [path.name for path in (folder / "runs").rglob("config.yaml")] == ["config.yaml"]


def test_test(nodes: TwoNodes) -> None:
    folder = nodes.folder
    finished(*nodes.torchrun("tested", "test", *CONFIGS, "--checkpoint=one/fit/head.ckpt", "--out=two/test"))
    one, run = folder / "one/test", folder / "two/test"
    for name in ("results.csv", "scores.csv"):
        assert_alike(rows(run / name), rows(one / name))
    assert files_of(run) == files_of(one)


def test_features_build(nodes: TwoNodes) -> None:
    folder = nodes.folder
    finished(*nodes.torchrun("built", "features", "build", *CONFIGS, "--features.cache=two/store"))
    # values of this CLIP reach 56: 1e-5 of them
    assert_same_features(folder / "two/store", folder / "one/store", limit=5e-4)
    assert files_of(folder / "two/store") == files_of(folder / "one/store")
    assert len({path.name for path in feature_files(folder / "two/store")}) == 16 + 11
    assert store_files.verify(folder / "two/store") == []


def test_processes_that_die_on_one_node_are_begun_again_on_both(nodes: TwoNodes) -> None:
    epochs = ["--trainer.max_epochs=15", "--test_after_fit=false"]
    running = nodes.torchrun("again", "fit", *CONFIGS, *epochs, restarts=3)
    run = nodes.folder / "runs/two/again"
    while not (run / "checkpoints/last.ckpt").exists():
        assert running[0].process.poll() is None, running[0].said()
        time.sleep(0.05)
    nodes.run(2, "sh", "-c", "kill -9 $(pgrep -f '[-]u -m afclip_lightning fit')")  # not torchrun, its parent
    said = finished(*running)
    assert "Training goes on from" in said
    before, after = (rows(run / log / "metrics.csv") for log in ("log", "log-2"))
    assert 0 < int(after[0]["epoch"]) <= int(before[-1]["epoch"]) + 1
    assert int(after[-1]["epoch"]) == 14
    assert torch.load(run / "head.ckpt", weights_only=True)["global_step"] == 15 * 4
