"""Sweep files, for Weights & Biases and for Optuna, and what becomes of a sweep that is stopped."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from afclip_lightning import preemption
from afclip_lightning.cli import main as afclip
from afclip_lightning.errors import UserError
from afclip_lightning.preemption import STOPPED
from afclip_lightning.sweep.space import _distribution, read_sweep
from afclip_lightning.sweep.study import ATTEMPTS, Plan, claim, run_trial, write_table
from tests.test_cli import MVTEC, REPOSITORY, arguments, folder, subprocess_of  # noqa: F401  a fixture
from tests.test_preemption import stop_after

FILES = sorted(path for path in (REPOSITORY / "experiments/sweeps").glob("*.yaml") if "program" in path.read_text())
PARAMETERS = {
    "model.optimizer.init_args.lr": {"distribution": "log_uniform_values", "min": 1.0e-4, "max": 1.0e-2},
    "model.prompt_tokens": {"values": [4, 8]},
}


@pytest.fixture(autouse=True)
def _own_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv[:1])  # a trial sets its own


def write_sweep(path: Path, epochs: int = 2, **changes: object) -> Path:
    """Writes a sweep over the miniature MVTec AD: trained on two categories, chosen by a third."""
    options = arguments(trainer__max_epochs=str(epochs), test_after_fit="false", data__skip_missing="false")
    options = [option for option in options if not option.startswith("--run_dir")]
    sets = ["--data.seen_if_alone=false", f"--data.train.categories=[{MVTEC[0]},{MVTEC[1]}]"]
    held_out = {"root": "data/mvtec", "categories": [MVTEC[2]], "num_workers": 0}
    sets += [f"--data.test={json.dumps([{'class_path': 'MVTecAD', 'init_args': held_out}])}"]
    sets += ["--trainer.limit_val_batches=1.0", "--trainer.num_sanity_val_steps=0", "--features.cache=features"]
    facts = {
        "name": "small",
        "program": "afclip_lightning",
        "command": ["${env}", "${interpreter}", "-m", "${program}", "fit", *options, *sets, "${args}"],
        "method": "bayes",
        "metric": {"name": "val/mvtec/mean/pixel_auroc", "goal": "maximize"},
        "parameters": PARAMETERS,
        **changes,
    }
    path.write_text(yaml.safe_dump(facts))
    return path


def plan_of(path: Path, place: str, trials: int = 2, storage: str = "") -> Plan:
    return Plan(path, read_sweep(path), Path(place), storage or f"{place}/study.journal", trials, 0, [])


def run_next(plan: Plan) -> int:
    """Runs the next trial here and returns its number."""
    study = plan.study()
    claimed = claim(plan, study)
    assert claimed is not None
    trial, lock = claimed
    with lock:
        run_trial(plan, study, trial)
    return trial.number


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_command_that_wandb_makes_of_a_sweep_file_is_one_of_ours(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from wandb.sdk.launch.sweeps import utils

    monkeypatch.chdir(REPOSITORY)
    config = utils.load_sweep_config(str(path))
    space = read_sweep(path).space
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(0)).ask(space).params
    macros = utils.create_sweep_command_args({"args": {name: {"value": value} for name, value in drawn.items()}})
    macros |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [config["program"]]}
    command = [part for word in config["command"] for part in macros.get(word.strip("${}"), [word])]
    assert command[:5] == ["/usr/bin/env", "python", "-m", "afclip_lightning", "fit"]
    ours = Plan(path, read_sweep(path), Path(), "", 1, 0, []).arguments(drawn)
    assert [argument for argument in ours if argument != "--trainer.logger=true"] == command[4:]
    with pytest.raises(SystemExit) as stop:
        afclip([*command[4:], "--print_config"])
    assert stop.value.code in (0, None)
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["logger"]["class_path"].endswith("WandbLogger")
    tested, trained = printed["data"]["init_args"]["test"][0]["init_args"], printed["data"]["init_args"]["train"]
    assert not set(tested["categories"]) & set(trained["init_args"]["categories"])
    for name, value in drawn.items():
        found = printed
        for key in name.replace("model.", "model.init_args.").split("."):
            found = found[key]
        assert found == (yaml.safe_load(value) if isinstance(value, str) else pytest.approx(value))


def test_parameters_are_those_of_wandbs_own_reading() -> None:
    theirs = pytest.importorskip("wandb.sdk.sweeps.scheduler.optuna").sweep_parameter_to_distribution
    for parameter in [
        {"value": 3},
        {"values": [1, 2.5, "x"]},
        {"min": 1, "max": 4},
        {"min": 0.5, "max": 4},
        {"distribution": "uniform", "min": 1, "max": 4},
        {"distribution": "log_uniform_values", "min": 0.01, "max": 4},
        {"distribution": "q_uniform", "min": 2, "max": 8, "q": 2},
        {"distribution": "q_uniform", "min": 0.5, "max": 1.5, "q": 0.25},
    ]:
        assert _distribution("here", parameter) == theirs(parameter)


@pytest.mark.parametrize(("changes", "message"), [
    ({"metric": {"name": "test/visa/mean/pixel_pro"}}, "would be cheating"),
    ({"method": "guess"}, "method must be"),
    ({"parameters": {"lr": {"min": "1e-4", "max": 1.0}}}, "lr: needs values, or numbers min and max"),
    ({"parameters": {"lr": {"distribution": "normal", "min": 1, "max": 2}}}, "normal .* no counterpart"),
    ({"parameters": {"lr": {"mu": 1, "values": [1]}}}, "mu is not understood"),
    ({"early_terminate": {"type": "envelope"}}, "early_terminate must be"),
    ({"command": ["${program}", "fit", "${args_no_hyphens}"]}, "not a sweep file"),
    ({"command": ["${program}", "fit", "${envvar:X}", "${args}"]}, "envvar:X.* not understood"),
])  # fmt: skip
def test_a_sweep_that_cannot_be_run_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = write_sweep(tmp_path / "sweep.yaml", **changes)
    with pytest.raises(UserError, match=message):
        read_sweep(path)
    with pytest.raises(UserError, match=r"absent\.yaml"):
        read_sweep(tmp_path / "absent.yaml")


def test_a_grid_is_all_combinations_and_needs_an_end(tmp_path: Path) -> None:
    path = write_sweep(
        tmp_path / "s.yaml", method="grid", parameters={"a": {"values": [1, 2]}, "b": {"min": 1, "max": 3}}
    )
    assert read_sweep(path).grid() == [{"a": a, "b": b} for a in (1, 2) for b in (1, 2, 3)]
    with pytest.raises(UserError, match="a grid needs `values` for c"):
        read_sweep(write_sweep(path, method="grid", parameters={"c": {"min": 0.5, "max": 1.0}})).grid()


@pytest.mark.parametrize("storage", ["", "study.db"], ids=["journal", "sqlite"])
def test_a_stopped_trial_is_taken_up_and_ends_as_if_nothing_had_been(
    folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    storage: str,
) -> None:
    path = write_sweep(folder / "sweep.yaml")
    whole = plan_of(path, "whole")
    assert [run_next(whole), run_next(whole)] == [0, 1]
    assert claim(whole, whole.study()) is None
    parts = plan_of(path, "parts", storage=storage)
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        assert run_next(parts) == 0
    assert [trial.state for trial in parts.study().trials] == [TrialState.RUNNING]
    assert [run_next(parts), run_next(parts)] == [0, 1]
    found, wanted = parts.study().trials, whole.study().trials
    assert [trial.params for trial in found] == [trial.params for trial in wanted]
    assert [trial.value for trial in found] == [trial.value for trial in wanted]
    assert wanted[0].params != wanted[1].params
    assert len(list((folder / "features").glob("*/*.json"))) == 1  # one store for all
    text = write_table(parts, parts.study())
    assert "python -m afclip_lightning fit" in text
    with (folder / "parts/sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["complete"] * 2
    assert float(rows[0]["val/mvtec/mean/pixel_auroc"]) == max(trial.value for trial in found)
    with pytest.raises(UserError, match="holds another sweep named small"):
        plan_of(write_sweep(path, epochs=3), "parts", storage=storage).study()


def test_failures_are_the_trials_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    choices = {"model.prompt_tokens": {"values": [-1]}}
    plan = plan_of(write_sweep(folder / "sweep.yaml", parameters=choices), "bad", trials=1)
    run_next(plan)
    wrong = plan_of(write_sweep(folder / "w.yaml", name="w", metric={"name": "val/mvtec/mean/x"}), "wrong", trials=2)
    run_next(wrong)
    for trial in (*plan.study().trials, *wrong.study().trials):
        assert trial.state == TrialState.FAIL
    output = capsys.readouterr()
    assert "is not logged. Logged are: val/mvtec/mean/" in output.err
    assert "trial 0 failed: exit code 2" in output.out

    # a trial whose processes die, here one that was left three times, does not come again for ever
    study = wrong.study()
    for _ in range(ATTEMPTS):
        claimed = claim(wrong, study)
        assert claimed is not None
        trial, lock = claimed
        assert trial.number == 1
        trial.set_user_attr("attempts", trial.user_attrs.get("attempts", 0) + 1)
        lock.close()
    assert claim(wrong, study) is None
    assert "died" in study.trials[1].user_attrs["error"]


def test_unpromising_trials_are_given_up(tmp_path: Path) -> None:
    halving = {"type": "hyperband", "min_iter": 1, "eta": 2}
    plan = plan_of(write_sweep(tmp_path / "sweep.yaml", early_terminate=halving), str(tmp_path / "s"))
    study = plan.study()
    pruned = []
    for value in (0.9, 0.1):
        trial = study.ask(plan.sweep.space)
        trial.report(value, 1)
        pruned.append(trial.should_prune())
        study.tell(trial, value)
    assert pruned == [False, True]
    assert isinstance(plan.sweep.space["model.prompt_tokens"], CategoricalDistribution)


def wait_for(pattern: str, place: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if list(place.glob(pattern)):
            return
        if process.poll() is not None:
            pytest.fail(process.stdout.read() if process.stdout else "it ended")
        time.sleep(0.1)
    pytest.fail(f"no {pattern}")


def test_workers_survive_a_kill_and_an_interrupt_leaves_the_sweep_to_go_on(folder: Path) -> None:  # noqa: F811
    path = write_sweep(folder / "sweep.yaml", epochs=40)
    args = ["sweep", f"--config={path}", "--trials=2", "--folder=swept"]
    process = subprocess_of(args)
    wait_for("swept/trials/0000/checkpoints/last.ckpt", folder, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(workers) == 1
    subprocess.run(["kill", "-KILL", *workers], check=True)
    wait_for("swept/trials/0001/checkpoints/last.ckpt", folder, process)  # another has taken up the first
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == STOPPED, output
    assert "killed by SIGKILL; another takes its place" in output
    assert "running" in (folder / "swept/sweep.csv").read_text()
    again = subprocess_of(args)
    output = again.communicate(timeout=240)[0]
    assert again.returncode == 0, output
    with (folder / "swept/sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["state"], row["epochs"]) for row in rows] == [("complete", "40")] * 2
    assert not preemption.requested()
