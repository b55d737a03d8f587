"""Fixtures: tiny networks of open_clip's own classes, with seeded or recipe weights."""

import atexit
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

os.environ.setdefault("WANDB_MODE", "disabled")  # the tests of tracking turn it on
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["AFCLIP_CACHE"] = tempfile.mkdtemp(prefix="afclip-tests-")  # not the user's own
atexit.register(shutil.rmtree, os.environ["AFCLIP_CACHE"], ignore_errors=True)
# a shell starts background jobs that ignore Ctrl-C, like their child processes: tests send it
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
import wandb.env

pytest.register_assert_rewrite("tests.support")

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.engine.quiet import SAID_BEFORE
from tests.support.recipe import write_clip

pytest_plugins = ["tests.support.browser", "tests.support.commands", "tests.support.slurm", "tests.support.spread"]

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Undoes what a test, or a library that it calls, changes in the environment.

    Processes that later tests start would have it: `ray.init` leaves `RAY_AUTH_MODE=token`. W&B's address of its
    service is left as it is: W&B removes it when it ends the service, and an older one leads nowhere.
    """
    before = {name: value for name, value in os.environ.items() if name != wandb.env.SERVICE}
    yield
    for name in os.environ.keys() - before.keys() - {wandb.env.SERVICE}:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def own_log_levels() -> Iterator[None]:
    """Undoes what a job does for its worker process: it silences what the launcher's process has said."""
    loggers = [logging.getLogger(name) for name in SAID_BEFORE]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Gives each test the same random numbers, independent of earlier tests."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden_backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[int, ClipBackbone]:
    """Backbones by width, 70 px, with the weights that the recorded numbers were made with."""
    folder = tmp_path_factory.mktemp("golden")
    backbones = {}
    for width in (64, 128):
        config, weights = write_clip(folder, width)
        backbones[width] = ClipBackbone(str(config), str(weights), image_size=70)
    return backbones


@pytest.fixture(scope="session")
def tiny() -> ClipBackbone:
    """A seeded random backbone of 8 blocks at 112 px."""
    return ClipBackbone("tiny-8-112", "random", image_size=None)
