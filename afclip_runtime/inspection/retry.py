"""Pauses between attempts."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds; the pause doubles with each failure


def pause_after(failures: int) -> float:
    """Returns the pause in seconds after a number of consecutive failures.

    Args:
        failures: Number of failures, at least 1.
    """
    return min(FIRST_PAUSE * 2 ** min(failures - 1, 20), LONGEST_PAUSE)
