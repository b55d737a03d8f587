"""Notes on masks."""

from pathlib import Path

from afclip_runtime.errors import shown


def say_mostly(where: str, count: int, first: Path) -> str:
    """Returns a note on masks that mark more than half of their picture."""
    masks = "1 mask marks" if count == 1 else f"{count} masks mark"
    return (
        f"{shown(where)}: {masks} more than half of the picture, the first is {shown(first)}. If normal and anomalous "
        "are swapped in the file, write it again. If the defects are that large, nothing is wrong."
    )
