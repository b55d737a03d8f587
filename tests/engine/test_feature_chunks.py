"""`features build --launcher`: on every route and after killed processes, the files equal those of one process."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from afclip_lightning.engine.feature_chunks import FeatureChunks
from afclip_runtime.errors import DatasetError, UserError
from afclip_runtime.launch.worker import run_claimed
from tests.support.clips import small_config
from tests.support.commands import subprocess_of
from tests.support.processes import contents
from tests.support.slurm import needs_nodes
from tests.support.table_runs import options, write_set

IMAGES, TAPS = 1240, 2


class FakeImages:
    """Images whose features are recorded in a list."""

    def __init__(self, store: Any, sizes: list[int]) -> None:
        self.store, self.digest, self.sizes, self.gpu = store, "abcd", sizes, False
        self.files = "chunk {}".format
        self.computed: list[int] = []
        self.full = self.damaged = False

    def compute(self, number: int) -> None:
        if self.full:
            raise UserError("cannot be written")
        if self.damaged:
            raise DatasetError("b.png: the image is damaged.")
        self.computed.append(number)


@pytest.fixture
def images(tmp_path: Path) -> FakeImages:
    return FakeImages(type("Store", (), {"folder": tmp_path / "store/key"}), [500, 500, 240])


def chunks(images: FakeImages) -> FeatureChunks:
    return FeatureChunks(lambda begun: images, images)


def test_each_chunk_is_computed_once(images: FakeImages) -> None:
    jobs = [chunks(images) for _ in range(2)]
    units = [job.claim(()) for job in jobs]
    assert [unit.name for unit in units if unit] == ["0", "1"]
    for job, unit in zip(jobs, units, strict=True):
        assert unit is not None
        assert run_claimed(job, unit).status == "done"
    assert jobs[0].left() == 1
    last = jobs[1].claim(())
    assert last is not None
    assert jobs[0].claim(()) is None  # another has it
    run_claimed(jobs[1], last)
    assert images.computed == [0, 1, 2]
    assert [job.left() for job in jobs] == [0, 0]


def test_a_build_that_ended_early_goes_on_and_a_complete_one_looks_at_all_again(images: FakeImages) -> None:
    job = chunks(images)
    unit = job.claim(())
    assert unit is not None
    run_claimed(job, unit)
    again = chunks(images)
    again.prepare()
    assert again.left() == 2
    while unit := again.claim(()):
        run_claimed(again, unit)
    again.conclude()
    assert [path.name for path in again.folder.iterdir()] == ["complete"]
    assert job.left() == 0  # another command on the same images sees that there is nothing left
    new = chunks(images)
    new.prepare()
    assert new.left() == 3


def test_a_failed_chunk_is_reported_and_tried_by_the_next_build(images: FakeImages) -> None:
    job = chunks(images)
    images.damaged = True
    unit = job.claim(())
    assert unit is not None
    assert run_claimed(job, unit).status == "failed"
    assert job.failures() == ["b.png: the image is damaged."]
    job.fail("1", "its process died 3 times")
    job.fail("1", "said twice")
    assert job.failures() == ["b.png: the image is damaged.", "chunk 1: its process died 3 times"]
    assert job.left() == 1
    again = chunks(images)
    again.prepare()
    assert again.left() == 3


def test_a_store_that_takes_no_more_ends_the_build(images: FakeImages) -> None:
    images.full = True
    job = chunks(images)
    unit = job.claim(())
    assert unit is not None
    assert run_claimed(job, unit).status == "failed"
    with pytest.raises(UserError, match="cannot be written"):
        job.claim(())


def start(folder: Path, store: str, *extra: str) -> subprocess.Popen[str]:
    command = ["features", "build", *options("AFCLIP"), f"--features.cache={store}", "--features.dtype=float32", *extra]
    return subprocess_of(command, cwd=folder)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == code, said
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and the features of one process in `whole`."""
    folder = tmp_path_factory.mktemp("chunks")
    small_config(folder)
    write_set(folder / "train", 0, {("a", 0): 38, ("a", 1): 2})
    write_set(folder / "test", 1, {("a", 0): IMAGES - 42, ("a", 1): 2})
    before = Path.cwd()
    os.chdir(folder)  # where the options are written
    try:
        finish(start(folder, "whole"))
    finally:
        os.chdir(before)
    assert len(contents(folder / "whole")) == TAPS * IMAGES
    return folder


@pytest.fixture
def at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
def test_workers_repeat_nothing_that_the_command_has_said(at: Path) -> None:
    said = finish(start(at, "quiet", "--launcher=local", "--jobs=2", "--trainer.enable_progress_bar=true"))
    assert [line.split(":")[0] for line in said.splitlines()] == ["Seed set to 1", "Backbone", "Features"], said


@pytest.mark.slow
def test_one_worker_names_the_image_that_cannot_be_read_and_computes_the_other_chunks(at: Path) -> None:
    victim = at / "test/a07.png"
    content = victim.read_bytes()
    victim.write_bytes(content[:100])
    try:
        said = finish(start(at, "some", "--launcher=local"), code=2)
    finally:
        victim.write_bytes(content)
    assert "a07.png" in said
    assert "The same command tries these again." in said
    assert len(contents(at / "some")) > TAPS * 500
    said = finish(start(at, "some", "--launcher=local"))
    assert contents(at / "some") == contents(at / "whole")


@pytest.mark.slow
def test_ray(at: Path) -> None:
    pytest.importorskip("ray")
    finish(start(at, "ray", "--launcher=ray", "--jobs=2"))
    assert contents(at / "ray") == contents(at / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("mark", [pytest.param("", marks=needs_nodes(1))])
def test_slurm(at: Path, mark: str) -> None:
    said = finish(start(at, "slurm", "--launcher=slurm", "--jobs=2", "--sbatch=--cpus-per-task=1"))
    assert re.search(r"SLURM array \d+", said)
    assert contents(at / "slurm") == contents(at / "whole")
