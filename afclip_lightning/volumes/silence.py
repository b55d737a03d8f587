"""Keeps libraries from quoting headers in their messages, because headers may name a person."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from afclip_runtime.errors import DatasetError, UserError

LOGGERS = ("pydicom", "nibabel.global")  # loggers that repeat the warnings


@contextmanager
def silenced(path: object, kind: str) -> Iterator[None]:
    """Turns any error of a library into one error without its text, and suppresses its warnings.

    Args:
        path: Name of the file in the error.
        kind: Kind of the file in the error.

    Raises:
        DatasetError: The library failed. The message names only the file and the class of the error.
    """
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [logger.disabled for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.disabled = True
            yield
    except UserError:
        raise
    except Exception as error:
        raise DatasetError(
            f"{path}: cannot be read as {kind} ({type(error).__name__}): it is damaged, or of a kind that is not read "
            "here. Export it again."
        ) from None
    finally:
        for logger, state in zip(loggers, before, strict=True):
            logger.disabled = state
