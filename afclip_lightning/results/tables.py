"""Aligned tables in Markdown."""

from collections.abc import Sequence

from afclip_runtime.errors import shown


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of an aligned Markdown table.

    The first line is the header, and the first two columns are names.
    """
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]

    def text(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if i < 2 else ":") for i, w in enumerate(widths)) + "|"
    return [text(lines[0]), rule, *(text(line) for line in lines[1:])]


def name_cell(name: str) -> str:
    """Returns a name for a table cell: printable, and with escaped bars."""
    return shown(name).replace("|", "\\|")
