"""The table of the methods' costs has the measured rows, and no method is missing."""

import pytest

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.engine.factory import methods
from experiments.methods import benchmark, table


def test_the_page_has_the_table_of_the_measured_rows() -> None:
    page = table.PAGE.read_text(encoding="utf-8")
    assert table.in_page(page) == page, "run python -m experiments.methods.table"


def test_every_entry_of_the_script_has_a_row() -> None:
    assert table.read().keys() == benchmark.METHODS.keys()


@pytest.mark.slow
def test_every_method_of_the_package_has_a_row_or_a_reason() -> None:
    backbone = ClipBackbone("ViT-B-16", "random", image_size=None)
    measured = {type(build(backbone)).__name__ for build in benchmark.METHODS.values()}
    assert measured.isdisjoint(benchmark.WITHOUT_COST)
    assert measured | benchmark.WITHOUT_COST.keys() == methods().keys()
