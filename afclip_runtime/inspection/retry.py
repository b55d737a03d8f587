"""How long to wait before what failed is tried again."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds; doubled from one failure to the next


def pause_after(failures: int) -> float:
    """Returns the pause after so many failures in a row, in seconds.

    Args:
        failures: At least 1.
    """
    return min(FIRST_PAUSE * 2 ** min(failures - 1, 20), LONGEST_PAUSE)
