"""`--checkpoint`: the file that it names, messages for an untrained head, and states that training can resume from."""

import copy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace

from afclip_lightning.engine import run_folder
from afclip_lightning.engine.resume import check_resumable, find_checkpoint
from afclip_lightning.heads import ready
from afclip_runtime.errors import CheckpointError, UserError
from afclip_runtime.files import only_writer, write_json
from tests.support.small_run import run, write_small_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `one`, trained for an epoch."""
    folder = tmp_path_factory.mktemp("trained")
    write_small_run(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("fit", "--out=one", "--test_after_fit=false") == 0
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the working folder."""
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.slow
@pytest.mark.parametrize(("command", "word"), [
    *((command, "last") for command in ("fit", "validate", "test", "predict")),
    *(("test", word) for word in ("best", "hpc", "registry", "registry:name:version:1", "s3://bucket/x.ckpt")),
])  # fmt: skip
def test_lightnings_words_name_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, word: str
) -> None:
    assert run(command, f"--ckpt_path={word}") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith(f"error: --checkpoint {word}: ")
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_a_runs_folder_is_a_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, path in {"folder": "one", "file": "one/head.ckpt", "last": "one/checkpoints/last.ckpt"}.items():
        assert run("test", f"--ckpt_path={path}", f"--out={name}") == 0
    output = capsys.readouterr().out
    assert "UNTRAINED" not in output
    assert output.count("checkpoint one/head.ckpt") == 2  # in the titles of both
    tables = [(folder / name / "results.csv").read_text() for name in ("folder", "file", "last")]
    assert tables[0] == tables[1] == tables[2]
    assert run("test", "--out=none") == 0
    assert "Test of an UNTRAINED head" in capsys.readouterr().out
    assert (folder / "none/results.csv").read_text() != tables[0]
    (folder / "one/head.ckpt").unlink()
    assert run("test", "--ckpt_path=one") == 2
    assert "one has no head.ckpt: its training has not ended" in capsys.readouterr().err
    shutil.rmtree(folder / "one/checkpoints")
    for command in ("fit", "test"):
        assert run(command, "--ckpt_path=one") == 2
        assert "not the folder of a run of `fit`" in capsys.readouterr().err


@pytest.mark.slow
def test_the_checkpoint_says_how_its_method_is_built(folder: Path) -> None:
    config = yaml.safe_load((folder / "base.yaml").read_text())
    del config["model"]
    (folder / "data.yaml").write_text(yaml.safe_dump(config))
    for command in ("test", "validate"):
        assert run(command, "--ckpt_path=one", f"--out={command}", "--model.map_sigma=1") == 0
        alone = ["--ckpt_path=one", f"--out={command}-alone", "--model.map_sigma=1"]
        assert run(command, *alone, config="data.yaml") == 0
        tables = [(folder / name / "results.csv").read_text() for name in (command, f"{command}-alone")]
        assert tables[0] == tables[1]


def test_a_ready_model_is_named_as_files_are(folder: Path) -> None:
    assert find_checkpoint("real", "test") == ready.path_of("real")
    with pytest.raises(CheckpointError, match="Checkpoint real does not exist"):
        find_checkpoint("real", "fit")  # it has no optimiser state to go on from
    shutil.copy(folder / "one/head.ckpt", folder / "real")
    assert find_checkpoint("real", "test") == Path("real")  # what lies on disk goes before the names


def test_without_model_and_checkpoint_the_model_is_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "data.yaml").write_text("data: {class_path: MVTecLayout, init_args: {root: tested}}")
    assert run("test", config="data.yaml") == 2
    assert "model" in capsys.readouterr().err
    assert run("test", "--checkpoint=absent.ckpt", config="data.yaml") == 2
    assert "error: Checkpoint absent.ckpt does not exist." in capsys.readouterr().err
    assert run("fit", "--checkpoint=one", config="data.yaml") == 2  # no head says how it is trained


@pytest.mark.slow
def test_what_an_untrained_head_gives_is_called_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "--out=p") == 0
    output = capsys.readouterr().out
    assert output.startswith("Predictions of an UNTRAINED head (no --checkpoint)")
    assert output.count("Predictions") == 1
    assert output.splitlines()[-1] == "Table: p/predictions.csv"
    assert run("validate", "--out=v") == 0
    assert "Validation of an UNTRAINED head" in capsys.readouterr().out
    assert run("predict", "--out=t", "--ckpt_path=one") == 0
    assert "UNTRAINED" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_config_of_a_continued_run_trains_anew(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--trainer.max_epochs=2", "--test_before_fit=true"]
    assert run("fit", "--out=one", "--ckpt_path=one", *more) == 0
    output = capsys.readouterr().out
    assert "Training goes on from one/checkpoints/last.ckpt" in output
    assert "before training" not in output  # that was said of the part that it goes on with
    config = yaml.safe_load((folder / "one/config.yaml").read_text())
    assert config["ckpt_path"] is None
    assert config["trainer"]["max_epochs"] == 2
    assert run("fit", "--config=one/config.yaml", "--out=again") == 0
    output = capsys.readouterr().out
    assert "goes on" not in output
    assert "Test before training of an UNTRAINED head" in output
    heads = [torch.load(folder / name / "head.ckpt", weights_only=True)["state_dict"] for name in ("one", "again")]
    torch.testing.assert_close(heads[0], heads[1], rtol=0, atol=0)
    assert (folder / "one/results.csv").read_text() == (folder / "again/results.csv").read_text()


def test_a_run_without_a_checkpoint_is_not_advised_to_go_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "one/checkpoints")
    assert run("fit", "--out=one") == 2
    error = capsys.readouterr().err
    assert "without a checkpoint to go on from" in error
    assert "last.ckpt" not in error


Change = Callable[[dict[str, Any]], Any]
DAMAGES: dict[str, tuple[Change, str]] = {
    "no optimiser": (lambda c: c.pop("optimizer_states"), "no optimiser state"),
    "no loops": (lambda c: c.pop("loops"), "loops.fit_loop is absent"),
    "empty loops": (lambda c: c.update(loops={}), "loops.fit_loop is absent"),
    "empty loop": (lambda c: c.update(loops={"fit_loop": {}}), "loops.fit_loop.state_dict is absent"),
    "loops of text": (lambda c: c.update(loops="x"), "loops.fit_loop is absent"),
    "a count of text": (
        lambda c: c["loops"]["fit_loop"]["epoch_progress"]["current"].update(completed="1"),
        "epoch_progress.current.completed is absent or damaged",
    ),
    "a negative count": (
        lambda c: c["loops"]["fit_loop"]["epoch_progress"]["current"].update(completed=-1),
        "epoch_progress.current.completed is absent or damaged",
    ),
    "steps": (lambda c: c.update(global_step=None), "global_step is absent or damaged"),
    "position": (
        lambda c: c["loops"]["fit_loop"]["state_dict"].update(combined_loader=[{"given": 2, "order": torch.zeros(3)}]),
        "the position in the epoch is absent or damaged",
    ),
    "schedulers": (lambda c: c.pop("lr_schedulers"), "lr_schedulers is absent"),
    "callbacks": (lambda c: c.update(callbacks=[]), "callbacks is absent or damaged"),
    "random states": (
        lambda c: c["callbacks"]["Preemption"].update(random_states=[torch.zeros(3)]),
        "callbacks is absent or damaged",
    ),
    "no states": (lambda c: c.update(optimizer_states=[]), "does not fit Adam"),
    "an empty state": (lambda c: c["optimizer_states"][0].update(state={}), "does not fit Adam"),
    "no groups": (lambda c: c["optimizer_states"][0].update(param_groups=[]), "does not fit Adam"),
    "states of text": (lambda c: c.update(optimizer_states=["x"]), "does not fit Adam"),
    "another shape": (
        lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(2)),
        "does not fit Adam",
    ),
    "not a number": (
        lambda c: c["optimizer_states"][0]["state"][0]["exp_avg"].fill_(float("nan")),
        "does not fit Adam",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_training_states(folder: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    change, message = DAMAGES[damage]
    checkpoint = torch.load("one/checkpoints/last.ckpt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, "damaged.ckpt")
    assert run("fit", "--ckpt_path=damaged.ckpt", "--trainer.max_epochs=2", "--out=two") == 2
    error = capsys.readouterr().err.strip()
    assert error.splitlines()[-1].startswith("error: damaged.ckpt")
    assert message in error
    assert not (folder / "two/head.ckpt").exists()


@pytest.mark.slow
def test_going_on_with_other_options(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = torch.load("one/checkpoints/last.ckpt", weights_only=True)
    path, states = Path("last.ckpt"), copy.deepcopy(checkpoint)
    states["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"] = 3
    with pytest.raises(CheckpointError, match=r"has 3 epochs already done, and --trainer.max_epochs is 2"):
        check_resumable(path, states, {"max_epochs": 2, "max_steps": -1})
    check_resumable(path, states, {"max_epochs": 3, "max_steps": -1})
    check_resumable(path, states, {"max_epochs": -1, "max_steps": -1})
    states["global_step"] = 9
    with pytest.raises(CheckpointError, match=r"has 9 steps already done, and --trainer.max_steps is 8"):
        check_resumable(path, states, {"max_epochs": None, "max_steps": 8})
    sgd = ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1", "--model.optimizer.momentum=0.9"]
    assert run("fit", "--ckpt_path=one", "--trainer.max_epochs=2", "--out=sgd", *sgd) == 2
    assert "does not fit SGD" in capsys.readouterr().err
    assert run("fit", "--ckpt_path=one", "--trainer.max_epochs=2", "--out=l", "--model.layers=[1,2]") == 2
    assert "layers: [1, 2, 3] in the checkpoint" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_folder_has_one_writer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with only_writer(Path("two")):
        for command in ("fit", "test"):
            assert run(command, "--out=two") == 2
            assert "two: another process is writing there" in capsys.readouterr().err
    assert run("test", "--out=two", "--trainer.limit_test_batches=1") == 0
    assert not (folder / "two/.lock").exists()


@pytest.mark.parametrize(("environment", "first"), [
    ({}, True),
    ({"RANK": "0", "LOCAL_RANK": "0"}, True),
    ({"RANK": "4", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
    ({"LOCAL_RANK": "1"}, False),
    ({"SLURM_PROCID": "1"}, False),
    ({"NODE_RANK": "1"}, False),
    ({"NODE_RANK": "0"}, True),
])  # fmt: skip
def test_which_process_holds_the_folder(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], first: bool
) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run_folder.is_first_process() is first


@pytest.mark.parametrize(("environment", "arguments", "repeated"), [
    ({"TORCHELASTIC_RUN_ID": "job7"}, ["fit", "--out=run"], True),
    ({"TORCHELASTIC_RUN_ID": "job7"}, ["fit", "--out=run", "--model.layers=[1]"], False),
    ({"TORCHELASTIC_RUN_ID": "job8"}, ["fit", "--out=run"], False),
    ({"TORCHELASTIC_RUN_ID": "none"}, ["fit", "--out=run"], False),  # it was given no name
    ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, ["fit"], True),
    ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0"}, ["fit"], False),
    ({}, ["fit", "--out=run"], False),
])  # fmt: skip
def test_a_folder_holds_the_run_of_a_job_that_was_begun_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], arguments: list[str], repeated: bool
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    job = "none" if environment.get("TORCHELASTIC_RUN_ID") == "none" else "job7"
    write_json(tmp_path / "run.json", {"command": ["/there/__main__.py", "fit", "--out=run"], "job": job})
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["/here/__main__.py", *arguments])
    assert run_folder.is_repeated(tmp_path) is repeated


def test_a_folder_that_is_named_by_a_job_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(run_folder.RUN_FOLDER_VARIABLE, "")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job7")
    options = Namespace(out=None, config=["small.yaml"], trainer=Namespace(num_nodes=2))
    folder = run_folder.choose_run_folder(options, None)
    assert folder == Path("runs/small/job7")
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    (folder / "head.ckpt").touch()
    with pytest.raises(UserError, match="holds an earlier run"):
        run_folder.choose_run_folder(options, None)


@pytest.mark.slow
def test_earlier_names_of_options_are_understood(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "old.yaml"
    config.write_text("run_dir: earlier\nckpt_path: one\n")
    assert run("test", f"--config={config}", "--trainer.limit_test_batches=1") == 0
    assert "UNTRAINED" not in capsys.readouterr().out
    written = yaml.safe_load(Path("earlier/config.yaml").read_text())
    assert written["ckpt_path"] == "one/head.ckpt"
    assert written["out"] is None
    assert "run_dir" not in written
    for option in ("--ckpt_path", "--checkpoint"):
        assert run("predict", f"{option}=absent.ckpt") == 2
        assert "Checkpoint absent.ckpt does not exist" in capsys.readouterr().err
