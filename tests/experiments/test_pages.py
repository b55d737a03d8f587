"""A part of a page is replaced in place, and a page without the part is rejected."""

import pytest

from experiments.pages import table_row, with_part

PAGE = "a\n<!-- costs: written by x.py -->\nold\n<!-- end of costs -->\nb\n"


def test_a_part_is_replaced_and_the_rest_stays() -> None:
    assert with_part(PAGE, "costs", "x.py", "new\n") == PAGE.replace("old", "new")


@pytest.mark.parametrize("page", ["a\nb\n", PAGE.replace("x.py", "y.py"), PAGE.replace("<!-- end of costs -->\n", "")])
def test_a_page_without_the_part_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match=r"no lines '<!-- costs: written by x.py -->' and '<!-- end of costs -->'"):
        with_part(page, "costs", "x.py", "new\n")


def test_empty_cells_take_one_space() -> None:
    assert table_row(["a", "", "b"]) == "| a | | b |"
