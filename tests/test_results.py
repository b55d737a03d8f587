"""The table: absent values, numbers of categories in means, and possible errors by binning."""

import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from afclip_lightning.metrics import Result
from afclip_lightning.results import (
    MaskCounts,
    Row,
    aggregate,
    columns_of,
    render,
    to_csv,
    to_json,
    with_intervals,
    with_means,
    write,
)
from afclip_runtime.files import read_json

A = Result(
    {"image_auroc": 0.75, "pixel_auroc": 0.5, "pixel_ap": 0.25}, {"pixel_ap": 3e-4}, {"pixel_f1_max": 0.125}, 2, 3
)
B = Result({"pixel_auroc": 1.0, "pixel_ap": 0.75}, {"pixel_ap": 2e-5}, {}, 0, 4)
ROWS = with_means([A.row("visa", "candle"), B.row("visa", "capsules"), B.row("btad", "01")])

INTERVALS = {
    ("visa", "candle"): {"image_auroc": (0.512, 0.875), "pixel_f1_max": (0.125, 0.875)},
    ("visa", "mean"): {"image_auroc": (0.6, 0.8)},
}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_what_is_absent_is_neither_zero_nor_in_the_mean() -> None:
    lines = render(ROWS, tolerance=1.0).splitlines()
    assert len(lines) == 2 + 5
    assert cells(lines[3]) == ["visa", "capsules", "0", "4", "n/a", "n/a", "n/a", "75.0", "100.0", "n/a", "n/a"]
    assert cells(lines[4]) == ["visa", "mean of 2", "2", "7", "75.0 (1)", "n/a", "n/a", "50.0", "75.0", "n/a", "n/a"]
    assert cells(lines[6])[1] == "mean of 1"
    assert to_csv(ROWS).splitlines()[2:4] == [
        "visa,capsules,0,4,,,,0.75,1.0,,,,",
        "visa,mean,2,7,0.75,,,0.5,0.75,,,,",
    ]
    rows = to_json(ROWS, "title")["rows"]
    assert rows[2]["metrics"] == {"image_auroc": 0.75, "pixel_auroc": 0.75, "pixel_ap": 0.5}
    assert rows[2]["categories"] == {"image_auroc": 1, "pixel_auroc": 2, "pixel_ap": 2}
    assert rows[0]["error_bounds"] == {"pixel_ap": 3e-4}
    assert rows[0]["thresholds"] == {"pixel_f1_max": 0.125}


def test_a_file_has_the_columns_that_a_terminal_has_no_room_for(tmp_path: Path) -> None:
    row = replace(ROWS[0], metrics={"pixel_pro": 0.5, "pixel_pro_05": 0.25})
    write([row], tmp_path, "results", "Title")
    header, _, line = (tmp_path / "results.md").read_text().splitlines()[2:5]
    assert (cells(header)[-2:], cells(line)[-2:]) == (["P-PRO", "P-PRO@5%"], ["50.0", "25.0"])
    assert cells(render([row]).splitlines()[0])[-1] == "P-PRO"
    assert columns_of([row]) == [*columns_of(ROWS), "pixel_pro_05"]


def test_a_bound_over_the_tolerance_stands_below_the_table(tmp_path: Path) -> None:
    notes = render(ROWS).splitlines()[7:]
    assert notes == [
        "",
        "Binning may have moved these by more than 0.01 (exact evaluation sorts instead):",
        "",
        "- visa/candle: P-AP by up to 0.03",
    ]
    assert render(ROWS, tolerance=1e-5).splitlines()[10:] == [
        "- visa/candle: P-AP by up to 0.03",
        "- visa/capsules: P-AP by up to 0.002",
        "- btad/01: P-AP by up to 0.002",
    ]
    write(ROWS, tmp_path, "results", "Title", tolerance=1.0)
    assert (tmp_path / "results.md").read_text() == f"Title\n\n{render(ROWS, 1.0)}\n"


def test_names_from_outside_do_not_break_the_table() -> None:
    counts = MaskCounts(3, 1, 5, 2)
    row = A.row("a|b", "\x1b[31m\udcff", counts)
    table = render(with_means([row]))
    assert "| a\\|b    | \\x1b[31m\\xff " in table
    assert r"- a|b/\x1b[31m\xff: 1 of 3 masks is empty, 5 regions became 2" in table
    table.encode()


def test_changes_of_masks_by_resizing_are_reported() -> None:
    kept = B.row("visa", "candle", MaskCounts(4, 0, 100, 96))
    assert "Resized" not in render(with_means([kept]))
    broken = B.row("visa", "fryum", MaskCounts(4, 0, 51, 135, 1))
    table = render(with_means([kept, broken]))
    assert "- visa/fryum: 51 regions became 135" in table
    assert "candle:" not in table
    rows = to_json(with_means([kept, broken]), "title", {"k_shot": 4})
    assert rows["conditions"] == {"k_shot": 4}
    assert rows["rows"][2]["masks"] == asdict(MaskCounts(8, 0, 151, 231, 1))
    assert "masks" not in to_json(ROWS, "title")["rows"][0]


def test_aggregate_says_over_how_many() -> None:
    mean, number = aggregate({"a": {"image_auroc": 0.5, "pixel_pro": 0.25}, "b": {"image_auroc": 1.0}, "c": {}})
    assert mean == {"image_auroc": 0.75, "pixel_pro": 0.25}
    assert number == {"image_auroc": 2, "pixel_pro": 1}
    assert aggregate({}) == ({}, {})


def test_intervals_stand_below_the_table_and_in_columns_of_their_own() -> None:
    rows = with_intervals(ROWS, INTERVALS)
    assert [row.intervals for row in rows] == [INTERVALS["visa", "candle"], {}, INTERVALS["visa", "mean"], {}, {}]
    assert render(rows, 1.0).splitlines()[:7] == render(ROWS, 1.0).splitlines()
    title, _, header, _, candle, capsules, mean, _, of_btad = render(rows, 1.0).splitlines()[8:]
    assert title == "95 % intervals, by resampling the images:"
    assert cells(header) == [*cells(render(ROWS).splitlines()[0])[:2], *cells(render(ROWS).splitlines()[0])[4:]]
    assert cells(candle) == ["visa", "candle", "51.2 to 87.5", *["–"] * 4, "12.5 to 87.5", "–"]
    assert cells(mean)[:3] == ["visa", "mean", "60.0 to 80.0"]
    assert cells(capsules)[2:] == cells(of_btad)[2:] == ["–"] * 7
    lines = to_csv(rows).splitlines()
    assert (
        lines[0]
        == f"{to_csv(ROWS).splitlines()[0]},image_auroc_low,image_auroc_high,pixel_f1_max_low,pixel_f1_max_high"
    )
    assert lines[1] == f"{to_csv(ROWS).splitlines()[1]},0.512,0.875,0.125,0.875"
    assert lines[2] == f"{to_csv(ROWS).splitlines()[2]},,,,"
    entries = to_json(rows, "title")["rows"]
    assert entries[2]["intervals"] == {"image_auroc": [0.6, 0.8]}
    assert "intervals" not in entries[1]


@dataclass
class Table:
    title: str
    rows: list[Row]


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = with_means([A.row("visa", "candle", MaskCounts(4, 1, 100, 96, 2)), B.row("visa", "capsules")])
    write(rows, tmp_path, "results", "Title")
    assert read_json(tmp_path / "results.json", Table) == Table("Title", rows)
    write(with_intervals(rows, INTERVALS), tmp_path, "results", "Title")
    assert read_json(tmp_path / "results.json", Table) == Table("Title", with_intervals(rows, INTERVALS))


def test_whoever_reads_a_table_needs_no_torch() -> None:
    code = "import sys, afclip_lightning.results, afclip_lightning.cli.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_interval_of_zero_length_is_not_a_certainty() -> None:
    said = "after n images without an error, up to 3 in n other images may have one"
    assert said not in render(with_intervals(ROWS, INTERVALS))
    point = {("visa", "candle"): {"image_auroc": (1.0, 1.0)}}
    assert render(with_intervals(ROWS, point), 1.0).splitlines()[-1].endswith(f"{said}.")
    assert said not in render(with_intervals(ROWS, {("visa", "candle"): {"pixel_aupimo": (0.0, 0.0)}}))  # not shown
