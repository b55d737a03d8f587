"""The study of a sweep, its trials and its table.

The study is in a file or a database, from which each worker takes its next trial. It holds all facts of a trial: its
parameters, values, attempts, seconds and error. If a worker dies, its lock is released, and the next worker continues
its trial.
"""

import itertools
import json
import shlex
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event

from afclip_lightning.sweep.journal import open_journal
from afclip_lightning.sweep.space import Sweep
from afclip_lightning.sweep.study_file import StudyFile
from afclip_runtime.errors import UserError, shown
from afclip_runtime.files import Lock, csv_text, take_lock, wait_for_lock, write_text
from afclip_runtime.launch import Outcome
from afclip_runtime.launch.output import check_exit_code
from afclip_runtime.launch.signals import StoppedError

LOG = "output.log"
SQLITE_WAIT = 60.0  # seconds to wait while another process writes
ATTEMPTS = 3  # a trial whose process has died this often has failed: it could kill every worker


@dataclass(frozen=True)
class Plan:
    """A sweep with its folder and storage; everything that a worker needs.

    Attributes:
        path: The sweep file.
        sweep: Content of the sweep file.
        folder: Folder of the sweep. The run folder of a trial is `trials/<number>/`.
        storage: Database URL or file of the study.
        trials: Number of trials.
        seed: Seed of the search.
        extra: Arguments of every trial, after those of the sweep.
    """

    path: Path
    sweep: Sweep
    folder: Path
    storage: str
    trials: int
    seed: int
    extra: list[str]

    def study(self, file: StudyFile | None = None) -> optuna.Study:
        """Returns the study, a new one if there is none.

        Args:
            file: Watches the file of the study. In a worker it knows the file that the launcher has opened.

        Raises:
            UserError: The storage holds another sweep or is not a readable study, or the folder has trials of a lost
                study.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self.reading():
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.lock():
                return self._study(file or StudyFile(self.storage))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turns the errors of Optuna and its databases for a damaged or missing study into one.

        Raises:
            UserError: The study is damaged or missing.
        """
        try:
            yield
        except (UserError, StoppedError):
            raise
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be used ({error.strerror or error}). Choose another --out."
            ) from error
        except Exception as error:  # their errors have many classes
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise UserError(
                f"{self.storage}: no study can be read there ({reason}). Restore it, or start again with another "
                "--out and --storage."
            ) from error

    def lock(self) -> Lock:
        """Waits for the lock under which the study is opened and trials are claimed, and returns it.

        Raises:
            UserError: Another process holds it for minutes. The message names the process.
        """
        return wait_for_lock(self.folder / "study.lock")

    def _study(self, file: StudyFile) -> optuna.Study:
        sweep = self.sweep
        study = optuna.create_study(
            storage=_storage(file),
            study_name=sweep.name,
            direction=sweep.direction,  # type: ignore[arg-type]  # checked when it was read
            pruner=sweep.pruner(),
            load_if_exists=True,
        )
        facts = [sweep.arguments, sweep.method, sweep.metric, sweep.direction, self.extra]
        identity = json.dumps([*facts, {name: repr(space) for name, space in sweep.space.items()}])
        if "identity" not in study.user_attrs:
            if any((self.folder / "trials").glob("*")):  # they would be resumed as trials of this study, and fail
                raise UserError(
                    f"{self.folder / 'trials'} holds trials that {self.storage} does not know. Restore the study "
                    "that they belong to, or choose another --out."
                )
            if sweep.method == "grid":
                for parameters in sweep.grid()[len(study.get_trials(deepcopy=False)) :]:
                    study.enqueue_trial(parameters)
            study.set_user_attr("identity", identity)  # last: after a kill, the next process completes it
        elif study.user_attrs["identity"] != identity:
            raise UserError(
                f"{self.storage} holds another sweep named {sweep.name}. Give this one another `name` in {self.path} "
                "and another --out."
            )
        return study

    def run_folder(self, number: int) -> Path:
        """Returns the run folder of a trial."""
        return self.folder / "trials" / f"{number:04d}"

    def arguments(self, parameters: Mapping[str, Any]) -> list[str]:
        """Returns the arguments of a trial, without its folder. It logs to files by default."""
        options = {"trainer.logger": "true", **parameters}
        return [*self.sweep.arguments, *(f"--{name}={value}" for name, value in options.items()), *self.extra]


def _storage(file: StudyFile) -> BaseStorage:
    file.check(whole=False)
    if file.url is None:
        assert file.path is not None
        return JournalStorage(open_journal(file.path, file))
    waits = {"connect_args": {"timeout": SQLITE_WAIT}} if file.is_sqlite else {}
    storage = RDBStorage(file.url, engine_kwargs=waits)
    for name in ("do_connect", "begin"):  # SQLite itself would make a new file, or keep using a removed one
        event.listen(storage.engine, name, lambda *_: file.check())
    file.check()
    return storage


def trial_of(study: optuna.Study, number: int) -> optuna.Trial:
    """Returns a trial of the study, to be continued."""
    return optuna.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def claim(plan: Plan, study: optuna.Study, skip: Collection[str] = ()) -> tuple[optuna.Trial, Lock] | None:
    """Returns a trial to run and its lock: an abandoned trial, or a new one; `None` if there is none.

    An abandoned trial is resumed instead of failed: it keeps its number, its folder and its last checkpoint. So an
    interrupted sweep gives the same result as an uninterrupted one.

    Args:
        plan: The sweep.
        study: The study of the sweep.
        skip: Numbers of trials that are not resumed.
    """
    with plan.lock():
        trials = study.get_trials(deepcopy=False)
        for left in trials:
            if left.state != TrialState.RUNNING or str(left.number) in skip:
                continue
            lock = take_lock(plan.run_folder(left.number) / "lock")
            if lock is None:
                continue
            trial = optuna.Trial(study, left._trial_id)
            if left.user_attrs.get("attempts", 0) < ATTEMPTS:
                _complete(trial, plan.sweep)
                return trial, lock
            trial.set_user_attr("error", f"its process died {ATTEMPTS} times")
            study.tell(trial, state=TrialState.FAIL)
            lock.release()
        begun = sum(trial.state != TrialState.WAITING for trial in trials)
        if begun >= plan.trials:
            return None
        study.sampler = plan.sweep.sampler(plan.seed + begun)  # with one seed, two workers would draw the same trial
        trial = study.ask(plan.sweep.space)
        _clear(plan.run_folder(trial.number))
        lock = take_lock(plan.run_folder(trial.number) / "lock")
        assert lock is not None  # no other process knows this trial
        return trial, lock


def _complete(trial: optuna.Trial, sweep: Sweep) -> None:
    """Draws the missing parameters of a trial whose process died while drawing them."""
    for name, space in sweep.space.items():
        if name in trial.params:
            continue
        if isinstance(space, CategoricalDistribution):
            trial.suggest_categorical(name, space.choices)
        elif isinstance(space, IntDistribution):
            trial.suggest_int(name, space.low, space.high, step=space.step, log=space.log)
        elif isinstance(space, FloatDistribution):
            trial.suggest_float(name, space.low, space.high, step=space.step, log=space.log)


def _clear(folder: Path) -> None:
    """Renames the existing folder of a new trial: it holds a trial that the study has lost."""
    if folder.exists():
        earlier = (folder.with_name(f"{folder.name}.earlier-{number}") for number in itertools.count(1))
        kept = next(path for path in earlier if not path.exists())
        folder.rename(kept)
        print(f"{folder} held a trial that the study does not know: it is now {kept.name}.", flush=True)


def run_trial(plan: Plan, study: optuna.Study, trial: optuna.Trial) -> Outcome:
    """Runs one trial and reports its result to the study. The caller redirects the output to the trial's log.

    Raises:
        StoppedError: A signal stopped the trial. Nothing is reported, so that the trial can be resumed.
        UserError: The trial failed.
    """
    from afclip_lightning.engine import app
    from afclip_lightning.sweep.trial import TrialCLI, TrialReport

    folder = plan.run_folder(trial.number)
    log = folder / LOG
    before = log.stat().st_size if log.exists() else 0
    arguments = [*plan.arguments(trial.params), f"--out={folder}"]
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if checkpoint.exists():
        arguments.append(f"--checkpoint={checkpoint}")
    else:  # files of a process that died before its first checkpoint
        (folder / "config.yaml").unlink(missing_ok=True)
    print(f"== trial {trial.number}: {shlex.join(arguments)}", flush=True)
    sys.argv[1:] = arguments  # Lightning reads it, and a run folder records it
    start, state = time.monotonic(), TrialState.COMPLETE
    try:
        code = app.main(None, partial(TrialCLI, report=TrialReport(trial, plan.sweep.metric)))
        check_exit_code(code, log, before)
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    finally:
        trial.set_user_attr("seconds", round(trial.user_attrs.get("seconds", 0) + time.monotonic() - start, 1))
    reported = study.get_trials(deepcopy=False)[trial.number].intermediate_values
    if not reported:
        raise UserError(
            f"{plan.sweep.metric} was never logged: `fit` validates on the sets in `test` of the data, and only with "
            "--trainer.limit_val_batches 1.0"
        )
    study.tell(trial, reported[max(reported)] if state == TrialState.COMPLETE else None, state)
    return Outcome()


def told(plan: Plan, study: optuna.Study, number: int, outcome: Outcome) -> str:
    """Returns one line on the outcome of a trial."""
    if outcome.status == "failed":
        return f"trial {number} failed: {outcome.error}; see {plan.run_folder(number) / LOG}"
    if outcome.status == "stopped":
        return f"trial {number} was stopped; the same command goes on with it"
    trial = study.get_trials(deepcopy=False)[number]
    value = trial.intermediate_values[max(trial.intermediate_values)]
    return f"trial {number}: {value:.4f}{' pruned' if trial.state == TrialState.PRUNED else ''}"


def write_table(plan: Plan, study: optuna.Study) -> str:
    """Writes `sweep.csv` and `sweep.md`, the best trial first, and returns the text of `sweep.md`."""
    order = {TrialState.COMPLETE: 0, TrialState.PRUNED: 1}
    sign = -1 if plan.sweep.direction == "maximize" else 1

    def rank(trial: FrozenTrial) -> tuple[int, float, int]:
        return order.get(trial.state, 2), sign * (trial.value or 0.0), trial.number

    trials = sorted((t for t in study.get_trials() if t.state != TrialState.WAITING), key=rank)
    header = ["trial", "state", plan.sweep.metric, *plan.sweep.space, "epochs", "seconds", "error"]
    rows = [
        [
            trial.number,
            trial.state.name.lower(),
            "" if trial.value is None else trial.value,
            *(trial.params.get(name, "") for name in plan.sweep.space),
            max(trial.intermediate_values, default=0),
            trial.user_attrs.get("seconds", ""),
            trial.user_attrs.get("error", ""),
        ]
        for trial in trials
    ]
    write_text(plan.folder / "sweep.csv", csv_text(header, rows))
    lines = [
        header,
        ["---"] * len(header),
        *([f"{v:.4g}" if isinstance(v, float) else shown(v).replace("|", "\\|") for v in r] for r in rows),
    ]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    if trials and trials[0].state == TrialState.COMPLETE:
        best = shlex.join(["python", "-m", "afclip_lightning", *plan.arguments(trials[0].params)])
        text += f"\nBest, trial {trials[0].number} in {plan.run_folder(trials[0].number)}:\n\n    {best}\n"
    write_text(plan.folder / "sweep.md", text)
    return text
