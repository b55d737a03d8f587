"""`fit` on a disk that is full: one error names the file, the last whole checkpoint stays, and the run goes on."""

from pathlib import Path

import pytest
import torch

from tests.support.commands import link_all, table
from tests.support.disks import half_written, small_disk
from tests.support.small_run import run, write_small_run
from tests.support.stops import assert_same_end

pytestmark = pytest.mark.slow

OPTIONS = ["--trainer.max_epochs=3", "--trainer.logger=true", "--trainer.log_every_n_steps=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data and an undisturbed run, `whole`."""
    folder = tmp_path_factory.mktemp("full")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_small_run(folder)
        assert run("fit", "--out=whole", *OPTIONS) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    link_all(made, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("checkpoints", "kept", "file"),
    [(0.0, 0, ""), (0.5, 0, "last.ckpt"), (1.5, 1, "last.ckpt")],
    ids=["nothing fits", "no checkpoint fits", "one checkpoint fits"],
)
def test_a_full_disk_is_one_error_and_the_run_goes_on(
    checkpoints: float, kept: int, file: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    size = (folder / "whole/checkpoints/last.ckpt").stat().st_size
    last = folder / "full/run/checkpoints/last.ckpt"
    with small_disk(folder / "full", int(checkpoints * size / 1024) + (40 if checkpoints else 8)) as give_space:
        assert run("fit", "--out=full/run", *OPTIONS) == 2
        said = capfd.readouterr().err
        assert said.count("error: ") == 1
        [message] = [line for line in said.splitlines() if line.startswith("error: ")]
        assert "No space left on device" in message
        assert f"full/run/{'checkpoints/' if file else ''}{file}" in message
        assert "Traceback" not in said
        assert half_written(folder / "full") == []
        assert last.exists() == bool(kept)
        if kept:
            assert torch.load(last, weights_only=True)["epoch"] + 1 >= kept
        give_space()
        assert run("fit", "--out=full/run", *OPTIONS, *([f"--checkpoint={last}"] if kept else [])) == 0
        assert_same_end(folder / "whole", folder / "full/run")


def test_a_test_on_a_full_disk_is_one_error_and_is_made_again(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["test", "--out=full/run", "--checkpoint=whole/head.ckpt"]
    with small_disk(folder / "full", 12) as give_space:  # the config and the record of the run take two pages of three
        assert run(*command) == 2
        said = capfd.readouterr().err
        assert said.count("error: full/run/") == said.count("error: ") == 1
        assert "No space left on device" in said
        assert half_written(folder / "full") == []
        give_space()
        assert run(*command) == 0
        assert table(folder / "full/run/results.csv") == table(folder / "whole/results.csv")
