"""`python -m afclip_lightning sweep`: a search over options of `fit`, from a Weights & Biases sweep file, with Optuna.

The study lies in a file or a database, and each worker takes its next trial from there: processes of this machine, or
of the tasks of a SLURM array. A worker that dies leaves its trial, and the lock of it, to the next one.
"""

import argparse
import csv
import fcntl
import gc
import io
import itertools
import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from afclip_lightning import preemption
from afclip_lightning.errors import UserError, message_of
from afclip_lightning.files import write_text
from afclip_lightning.preemption import STOPPED
from afclip_lightning.processes import output_to

DESCRIPTION = """\
Searches for the options of `fit` that a sweep file names, the same file that `wandb sweep` takes:

  python -m afclip_lightning sweep --config experiments/sweeps/afclip.yaml --trials 20

What is chosen by must be a metric of a validation, on a set that is not reported: val/<dataset>/mean/<metric>.
A stopped or killed sweep goes on with the same command, its trials where their last checkpoint was.
Options after -- are given to every trial.
"""
ATTEMPTS = 3  # a trial whose process has died so often has failed: it would take every worker with it
GRACE = 60  # seconds that workers have between two steps before they are killed
STOPS = (signal.SIGINT, *preemption.SIGNALS)
PARAMETER_KEYS = {"value", "values", "min", "max", "q", "distribution"}


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says.

    Attributes:
        name: Name of the study.
        arguments: Arguments of `python -m afclip_lightning` before those of the trial.
        space: What is searched, by the name of the option.
        method: `grid`, `random` or `bayes`.
        metric: What is optimised.
        direction: `maximize` or `minimize`.
        halving: Arguments of successive halving, or `None`: no trial is given up early.
        cap: Most trials, or `None`.
    """

    name: str
    arguments: list[str]
    space: dict[str, BaseDistribution]
    method: str
    metric: str
    direction: str
    halving: dict[str, int] | None
    cap: int | None

    def grid(self) -> list[dict[str, Any]]:
        """Returns all combinations.

        Raises:
            UserError: One of the parameters has no end of values.
        """
        axes: dict[str, Sequence[Any]] = {}
        for name, distribution in self.space.items():
            if isinstance(distribution, CategoricalDistribution):
                axes[name] = distribution.choices
            elif isinstance(distribution, IntDistribution):
                axes[name] = range(distribution.low, distribution.high + 1, distribution.step)
            else:
                raise UserError(f"{self.name}: a grid needs `values` for {name}.")
        return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Returns what draws one trial."""
        if self.method == "bayes":
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        return optuna.samplers.RandomSampler(seed)  # a grid's trials lie in the queue, and nothing of them is drawn

    def pruner(self) -> optuna.pruners.BasePruner:
        """Returns what gives trials up: asynchronous halving, which is what W&B calls `hyperband`."""
        return optuna.pruners.SuccessiveHalvingPruner(**self.halving) if self.halving else optuna.pruners.NopPruner()


def read_sweep(path: Path) -> Sweep:
    """Returns what a sweep file says.

    Raises:
        UserError: The file cannot be read, is not a sweep's, chooses by test results, or asks for something that has no
            counterpart here.
    """
    try:
        facts = yaml.safe_load(path.read_text(encoding="utf-8"))
        metric, command, parameters = facts["metric"]["name"], facts["command"], facts["parameters"]
        begin, end = command.index("${program}"), command.index("${args}")
        method, direction = facts["method"], facts["metric"].get("goal", "minimize")
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path}: not a sweep file ({message_of(error)}). It needs method, metric, parameters, and a command with "
            "${program} and ${args}; see experiments/sweeps/."
        ) from error
    if not metric.startswith("val/"):
        raise UserError(
            f"{path}: the metric is {metric}. Choosing by results that are reported would be cheating: name one of a "
            "validation, val/<dataset>/mean/<metric>, and give the sweep data whose test set is a validation set."
        )
    if method not in ("grid", "random", "bayes") or direction not in ("minimize", "maximize"):
        raise UserError(f"{path}: method must be grid, random or bayes and goal minimize or maximize.")
    if macros := [part for part in command[begin + 1 : end] if "${" in str(part)] + command[end + 1 :]:
        raise UserError(f"{path}: {macros[0]} in the command is not understood; ${{args}} must come last.")
    return Sweep(
        name=str(facts.get("name", path.stem)),
        arguments=[str(part) for part in command[begin + 1 : end]],
        space={name: _distribution(f"{path}: {name}", parameter) for name, parameter in parameters.items()},
        method=method,
        metric=metric,
        direction=direction,
        halving=_halving(path, facts["early_terminate"]) if "early_terminate" in facts else None,
        cap=facts.get("run_cap"),
    )


def _distribution(where: str, parameter: Mapping[str, Any]) -> BaseDistribution:
    """Returns Optuna's counterpart of a parameter of a sweep file."""
    if unknown := set(parameter) - PARAMETER_KEYS:
        raise UserError(f"{where}: {', '.join(sorted(unknown))} is not understood.")
    if "value" in parameter or "values" in parameter:
        values = parameter["values"] if "values" in parameter else [parameter["value"]]
        return CategoricalDistribution([v if isinstance(v, (bool, int, float, str)) else str(v) for v in values])
    low, high = parameter.get("min"), parameter.get("max")
    if isinstance(low, bool) or not isinstance(low, (int, float)) or not isinstance(high, (int, float)) or low > high:
        raise UserError(f"{where}: needs values, or numbers min and max; got {dict(parameter)} (YAML wants 1.0e-4).")
    whole = isinstance(low, int) and isinstance(high, int)
    kind = parameter.get("distribution", "int_uniform" if whole else "uniform")
    if kind == "int_uniform" and whole:
        return IntDistribution(int(low), int(high))
    if kind == "uniform":
        return FloatDistribution(low, high)
    if kind == "log_uniform_values" and low > 0:
        return FloatDistribution(low, high, log=True)
    if kind == "q_uniform":
        step = parameter.get("q", 1)
        if whole and isinstance(step, int):
            return IntDistribution(int(low), int(high), step=step)
        return FloatDistribution(low, high, step=step)
    raise UserError(
        f"{where}: the distribution {kind} of {low} to {high} has no counterpart; use values, uniform, int_uniform, "
        "q_uniform or log_uniform_values."
    )


def _halving(path: Path, early: Mapping[str, Any]) -> dict[str, int]:
    if (
        early.get("type") != "hyperband"
        or not isinstance(early.get("min_iter"), int)
        or set(early) - {"type", "min_iter", "eta"}
    ):
        raise UserError(f"{path}: early_terminate must be type: hyperband with min_iter, and eta if not 3.")
    return {"min_resource": early["min_iter"], "reduction_factor": early.get("eta", 3)}


@dataclass(frozen=True)
class Plan:
    """A sweep and where it lies; what a worker needs.

    Attributes:
        path: The sweep file.
        sweep: What it says.
        folder: Folder of the sweep: `trials/<number>/` is the run folder of each.
        storage: Database URL or file of the study.
        trials: How many trials there shall be.
        seed: Seed of the search.
        extra: Arguments of every trial, behind the sweep's own.
    """

    path: Path
    sweep: Sweep
    folder: Path
    storage: str
    trials: int
    seed: int
    extra: list[str]

    def study(self) -> optuna.Study:
        """Returns the study, a new one if there is none.

        Raises:
            UserError: Another sweep lies there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sweep = self.sweep
        with _locked(self.folder / "study.lock"):
            study = optuna.create_study(
                storage=_storage(self.storage),
                study_name=sweep.name,
                direction=sweep.direction,  # type: ignore[arg-type]  # checked when it was read
                pruner=sweep.pruner(),
                load_if_exists=True,
            )
            facts = [sweep.arguments, sweep.method, sweep.metric, sweep.direction, self.extra]
            identity = json.dumps([*facts, {name: repr(space) for name, space in sweep.space.items()}])
            if "identity" not in study.user_attrs:
                if sweep.method == "grid":
                    for parameters in sweep.grid():
                        study.enqueue_trial(parameters, skip_if_exists=True)
                study.set_user_attr("identity", identity)  # last: a killed beginning is completed by the next
            elif study.user_attrs["identity"] != identity:
                raise UserError(
                    f"{self.storage} holds another sweep named {sweep.name}. Give this one another `name` in "
                    f"{self.path}, or another --folder and --storage."
                )
        return study

    def run_dir(self, number: int) -> Path:
        """Returns the run folder of a trial."""
        return self.folder / "trials" / f"{number:04d}"

    def arguments(self, parameters: Mapping[str, Any]) -> list[str]:
        """Returns the arguments of a trial, without its folder. It logs to files, unless told otherwise."""
        options = {"trainer.logger": "true", **parameters}
        return [*self.sweep.arguments, *(f"--{name}={value}" for name, value in options.items()), *self.extra]


def _storage(place: str) -> BaseStorage:
    if "://" in place:
        return RDBStorage(place)
    if Path(place).suffix in (".db", ".sqlite", ".sqlite3"):
        return RDBStorage(f"sqlite:///{place}", engine_kwargs={"connect_args": {"timeout": 60}})
    return JournalStorage(JournalFileBackend(place))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _try_lock(path: Path) -> IO[str] | None:
    """Returns a locked file, or `None` while a living process has it; a lock ends with its process, on NFS too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def claim(plan: Plan, study: optuna.Study) -> tuple[optuna.Trial, IO[str]] | None:
    """Returns a trial to run and its lock: one that a process has left, or a new one; `None` if there is none.

    Taking up a trial where it was, instead of failing it and beginning another, keeps its number, its folder and its
    last checkpoint: a sweep that was interrupted ends as one that was not.
    """
    with _locked(plan.folder / "study.lock"):
        trials = study.get_trials(deepcopy=False)
        for left in trials:
            if left.state != TrialState.RUNNING:
                continue
            lock = _try_lock(plan.run_dir(left.number) / "lock")
            if lock is None:
                continue
            trial = optuna.Trial(study, left._trial_id)
            if left.user_attrs.get("attempts", 0) < ATTEMPTS:
                return trial, lock
            trial.set_user_attr("error", f"its process died {ATTEMPTS} times")
            study.tell(trial, state=TrialState.FAIL)
        begun = sum(trial.state != TrialState.WAITING for trial in trials)
        if begun >= plan.trials:
            return None
        study.sampler = plan.sweep.sampler(plan.seed + begun)  # one seed for all would give two workers the same trial
        trial = study.ask(plan.sweep.space)
        lock = _try_lock(plan.run_dir(trial.number) / "lock")
        assert lock is not None  # nobody else knows of it
        return trial, lock


def work(plan: Plan, index: int) -> None:
    """Runs trial after trial in a process of its own, until there is none left or a signal asks it to stop."""
    preemption.listen(*STOPS)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if len(devices) > 1:  # several were given: one a worker
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[index % len(devices)]
    try:
        study = plan.study()
        while not preemption.requested() and (claimed := claim(plan, study)):
            trial, lock = claimed
            with lock:
                run_trial(plan, study, trial)
            gc.collect()
    except UserError as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        sys.exit(2)
    if preemption.requested():
        preemption.requeue()
        sys.exit(STOPPED)


def run_trial(plan: Plan, study: optuna.Study, trial: optuna.Trial) -> None:
    """Runs one trial and tells the study what came out; tells it nothing if a signal stopped it, so that it goes on."""
    from afclip_lightning import cli
    from afclip_lightning.trial import TrialCLI, TrialReport

    folder = plan.run_dir(trial.number)
    attempts = trial.user_attrs.get("attempts", 0)
    trial.set_user_attr("attempts", attempts + 1)
    arguments = [*plan.arguments(trial.params), f"--run_dir={folder}"]
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if checkpoint.exists():
        arguments.append(f"--ckpt_path={checkpoint}")
    else:  # what a process left that died before its first checkpoint
        (folder / "config.yaml").unlink(missing_ok=True)
    start, error, state = time.monotonic(), "", TrialState.COMPLETE
    with output_to(folder / "output.log"):
        print(f"== trial {trial.number}: {shlex.join(arguments)}", flush=True)
        sys.argv[1:] = arguments  # what Lightning reads, and what a run folder records
        try:
            code = cli.main(None, partial(TrialCLI, report=TrialReport(trial, plan.sweep.metric)))
            if code == STOPPED:
                trial.set_user_attr("attempts", attempts)
                return
            error = f"exit code {code}" if code else ""
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except (Exception, SystemExit) as problem:  # one trial's; the others go on
            traceback.print_exc()
            error = f"{type(problem).__name__}: {problem}".splitlines()[0]
    trial.set_user_attr("seconds", round(trial.user_attrs.get("seconds", 0) + time.monotonic() - start, 1))
    reported = study.get_trials(deepcopy=False)[trial.number].intermediate_values
    if state == TrialState.COMPLETE and not error and not reported:
        error = f"{plan.sweep.metric} was never logged"
    if error:
        trial.set_user_attr("error", error)
        study.tell(trial, state=TrialState.FAIL)
        print(f"trial {trial.number} failed: {error}; see {folder / 'output.log'}", flush=True)
        return
    value = reported[max(reported)]
    study.tell(trial, value if state == TrialState.COMPLETE else None, state)
    print(f"trial {trial.number}: {value:.4f}{' given up' if state == TrialState.PRUNED else ''}", flush=True)


def run_local(plan: Plan, jobs: int) -> int:
    """Runs the trials in worker processes of this machine and returns an exit code.

    A worker that is killed is replaced, and what it had is taken up. Signals are handed on: workers stop between two
    steps.
    """
    preemption.listen(*STOPS)
    workers: list[BaseProcess | None] = [_start(plan, index) for index in range(jobs)]
    deadline = None
    stopped = failed = False
    while any(workers):
        wait([worker.sentinel for worker in workers if worker], timeout=0.5)
        if preemption.requested() and deadline is None:
            stopped, deadline = True, time.monotonic() + GRACE
            print(f"Stopping between two steps, at the latest in {GRACE} s.", file=sys.stderr, flush=True)
            for running in filter(None, workers):
                running.terminate()
        for index, worker in enumerate(workers):
            if worker is None or worker.is_alive():
                if worker and deadline is not None and time.monotonic() > deadline:
                    worker.kill()
                continue
            code = worker.exitcode or 0
            stopped |= code == STOPPED
            failed |= code > 0 and code != STOPPED
            killed = code < 0 and not stopped
            if killed:
                print(f"A worker was killed by {signal.Signals(-code).name}; another takes its place.", file=sys.stderr)
            workers[index] = _start(plan, index) if killed else None
    return 2 if failed else STOPPED if stopped else 0


def _start(plan: Plan, index: int) -> BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=work, args=(plan, index))
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # inherited: a signal waits until the worker listens
    process.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    return process


def run_slurm(plan: Plan, jobs: int, options: Sequence[str]) -> None:
    """Submits an array of workers and waits until they are done.

    Each is a local sweep with one worker on the same study. One that is preempted, or signalled a minute before its
    time limit, is put into the queue again.

    Raises:
        UserError: SLURM refuses.
    """
    logs = plan.folder / "slurm"
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "afclip_lightning", "sweep", f"--config={plan.path}", f"--folder={plan.folder}"]
    command += [f"--storage={plan.storage}", f"--trials={plan.trials}", f"--seed={plan.seed}", "--", *plan.extra]
    script = f"#!/bin/bash\nexec srun {shlex.join(command)}\n"
    flags = [f"--job-name={plan.sweep.name}", f"--array=1-{jobs}", "--requeue", f"--signal=USR1@{GRACE}"]
    flags += [f"--output={logs}/%A_%a.log", "--open-mode=append", *options]
    job = _slurm(["sbatch", "--parsable", *flags], script).split(";")[0].strip()
    print(f"SLURM array {job}, logs in {logs}. Ctrl-C ends the waiting only; scancel {job} ends the array.", flush=True)
    with suppress(KeyboardInterrupt):
        while job in _slurm(["squeue", "--noheader", "--me", "--format=%F"]).split():
            time.sleep(5)


def _slurm(command: Sequence[str], script: str | None = None) -> str:
    try:
        return subprocess.run(command, input=script, text=True, capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} is not there: --launcher slurm needs a SLURM cluster.") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"{command[0]}: {error.stderr.strip()}") from error


def write_table(plan: Plan, study: optuna.Study) -> str:
    """Writes `sweep.csv` and `sweep.md`, the best trial first, and returns the latter."""
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
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    write_text(plan.folder / "sweep.csv", buffer.getvalue())
    lines = [
        header,
        ["---"] * len(header),
        *([f"{v:.4g}" if isinstance(v, float) else str(v) for v in r] for r in rows),
    ]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    if trials and trials[0].state == TrialState.COMPLETE:
        best = shlex.join(["python", "-m", "afclip_lightning", *plan.arguments(trials[0].params)])
        text += f"\nBest, trial {trials[0].number} in {plan.run_dir(trials[0].number)}:\n\n    {best}\n"
    write_text(plan.folder / "sweep.md", text)
    return text


def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 1 trials failed, 2 a mistake, 75 stopped."""
    own = list(args[: args.index("--")]) if "--" in args else list(args)
    extra = list(args[len(own) + 1 :])
    options = _parser().parse_args(own)
    try:
        sweep = read_sweep(options.config)
        folder: Path = options.folder or Path("runs") / "sweeps" / sweep.name
        trials = options.trials or sweep.cap or (len(sweep.grid()) if sweep.method == "grid" else None)
        if trials is None:
            raise UserError("Say how many trials: --trials N, or run_cap in the file.")
        if sweep.method == "grid":
            trials = min(trials, len(sweep.grid()))
        storage = options.storage or str(folder / "study.journal")
        plan = Plan(options.config, sweep, folder, storage, trials, options.seed, extra)
        study = plan.study()
        open_trials = trials - sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
        code = 0
        if open_trials > 0:
            jobs = min(options.jobs, open_trials)
            if options.launcher == "local":
                code = run_local(plan, jobs)
            else:
                run_slurm(plan, jobs, shlex.split(options.sbatch))
        print(write_table(plan, study))
        failed = any(trial.state == TrialState.FAIL for trial in study.get_trials(deepcopy=False))
        return code or int(failed)
    except UserError as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m afclip_lightning sweep",
        usage="%(prog)s --config FILE [options] [-- OPTIONS OF EVERY TRIAL]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="sweep file as of Weights & Biases")
    parser.add_argument("--trials", type=_count, metavar="N", help="trials in all, those of earlier calls too; run_cap")
    parser.add_argument("--jobs", type=_count, default=1, metavar="N", help="trials at once; 1")
    parser.add_argument("--launcher", choices=["local", "slurm"], default="local", help="where workers run; local")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="runs and table; runs/sweeps/<name>")
    parser.add_argument("--storage", metavar="FILE_OR_URL", help="file or database of the study; DIR/study.journal")
    parser.add_argument("--seed", type=int, default=0, help="seed of the search; 0")
    parser.add_argument(
        "--sbatch", default="", metavar="OPTIONS", help="options for sbatch: '--time=2:00:00 --gres=gpu:1'"
    )
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number
