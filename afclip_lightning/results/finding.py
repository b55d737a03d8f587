"""Finds the table of a test run."""

from pathlib import Path

from afclip_runtime.errors import UserError


def find_table(path: Path) -> tuple[Path, str]:
    """Returns the table of a test run, and the suffix after `results`, `scores` or `curves` in its file names.

    Args:
        path: The run folder, or one of its tables, `results_x.json`.

    Raises:
        UserError: The folder has no table.
    """
    table = path if path.is_file() else path / "results.json"
    if path.is_file() and path.suffix != ".json":
        raise UserError(f"{path} is not a table, results.json, of a test run. Name the folder that has the table.")
    if not table.is_file():
        raise UserError(
            f"{path}: no results.json, so it is not the folder of a test run. Name the folder that `fit` or `test` "
            "printed, runs/<config>/<time>."
        )
    return table, table.stem.removeprefix("results")
