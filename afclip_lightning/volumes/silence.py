"""Libraries that read headers, kept from quoting them: what they quote may name a person."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from afclip_runtime.errors import DatasetError, UserError

LOGGERS = ("pydicom", "nibabel.global")  # which repeat what they warn of


@contextmanager
def silenced(path: object, kind: str) -> Iterator[None]:
    """Makes one error without a quotation of whatever a library runs into, and keeps its warnings from being shown.

    Args:
        path: What the error calls the file.
        kind: Of the file, as the error calls it.

    Raises:
        DatasetError: Names the file, and the class of the error alone.
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
            "here. Export it anew."
        ) from None
    finally:
        for logger, state in zip(loggers, before, strict=True):
            logger.disabled = state
