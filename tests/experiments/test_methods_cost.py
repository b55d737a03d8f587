"""The table of what methods cost is that of the measured rows."""

from experiments.methods import table


def test_the_readme_has_the_table_of_the_measured_rows() -> None:
    page = table.PAGE.read_text(encoding="utf-8")
    assert table.in_page(page) == page, "run python -m experiments.methods.table"
