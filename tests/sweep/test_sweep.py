"""Sweep files, for Weights & Biases and for Optuna, and stopped sweeps."""

import csv
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from afclip_lightning.cli.sweep import main as sweep_command
from afclip_lightning.engine.app import main as afclip
from afclip_lightning.sweep.space import _distribution, read_sweep
from afclip_lightning.sweep.study import ATTEMPTS, Plan, claim, told, write_table
from afclip_lightning.sweep.trials import Trials, check_arguments
from afclip_runtime.errors import UserError
from afclip_runtime.launch import Ended, Outcome, signals
from afclip_runtime.launch.signals import STOPPED
from afclip_runtime.launch.worker import run_claimed
from tests.support import REPOSITORY
from tests.support.commands import subprocess_of
from tests.support.stops import stop_after
from tests.support.sweeps import write_sweep

FILES = sorted(path for path in (REPOSITORY / "experiments/sweeps").glob("*.yaml") if "program" in path.read_text())


@pytest.fixture(autouse=True)
def _own_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv[:1])  # a trial sets its own


def plan_of(path: Path, place: str, trials: int = 2, storage: str = "") -> Plan:
    return Plan(path, read_sweep(path), Path(place), storage or f"{place}/study.journal", trials, 0, [])


def run_next(plan: Plan) -> int:
    """Runs the next trial here and returns its number."""
    job = Trials(plan)
    unit = job.claim(())
    assert unit is not None
    outcome = run_claimed(job, unit)
    print(told(plan, job.study, int(unit.name), outcome))
    return int(unit.name)


@pytest.mark.slow
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
    ({"parameters": {"lr": {"min": "low", "max": 1.0}}}, "lr: needs values, or numbers min and max"),
    ({"parameters": {"lr": {"distribution": "normal", "min": 1, "max": 2}}}, "normal .* is not supported"),
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


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["", "study.db"], ids=["journal", "sqlite"])
def test_a_stopped_trial_is_taken_up_and_ends_as_if_nothing_had_been(
    folder: Path,
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


@pytest.mark.slow
def test_failures_are_the_trials_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        lock.release()
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


def test_the_progress_and_the_table_have_one_word_for_a_pruned_trial(tmp_path: Path) -> None:
    plan = plan_of(write_sweep(tmp_path / "sweep.yaml"), str(tmp_path / "s"))
    study = plan.study()
    trial = study.ask(plan.sweep.space)
    trial.report(0.119, 1)
    study.tell(trial, state=TrialState.PRUNED)
    assert told(plan, study, 0, Outcome()) == "trial 0: 0.1190 pruned"
    assert "| 0 | pruned |" in write_table(plan, study)


def wait_for(pattern: str, place: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if list(place.glob(pattern)):
            return
        if process.poll() is not None:
            pytest.fail(process.stdout.read() if process.stdout else "it ended")
        time.sleep(0.1)
    pytest.fail(f"no {pattern}")


@pytest.mark.slow
def test_workers_survive_a_kill_and_an_interrupt_leaves_the_sweep_to_go_on(folder: Path) -> None:
    path = write_sweep(folder / "sweep.yaml", epochs=40)
    args = ["sweep", f"--config={path}", "--trials=2", "--out=swept"]
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
    assert not signals.requested()


@pytest.mark.parametrize(("changes", "message"), [
    ({"parameters": {}}, "parameters: is empty"),
    ({"parameters": []}, "parameters: expected a mapping"),
    ({"parameters": None}, "parameters: expected a mapping"),
    ({"parameters": {"lr": 3}}, "lr.*: expected a mapping|expected a mapping"),
    ({"parameters": {"lr": {}}}, "lr: needs values, or numbers min and max"),
    ({"parameters": {"lr": {"min": 1}}}, "lr: needs values, or numbers min and max"),
    ({"parameters": {"lr": {"min": True, "max": 2}}}, "lr: needs values, or numbers min and max"),
    ({"parameters": {"lr": {"min": 1, "max": True}}}, "lr: needs values, or numbers min and max"),
    ({"parameters": {"lr": {"min": 0.0, "max": float("inf")}}}, "lr: needs values, or numbers min and max"),
    ({"parameters": {"lr": {"min": float("nan"), "max": 1.0}}}, "lr: needs values, or numbers min and max"),
    ({"parameters": {"lr": {"min": 1, "max": 10**30}}}, "lr: needs values, or numbers min and max"),
    ({"parameters": {"lr": {"min": 2, "max": 1}}}, "lr: min 2 is above max 1"),
    (
        {"parameters": {"lr": {"min": 0, "max": 1, "distribution": "log_uniform_values"}}},
        "log_uniform_.* is not supported",
    ),
    (
        {"parameters": {"lr": {"min": 0.5, "max": 1.5, "distribution": "int_uniform"}}},
        "int_uniform .* is not supported",
    ),
    ({"parameters": {"lr": {"min": 0, "max": 1, "distribution": ["uniform"]}}}, "is not supported"),
    ({"parameters": {"lr": {"min": 0, "max": 4, "distribution": "q_uniform", "q": 0}}}, "q must be a number above 0"),
    ({"parameters": {"lr": {"min": 0, "max": 4, "distribution": "q_uniform", "q": -1}}}, "q must be a number above 0"),
    ({"parameters": {"lr": {"min": 0, "max": 4, "distribution": "q_uniform", "q": "1"}}}, "q must be a number above 0"),
    ({"parameters": {"lr": {"min": 0, "max": 4, "distribution": "q_uniform", "q": 5}}}, "q must be a number above 0"),
    ({"parameters": {"lr": {"min": 0, "max": 4, "q": 2}}}, "q goes with the distribution q_uniform"),
    ({"parameters": {"lr": {"values": []}}}, "lr: values must be a list of at least one"),
    ({"parameters": {"lr": {"values": "abc"}}}, "lr: values must be a list"),
    ({"parameters": {"lr": {"values": {"a": 1}}}}, "lr: values must be a list"),
    ({"parameters": {"lr": {"values": None}}}, "lr: values must be a list"),
    ({"parameters": {"lr": {"values": [1, 2, 1]}}}, "lr: the value 1 is listed twice"),
    ({"parameters": {"lr": {"values": [1, True]}}}, "lr: the value True is listed twice"),
    ({"parameters": {"lr": {"values": [0.5, float("nan")]}}}, "lr: the value nan is not a finite number"),
    ({"parameters": {"lr": {"values": [[float("inf")]]}}}, "lr: the value .* is not understood"),
    ({"parameters": {"lr": {"values": [1], "min": 1}}}, "lr: has values and something else"),
    ({"parameters": {"lr": {"values": [1], "value": 1}}}, "lr: has values and something else"),
    ({"parameters": {"--lr": {"values": [1]}}}, "'--lr' cannot be searched"),
    ({"parameters": {"": {"values": [1]}}}, "'' cannot be searched"),
    ({"parameters": {"out": {"values": ["x"]}}}, "'out' cannot be searched"),
    ({"method": 3}, "method: expected text"),
    ({"metric": "val/mvtec/mean/pixel_pro"}, "metric: expected a mapping"),
    ({"metric": {"name": 3}}, "metric.name: expected text"),
    ({"metric": {"name": "val/x", "goal": "best"}}, "goal minimize or maximize"),
    ({"command": "fit"}, "command: expected a list"),
    ({"command": ["${program}", {"fit": 1}, "${args}"]}, "command"),
    ({"command": ["${args}", "${args}", "${program}"]}, "not a sweep file"),
    ({"run_cap": 0}, "run_cap"),
    ({"run_cap": "ten"}, "run_cap: expected a whole number"),
    ({"name": "../elsewhere"}, "name '../elsewhere'"),
    ({"name": "a\x1b[31mb"}, "cannot name a folder"),
    ({"early_terminate": 3}, "early_terminate: expected a mapping"),
    ({"early_terminate": {"type": "hyperband"}}, "early_terminate must be"),
    ({"early_terminate": {"type": "hyperband", "min_iter": 0}}, "early_terminate must be"),
    ({"early_terminate": {"type": "hyperband", "min_iter": True}}, "early_terminate must be"),
    ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1}}, "early_terminate must be"),
    ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": "3"}}, "early_terminate must be"),
])  # fmt: skip
def test_parameters_that_cannot_be_searched_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = write_sweep(tmp_path / "sweep.yaml", **changes)
    with pytest.raises(UserError, match=message) as error:
        read_sweep(path)
    assert str(error.value).startswith(str(path))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PARAMETER = st.dictionaries(st.sampled_from(["min", "max", "q", "value", "values"]), JSON, max_size=4)


@hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(PARAMETER, st.sampled_from([None, "uniform", "int_uniform", "q_uniform", "log_uniform_values", 3]))
def test_a_parameter_becomes_a_distribution_that_can_be_drawn_from_or_one_error(
    parameter: dict[str, object], kind: object
) -> None:
    try:
        space = _distribution("here", {**parameter, **({"distribution": kind} if kind else {})})
    except UserError:
        return
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(0)).ask({"x": space}).params["x"]
    assert isinstance(drawn, (bool, int, float, str))


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe\0", b"[]", b"3", b"{a: " * 1000, b"[" * 100_000, b"a: 1\na: 2\n", b"!!python/name:os.system"],
    ids=["empty", "binary", "list", "number", "nested", "deep", "twice", "tag"],
)
def test_files_that_are_not_sweeps_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"sweep\.yaml"):
        read_sweep(path)


def test_a_grid_without_bounds_is_refused(tmp_path: Path) -> None:
    path = write_sweep(tmp_path / "s.yaml", method="grid", parameters={"a": {"min": 0, "max": 10**12}})
    with pytest.raises(UserError, match="10000 is the most"):
        read_sweep(path).grid()


@pytest.mark.parametrize("option", ["--trials=0", "--trials=x", "--jobs=-1", "--seed=-1", "--seed=x", "--sbatch='"])
def test_options_of_the_command_are_checked(tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        sweep_command([f"--config={write_sweep(tmp_path / 's.yaml')}", option])
    assert stop.value.code == 2
    assert option.partition("=")[0] in capsys.readouterr().err


def test_a_journal_that_a_kill_has_cut_is_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(write_sweep(tmp_path / "sweep.yaml"), str(tmp_path / "s"))
    first = plan.study().ask(plan.sweep.space)
    journal = tmp_path / "s/study.journal"
    whole = journal.read_bytes()
    plan.study().ask(plan.sweep.space)
    longer = journal.read_bytes()
    for length in (len(whole) + 1, len(whole) + 20, len(longer) - 1):  # within lines of the second trial
        journal.write_bytes(longer[:length])
        study = plan.study()
        assert study.trials[0].params == first.params
        assert journal.read_bytes().endswith(b"\n")
        number = study.ask(plan.sweep.space).number
        assert plan.study().trials[number].params.keys() == plan.sweep.space.keys()
    assert "the last line was cut off" in capsys.readouterr().out


def test_a_grid_whose_queueing_was_killed_is_completed(tmp_path: Path) -> None:
    parameters = {"a": {"values": [1, 2, 3]}, "b": {"min": 1, "max": 4}}
    path = write_sweep(tmp_path / "sweep.yaml", method="grid", parameters=parameters)
    plan = plan_of(path, str(tmp_path / "s"), trials=12)
    queue = optuna.Study.enqueue_trial
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna.Study, "enqueue_trial", lambda *args: interrupt_at(5, queue, *args))
        with pytest.raises(KeyboardInterrupt):
            plan.study()
    study = plan.study()
    assert [trial.system_attrs["fixed_params"] for trial in study.trials] == read_sweep(path).grid()
    assert len(plan.study().trials) == 12


def interrupt_at(count: int, queue: Callable[..., None], study: optuna.Study, parameters: dict[str, object]) -> None:
    if len(study.trials) == count:
        raise KeyboardInterrupt
    queue(study, parameters)


def test_a_trial_that_died_while_its_parameters_were_drawn_gets_the_rest(tmp_path: Path) -> None:
    plan = plan_of(write_sweep(tmp_path / "sweep.yaml"), str(tmp_path / "s"))
    study = plan.study()
    study.ask()  # the process is killed here
    claimed = claim(plan, plan.study())
    assert claimed is not None
    trial, lock = claimed
    with lock:
        assert trial.number == 0
        assert trial.params.keys() == plan.sweep.space.keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nonsense\n", "line 1: is not an entry of a study"),
        (b"\xff\xfe\n", "line 1: is not an entry of a study"),
        (b"[]\n", "line 1: is not an entry of a study"),
        (b'{"op_code":"x"}\n', "line 1: is not an entry of a study"),
        (b"[" * 100_000 + b"\n", "line 1: is not an entry of a study"),
        (b'{"op_code":4}\n', "no study can be read there"),
        (b'{"op_code":99,"worker_id":"a"}\n', "no study can be read there"),
    ],
)
def test_a_damaged_journal_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    plan = plan_of(write_sweep(tmp_path / "sweep.yaml"), str(tmp_path / "s"))
    plan.study()
    journal = tmp_path / "s/study.journal"
    journal.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        plan.study()
    assert "--out" in str(error.value)
    assert journal.read_bytes() == content


@pytest.mark.parametrize("name", ["study.journal", "study.db", "sqlite:///study.db"])
@pytest.mark.parametrize("taken", ["removed", "emptied", "exchanged"])
def test_a_study_that_is_taken_away_while_the_sweep_runs_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    job = Trials(plan_of(write_sweep(tmp_path / "sweep.yaml"), str(tmp_path / "s"), storage=name))
    unit = job.claim(())
    assert unit is not None
    assert job.begin(unit) == 1
    study = Path(name.removeprefix("sqlite:///"))
    content = study.read_bytes()
    if taken == "emptied":
        study.write_bytes(b"")
    elif taken == "removed":
        study.unlink()
    else:
        (tmp_path / "other").write_bytes(content)
        (tmp_path / "other").rename(study)
    after = study.read_bytes() if study.exists() else None
    for use in (
        job.left,
        lambda: job.claim(()),
        lambda: job.fail("0", "x"),
        lambda: job.end(unit, stopped=True),
        lambda: unit.content.report(0.5, 1),
        lambda: unit.content.set_user_attr("seconds", 1),
        pickle.loads(pickle.dumps(job)).left,  # in a worker that starts now
    ):
        with pytest.raises(
            UserError, match=r"study\.(journal|db): was removed or exchanged while the sweep ran\. Restore it"
        ):
            use()
    assert (study.read_bytes() if study.exists() else None) == after  # no new study


def test_what_is_known_of_a_trial_is_read_from_the_study(tmp_path: Path) -> None:
    plan = plan_of(write_sweep(tmp_path / "sweep.yaml"), str(tmp_path / "s"), trials=1)
    job = Trials(plan)
    for attempt in (1, 2):
        unit = job.claim(())
        assert unit is not None
        assert Trials(plan).begin(unit) == attempt  # by a launcher that has just been started
        job.end(unit, stopped=attempt == 2)
        unit.lock.release()
        assert unit.lock.attempts == 0  # else there would be two truths
    assert plan.study().trials[0].user_attrs == {"attempts": 1}
    Trials(plan).fail("0", "no memory left")
    Trials(plan).fail("0", "said twice")
    assert plan.study().trials[0].user_attrs["error"] == "no memory left"
    assert (Trials(plan).left(), Trials(plan).claim(())) == (0, None)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["x.db", "nonsense://x", "sqlite:////nowhere/x.db", "file"])
def test_a_storage_that_is_none_is_named(tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.db").write_bytes(b"no database" * 100)
    (tmp_path / "file").mkdir()
    plan = plan_of(write_sweep(tmp_path / "sweep.yaml"), str(tmp_path / "s"), storage=storage)
    with pytest.raises(UserError, match=storage):
        plan.study()
    with pytest.raises(UserError, match="cannot be used"):
        plan_of(write_sweep(tmp_path / "sweep.yaml"), str(tmp_path / "x.db")).study()


def test_trials_of_a_study_that_is_lost_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_sweep(tmp_path / "sweep.yaml")
    plan = plan_of(path, str(tmp_path / "s"))
    claimed = claim(plan, plan.study())
    assert claimed is not None
    claimed[1].release()
    (tmp_path / "s/sweep.csv").write_text("trial\n")
    (tmp_path / "s/study.journal").write_bytes(b"")
    assert sweep_command([f"--config={path}", "--trials=2", f"--out={tmp_path / 's'}"]) == 2
    assert "s/trials holds trials that" in capsys.readouterr().err
    assert (tmp_path / "s/sweep.csv").read_text() == "trial\n"

    # of a journal that lacks its last trial alone, as one from a backup does, the folder of that trial is kept
    plan = plan_of(path, str(tmp_path / "t"))
    plan.study()
    (tmp_path / "t/trials/0000/checkpoints").mkdir(parents=True)
    claimed = claim(plan, plan.study())
    assert claimed is not None
    claimed[1].release()
    assert [item.name for item in (tmp_path / "t/trials/0000").iterdir()] == ["lock"]
    assert (tmp_path / "t/trials/0000.earlier-1/checkpoints").is_dir()


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"model.temperature": {"values": [0.1]}, "model.tempo": {"values": [1]}}, "tempo"),
        ({"model.temperature": {"values": [0.1, "warm"]}}, "temperature=warm.*temperature"),
    ],
)
def test_unknown_options_of_fit_are_reported_before_a_trial_is_spent(
    tmp_path: Path, parameters: dict[str, object], message: str
) -> None:
    plan = plan_of(write_sweep(tmp_path / "sweep.yaml", parameters=parameters), str(tmp_path / "s"))
    with pytest.raises(UserError, match=f"(?s){message}"):
        check_arguments(plan)


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_options_that_fit_takes_pass(tmp_path: Path) -> None:
    check_arguments(plan_of(write_sweep(tmp_path / "sweep.yaml"), str(tmp_path / "s")))


def test_trials_that_another_process_has_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("afclip_lightning.cli.sweep.launch", lambda *anything: Ended())
    path = write_sweep(tmp_path / "sweep.yaml")
    assert sweep_command([f"--config={path}", "--trials=2", f"--out={tmp_path / 's'}"]) == STOPPED
    assert "2 trials are left" in capsys.readouterr().err


@pytest.mark.slow
def test_workers_end_when_the_sweep_is_killed(tmp_path: Path) -> None:
    script = f"""
import multiprocessing, os, threading, time
from pathlib import Path
from afclip_runtime.launch.worker import end_with_the_launcher
def worker():
    threading.Thread(target=end_with_the_launcher, args=(60,), daemon=True).start()
    Path({str(tmp_path / "pid.part")!r}).write_text(str(os.getpid()))
    os.rename({str(tmp_path / "pid.part")!r}, {str(tmp_path / "pid")!r})
    time.sleep(60)
if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=worker).start()
    time.sleep(60)
"""
    (tmp_path / "sweep.py").write_text(script)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "sweep.py")],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.DEVNULL,
        text=True,
    )
    wait_for("pid", tmp_path, process)
    worker = Path("/proc") / (tmp_path / "pid").read_text()
    process.kill()
    process.wait()
    for _ in range(300):
        if not worker.exists() or "zombie" in (worker / "status").read_text():
            return
        time.sleep(0.1)
    pytest.fail("it is still there")


def test_the_table_holds_no_formula(tmp_path: Path) -> None:
    choices = {"model.name": {"values": ["=1+2|3"]}}
    plan = plan_of(write_sweep(tmp_path / "sweep.yaml", parameters=choices), str(tmp_path / "s"))
    study = plan.study()
    study.tell(study.ask(plan.sweep.space), 0.0)
    text = write_table(plan, study)
    with (tmp_path / "s/sweep.csv").open() as file:
        [row] = csv.DictReader(file)
    assert row["model.name"] == "'=1+2|3"
    assert row["val/mvtec/mean/pixel_auroc"] == "0.0"
    assert r"| complete | 0 | =1+2\|3 |" in text
