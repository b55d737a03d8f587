"""A sweep on a full disk, or whose study is removed or locked: it ends with one error, and no trial is lost by it."""

import os
import threading
import time
from pathlib import Path

import pytest
import yaml

from afclip_lightning.cli.sweep import main
from afclip_runtime.files import locks, take_lock
from tests.support.disks import half_written, small_disk
from tests.support.small_run import write_small_run

OPTIONS = ["--config=base.yaml", "--test_after_fit=false", "--trainer.limit_val_batches=1.0"]
SWEEP = {
    "name": "full",
    "program": "afclip_lightning",
    "method": "random",
    "metric": {"name": "val/tested/mean/image_auroc", "goal": "maximize"},
    "parameters": {"model.optimizer.init_args.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}},
    "command": ["${env}", "${interpreter}", "-m", "${program}", "fit", *OPTIONS, "${args}"],
}


@pytest.mark.slow
def test_a_full_disk_costs_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_small_run(tmp_path)
    Path("sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    with small_disk(tmp_path / "out", 3100) as give_space:  # room for one trial
        command = ["--config=sweep.yaml", "--out=out", "--trials=3"]
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "No space left on device" in said
        assert said.count("error: ") == 1
        assert half_written(tmp_path / "out") == []
        give_space()
        assert main(command) == 0
        table = (tmp_path / "out/sweep.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in table] == ["state", "complete", "complete", "complete"]


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["out/study.journal", "out/study.db"])
def test_a_study_that_is_removed_ends_the_sweep(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_small_run(tmp_path)
    Path("sweep.yaml").write_text(yaml.safe_dump(SWEEP))

    def remove() -> None:
        log, end = Path("out/trials/0000/output.log"), time.monotonic() + 120
        while not log.exists() and time.monotonic() < end:
            time.sleep(0.05)
        Path(storage).unlink()

    remover = threading.Thread(target=remove)
    remover.start()
    code = main(["--config=sweep.yaml", "--out=out", "--trials=3", f"--storage={storage}"])
    remover.join()
    said = capfd.readouterr().err
    assert code == 2, said
    assert said.count("error: ") == 1
    assert f"{storage}: was removed or exchanged while the sweep ran. Restore it, or start again" in said
    assert "Traceback" not in said
    assert not Path(storage).exists()


def test_a_study_that_another_process_has_locked_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    Path("sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    lock = take_lock(Path("out/study.lock"))  # by a process that hangs
    assert lock is not None
    with lock:
        assert main(["--config=sweep.yaml", "--out=out", "--trials=3"]) == 2
    assert f"out/study.lock: process {os.getpid()} on " in (said := capsys.readouterr().err)
    assert "has this lock for more than 0.2 s" in said
    assert not Path("out/study.journal").exists()
