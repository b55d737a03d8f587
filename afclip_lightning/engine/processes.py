"""The other processes of a run: the time limit for their answers, and the error when one of them is lost."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed

from afclip_lightning.distributed import gathered
from afclip_lightning.engine.resume import how_to_go_on
from afclip_runtime.errors import CheckpointError, TrainingError

PATIENCE = timedelta(minutes=10)  # longest time between two exchanges, such as for the results of a large test
OF_GLOO = ("/gloo/", "Application timeout caused pair closure")  # its errors have no class of their own


def limit_waiting(trainer: Trainer, strategy: object) -> None:
    """Ends a run if a process does not answer for `PATIENCE`. By default torch waits three times as long.

    The preparation of data may take any time, because no exchange waits for it.

    Args:
        trainer: The trainer.
        strategy: The user's option. If it is a class, its own `timeout` holds.
    """
    if isinstance(strategy, str) and isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._timeout = PATIENCE


@contextmanager
def lost_process_told(path: Path | None) -> Iterator[None]:
    """Turns torch's errors for a process that has ended or does not answer into one that says how to go on.

    Args:
        path: The last checkpoint, if the command keeps one.

    Raises:
        TrainingError: A process of this run has ended or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, distributed.DistError) or any(mark in str(error) for mark in OF_GLOO)):
            raise
        reason = (
            re.sub(r"^\[\S*gloo\S*\] ", "", str(error)).partition("\n")[0].partition(". This is")[0].removesuffix(".")
        )
        raise TrainingError(
            f"Another process of this run has ended, or has not answered in time ({reason}). If a machine was lost, "
            f"replace it; else the output of that process says why. {how_to_go_on(path)}"
        ) from error


def check_same_start(path: str | Path | None, trainer: Trainer) -> None:
    """Checks that all processes start training at the same step.

    Args:
        path: The checkpoint from which this process resumes.
        trainer: The trainer, at the start of training.

    Raises:
        CheckpointError: A process has not seen the checkpoint from which others resume.
    """
    steps = gathered(trainer.global_step)
    if len(set(steps)) > 1:
        raise CheckpointError(
            f"The processes of this run begin at different steps ({', '.join(map(str, steps))}, by rank): not all of "
            f"them see the same {path}. The shared file system lags: start the same command again."
        )
