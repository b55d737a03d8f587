"""The table of presets in the docs equals the presets, and operations are counted."""

import pytest

from afclip_lightning.backbones.presets import PRESETS
from experiments.backbones import cost, table


def test_the_page_has_the_table_of_the_presets() -> None:
    page = table.PAGE.read_text(encoding="utf-8")
    assert table.in_page(page) == page, "run python -m experiments.backbones.table"
    assert all(f"| `{name}` |" in page for name in PRESETS)


def test_measured_rows_are_of_presets_that_there_are() -> None:
    rows = cost.read()
    assert rows.keys() <= {preset.model for preset in PRESETS.values()}
    for row in rows.values():
        assert not row["ratio"] or float(row["lowest"]) <= float(row["ratio"]) <= float(row["highest"])


@pytest.mark.parametrize("name", ["laion-b-plus", "dinov2-s-focus", "dinov3-s", "mobileclip2-b"])
def test_operations_are_counted_as_the_file_says(name: str) -> None:
    preset = PRESETS[name]
    assert cost.count_gflops(preset) == pytest.approx(float(cost.read()[preset.model]["gflops"]), abs=0.05)


def test_operations_of_a_plain_tower_are_those_of_the_formula() -> None:
    """12 blocks of width 896 over 225 + 1 tokens: 24 N C^2 + 4 N^2 C per block, plus patches and projection."""
    tokens, width, depth = 226, 896, 12
    blocks = depth * (24 * tokens * width**2 + 4 * tokens**2 * width)
    outside = 2 * 225 * 3 * 16 * 16 * width + 2 * width * 640
    assert cost.count_gflops(PRESETS["laion-b-plus"]) == pytest.approx((blocks + outside) / 1e9, rel=1e-3)
