"""Tables that a script writes into a page, between two comments that name it."""

from collections.abc import Iterable


def table_row(cells: Iterable[str]) -> str:
    """Returns a row of a Markdown table; an empty cell takes one space."""
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"


def with_part(page: str, name: str, script: str, text: str) -> str:
    """Returns the page with the part of this name, written by this script, in its place.

    Args:
        page: The page, with the comments that begin and end the part.
        name: Name of the part in the comments.
        script: Path of the script from the repository's root.
        text: The new part; it ends a line.

    Raises:
        ValueError: The page has no such part.
    """
    begin, end = f"<!-- {name}: written by {script} -->\n", f"<!-- end of {name} -->\n"
    before, begins, rest = page.partition(begin)
    _, ends, behind = rest.partition(end)
    if not begins or not ends:
        raise ValueError(f"the page has no lines {begin.strip()!r} and {end.strip()!r}, in this order")
    return before + begin + text + end + behind
