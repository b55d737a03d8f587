"""Faults while a store is built: kills, a second builder, a full disk, an incomplete file."""

import contextlib
import multiprocessing
import os
import random
import resource
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from afclip_lightning.backbones import store_files
from afclip_lightning.backbones.store_layout import feature_files
from afclip_lightning.cli import features
from tests.support.clips import small_config
from tests.support.table_runs import options, write_set

pytestmark = pytest.mark.slow

IMAGES, TAPS, KILLS = 90, 2, 10


def build(folder: Path, store: str, limit: int | None = None) -> None:
    """Builds the features of all images in `store`, and writes its output to `<store>.txt`.

    No file may grow over `limit` bytes.
    """
    torch.set_num_threads(1)
    os.chdir(folder)
    sys.argv[1:] = []
    with Path(f"{store}.txt").open("w") as said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        command = ["build", *options("AFCLIP"), f"--features.cache={store}", "--features.dtype=float32"]
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        code = features.main(command)
    os._exit(code)


def start(folder: Path, store: str, limit: int | None = None) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=build, args=(folder, store, limit))
    process.start()
    return process


def files(store: Path) -> dict[str, Path]:
    return {str(path.relative_to(store)): path for path in feature_files(store)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and their features in `whole`, from an undisturbed build."""
    folder = tmp_path_factory.mktemp("faults")
    small_config(folder)
    write_set(folder / "train", 0, {("a", 0): 38, ("a", 1): 2})
    write_set(folder / "test", 1, {("a", 0): 48, ("a", 1): 2})
    multiprocessing.set_forkserver_preload([__name__])  # imported once for all builders
    process = start(folder, "whole")
    process.join(60)
    assert process.exitcode == 0, (folder / "whole.txt").read_text()
    assert len(files(folder / "whole")) == TAPS * IMAGES
    return folder


def assert_whole(folder: Path, store: str) -> None:
    """Compares a store with the undisturbed one."""
    expected, found = files(folder / "whole"), files(folder / store)
    assert found.keys() == expected.keys()
    assert store_files.verify(folder / store) == []
    for name, path in expected.items():
        torch.testing.assert_close(load_file(found[name]), load_file(path), rtol=1e-5, atol=1e-5)


def test_a_build_that_is_killed_ten_times_goes_on_to_the_whole_store(folder: Path) -> None:
    store, rng = folder / "killed", random.Random(0)
    moments = sorted(rng.sample(range(1, TAPS * IMAGES - 15), KILLS))
    seen = []
    for moment in moments:
        process, deadline = start(folder, "killed"), time.monotonic() + 60
        while len(files(store)) < moment and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.003 * rng.random())
        process.kill()
        process.join()
        assert process.exitcode == -9, (folder / "killed.txt").read_text()  # it was in the middle of its work
        assert store_files.verify(store) == []
        seen.append(len(files(store)))
    assert seen == sorted(seen)
    assert moments[0] <= seen[0] < seen[-1] < TAPS * IMAGES
    process = start(folder, "killed")
    process.join(60)
    assert process.exitcode == 0, (folder / "killed.txt").read_text()
    assert_whole(folder, "killed")


def test_two_builders_at_once_both_finish(folder: Path) -> None:
    pair = [start(folder, "shared") for _ in range(2)]
    for process in pair:
        process.join(60)
        assert process.exitcode == 0, (folder / "shared.txt").read_text()
    assert_whole(folder, "shared")
    assert not list((folder / "shared").rglob("*.tmp"))


def test_a_full_disk_is_reported_and_leaves_the_store_intact(folder: Path) -> None:
    some = next(feature_files(folder / "whole")).stat().st_size
    process = start(folder, "full", limit=some // 2)
    process.join(60)
    said = (folder / "full.txt").read_text()
    assert process.exitcode == 2, said
    assert "cannot be written" in said
    assert "Traceback" not in said
    assert not list((folder / "full").rglob("*.tmp"))
    assert files(folder / "full") == {}
    process = start(folder, "full")
    process.join(60)
    assert process.exitcode == 0
    assert_whole(folder, "full")


def test_a_torn_file_is_found_and_built_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torn = list(feature_files(folder / "whole"))[7]
    content = torn.read_bytes()
    torn.write_bytes(content[: len(content) // 3])
    assert features.main(["verify", str(folder / "whole")]) == 1
    assert str(torn) in capsys.readouterr().out
    process = start(folder, "whole")
    process.join(60)
    assert process.exitcode == 0
    assert f"{torn.name}: the features cannot be read" in (folder / "whole.txt").read_text()
    assert torn.read_bytes() == content
