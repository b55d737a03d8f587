"""One run of `fit` as a trial of a study."""

import math
from typing import Any

import optuna
from lightning import Callback, LightningModule, Trainer

from afclip_lightning.engine.app import AnomalyCLI
from afclip_runtime.errors import UserError


class TrialReport(Callback):
    """Reports a metric after each validation. The last value is the value of the trial.

    Args:
        trial: The trial.
        metric: Key under which the metric is logged.
    """

    def __init__(self, trial: optuna.Trial, metric: str) -> None:
        self.trial = trial
        self.metric = metric

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports the metric under the number of epochs trained, counted from 1.

        Raises:
            UserError: No such metric was logged, or it is not a number.
            TrialPruned: The study stops the trial early.
        """
        if trainer.sanity_checking:
            return
        logged = trainer.callback_metrics
        if self.metric not in logged:
            means = ", ".join(sorted(key for key in logged if key.startswith("val/") and "/mean/" in key))
            raise UserError(f"The sweep's metric {self.metric} is not logged. Logged are: {means or 'none of val/'}.")
        value = logged[self.metric].item()
        if not math.isfinite(value):
            raise UserError(f"The sweep's metric {self.metric} is {value}, by which nothing can be chosen.")
        self.trial.report(value, trainer.current_epoch + 1)
        if self.trial.should_prune():
            raise optuna.TrialPruned


class TrialCLI(AnomalyCLI):
    """`fit` that reports to a study.

    Args:
        args: Arguments of `fit`.
        report: Callback that reports.
    """

    def __init__(self, args: list[str] | None, report: TrialReport) -> None:
        self.report = report
        super().__init__(args)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer with the report.

        Raises:
            UserError: The trainer has several processes; only one of them would know the trial.
        """
        trainer = super().instantiate_trainer(**kwargs)
        if trainer.world_size > 1:
            raise UserError(f"A trial runs on one device, got {trainer.world_size}. Run several at once: --jobs.")
        trainer.callbacks.append(self.report)  # type: ignore[attr-defined]
        return trainer
