"""Errors that a user can mend: shown as one message without a traceback, with exit code 2."""


class UserError(Exception):
    """Something outside the code is wrong (a path, a file); the message says what, where and what to do."""


class DatasetError(UserError):
    """A dataset is absent, incomplete or damaged; the message names the file or folder."""


class UnpairedError(DatasetError):
    """Images without masks or masks without images.

    Attributes:
        problems: One sentence a file.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        more = f"\n{len(problems) - 1} more files are unpaired; the command `datasets check` lists them."
        super().__init__(problems[0] + (more if len(problems) > 1 else ""))


class WeightsError(UserError):
    """Backbone weights cannot be had or do not fit; the message names the local-file way."""


class CheckpointError(UserError):
    """A checkpoint cannot be written, read or does not fit the model; the message names the difference."""


class TrainingError(UserError):
    """Training cannot go on (a loss that is not finite); the message names the step and the images."""


def message_of(error: BaseException) -> str:
    """Returns the message alone: a loader process wraps it in its own traceback."""
    return str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()
