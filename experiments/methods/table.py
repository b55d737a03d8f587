"""The table "Cost of a method" in docs/performance.md, from `cost.csv`, which `benchmark.py` writes.

python -m experiments.methods.table    # writes it into the page
"""

from collections.abc import Mapping
from pathlib import Path

from afclip_runtime.files import write_text
from afclip_runtime.files.tables import csv_text, read_rows
from experiments.pages import table_row, with_part

COSTS = Path(__file__).with_name("cost.csv")
PAGE = Path(__file__).parents[2] / "docs/performance.md"
COLUMNS = {
    "trainable_parameters": "trainable parameters",
    "gflops": "GFLOP per test image",
    "test_1": "test, batch 1",
    "step_1": "step, batch 1",
    "test_8": "test, batch 8",
    "step_8": "step, batch 8",
    "over_singles": "8 at once / one by one",
}
KEPT = ("method", *COLUMNS, "note")


def read() -> dict[str, dict[str, str]]:
    """Returns the rows by method; times are ratios to the backbone's pass; unknown values are empty."""
    return {row["method"]: row for _, row in read_rows(COSTS)}


def update(measured: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Puts the measurements of `benchmark.py` into the file, by batch size and method; rows of other methods stay."""
    rows = read()
    for batch, of_batch in measured.items():
        for method, values in of_batch.items():
            row = rows.setdefault(method, dict.fromkeys(KEPT, ""))
            row |= {"method": method, "trainable_parameters": str(int(values["parameters"]))}
            row |= {"gflops": f"{values['gflops']:.1f}"}
            row |= {f"{what}_{batch}": f"{values[what]:.2f}" for what in ("test", "step") if what in values}
            if "over_single" in values:
                row["over_singles"] = f"{values['over_single']:.2f}"
    write_text(COSTS, csv_text(KEPT, ([row[column] for column in KEPT] for row in rows.values())))


def render() -> str:
    """Returns the table as Markdown, with notes on rows below it."""
    lines = [f"| | {' | '.join(COLUMNS.values())} |", "|---|" + "---:|" * len(COLUMNS)]
    rows = read()
    for method, row in rows.items():
        cells = [row[column] for column in COLUMNS]
        cells[0] = f"{int(cells[0]):,}"
        lines.append(table_row([method, *cells]))
    notes = [f"- {method}: {row['note']}." for method, row in rows.items() if row["note"]]
    return "\n".join([*lines, "", *notes]) + "\n"


def in_page(page: str) -> str:
    """Returns the page with the table in its place."""
    return with_part(page, "costs", "experiments/methods/table.py", render())


if __name__ == "__main__":
    write_text(PAGE, in_page(PAGE.read_text(encoding="utf-8")))
