"""Progress of work on other machines, which do not report to the launcher: finished units are counted on disk."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from afclip_runtime.errors import UserError
from afclip_runtime.launch.job import Job
from afclip_runtime.progress import progress_of

EVERY = 10.0  # seconds between two counts
SHARE = 20  # a count takes at most this part of the time, for it reads the state of all units


@contextmanager
def progress_elsewhere(job: Job) -> Iterator[Callable[[], None]]:
    """Shows the progress of a job while the body waits. Yields a function to call often: it counts when it is time.

    Args:
        job: The job.
    """
    left = job.left()
    due = time.monotonic() + EVERY
    with progress_of(total=left, unit=f"{job.noun}s") as bar:

        def count() -> None:
            nonlocal left, due
            begin = time.monotonic()
            if begin < due:
                return
            before = left
            with suppress(UserError, OSError):  # the command reports it when the work has ended
                left = job.left()
            bar.update(before - left)
            now = time.monotonic()
            due = now + max(EVERY, SHARE * (now - begin))

        yield count
