"""The trials of a sweep as units of work of the launcher. All facts of a trial are read from the study."""

import contextlib
import io
import sys
from collections.abc import Collection
from functools import cached_property
from typing import Any

import optuna
from optuna.trial import TrialState

from afclip_lightning.sweep.study import ATTEMPTS, LOG, Plan, claim, run_trial, trial_of
from afclip_lightning.sweep.study_file import StudyFile
from afclip_runtime.errors import UserError
from afclip_runtime.launch import Job, Outcome, Unit


class Trials(Job):
    """Trials of a study. Each is a run of `fit` in its own folder.

    Args:
        plan: The sweep with its folder and storage.
        time_limit: Time limit of a trial in one process, in seconds.
    """

    attempts = ATTEMPTS
    noun = "trial"

    def __init__(self, plan: Plan, time_limit: float | None = None) -> None:
        self.plan = plan
        self.time_limit = time_limit
        self.file = StudyFile(plan.storage)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "study"}

    @cached_property
    def study(self) -> optuna.Study:
        """The study, opened by this process."""
        return self.plan.study(self.file)

    def left(self) -> int:
        """Returns the number of unfinished trials, including those that have not begun."""
        with self.plan.reading():
            trials = self.study.get_trials(deepcopy=False)
        return self.plan.trials - sum(trial.state.is_finished() for trial in trials)

    def start(self) -> None:
        """Checks, once per study, that `fit` accepts the sweep's options.

        Raises:
            UserError: `fit` does not accept an option.
        """
        with self.plan.reading():
            checked = self.study.user_attrs.get("checked")
        if not checked:
            check_arguments(self.plan)
            with self.plan.reading():
                self.study.set_user_attr("checked", True)

    def claim(self, skip: Collection[str]) -> Unit | None:
        """Returns an abandoned trial, or a new one; see `claim`."""
        with self.plan.reading():
            claimed = claim(self.plan, self.study, skip)
        if claimed is None:
            return None
        trial, lock = claimed
        return Unit(str(trial.number), lock, trial, self.plan.run_folder(trial.number) / LOG)

    def begin(self, unit: Unit) -> int:
        """Counts the attempt in the study."""
        return self._count(unit, 1)

    def end(self, unit: Unit, stopped: bool) -> None:
        """Subtracts an attempt that a signal stopped. The attempts of a finished trial stay as they are."""
        if stopped:
            self._count(unit, -1)

    def _count(self, unit: Unit, more: int) -> int:
        with self.plan.reading():
            trial = trial_of(self.study, int(unit.name))
            attempts = int(trial.user_attrs.get("attempts", 0)) + more
            trial.set_user_attr("attempts", attempts)
            return attempts

    def run(self, unit: Unit) -> Outcome:
        """Runs a trial."""
        return run_trial(self.plan, self.study, unit.content)

    def fail(self, name: str, error: str) -> None:
        """Reports the failure of a trial to the study, unless it is already reported."""
        with self.plan.reading():
            if not self.study.get_trials(deepcopy=False)[int(name)].state.is_finished():
                trial = trial_of(self.study, int(name))
                trial.set_user_attr("error", error)
                self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)


def check_arguments(plan: Plan) -> None:
    """Checks, before any trial runs, that `fit` accepts the sweep's options and each value of its choices.

    Raises:
        UserError: `fit` does not accept an option. The message is that of the command line.
    """
    from afclip_lightning.engine import app

    for parameters in plan.sweep.examples():
        sys.argv[1:] = [*plan.arguments(parameters), "--print_config"]
        said = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            try:
                code = app.main()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 0
        if code:
            values = ", ".join(f"{name}={value}" for name, value in parameters.items())
            raise UserError(f"{plan.path}: with {values}: {said.getvalue().strip().removeprefix('error: ')}")
