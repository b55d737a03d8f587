"""Commands as a user types them, on miniature trees of MVTec AD and VisA with a small random backbone."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import REPOSITORY
from tests.support.clips import small_config
from tests.support.layouts.mvtec import write_mvtec
from tests.support.layouts.visa import write_visa

MVTEC = ["bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile"]
MVTEC += ["toothbrush", "transistor", "wood", "zipper"]
VISA = ["candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2", "pcb1", "pcb2", "pcb3", "pcb4"]
VISA += ["pipe_fryum"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with miniature MVTec AD and VisA trees under `data/`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFCLIP_DATA", raising=False)
    write_mvtec(tmp_path / "data/mvtec", MVTEC, by_name=True)  # the recorded limits are of these pixels
    write_visa(tmp_path / "data/visa", VISA, by_name=True)
    small_config(tmp_path)
    return tmp_path


def link_all(source: Path, target: Path) -> None:
    """Links all that a folder holds into another one, in which a test then writes."""
    for path in source.iterdir():
        (target / path.name).symlink_to(path)


def arguments(config: str = "afclip_mvtec", **extra: str) -> list[str]:
    """Returns the arguments that run a shipped config on the miniature trees with a small random backbone."""
    options = {
        "config": str(REPOSITORY / f"configs/{config}.yaml"),
        "out": "run",
        "model.backbone.model": "small.json",
        "model.backbone.weights": "random",
        "model.backbone.image_size": "28",
        "model.layers": "[1,2,3]",
        "data.train.num_workers": "0",
        "trainer.max_epochs": "1",
        "trainer.accelerator": "cpu",
        "trainer.log_every_n_steps": "1",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        **{key.replace("__", "."): value for key, value in extra.items()},
    }
    return [f"--{key}={value}" for key, value in options.items()]


def subprocess_of(args: list[str], **extra: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "afclip_lightning", *args]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, **extra
    )


def table(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with path.open() as file:
        return {(row["dataset"], row["category"]): row for row in csv.DictReader(file)}
