"""A sweep on a disk that is full: it ends with one error, and no trial is lost by it."""

from pathlib import Path

import pytest
import yaml

from afclip_lightning.cli.sweep import main
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
