"""The tables of the comparison are those of the measured rows, in the groups that the methods name."""

from pathlib import Path

import pytest

from afclip_lightning.benchmark.matrix import load_matrix
from experiments.comparison import fusion, tables


def test_the_page_has_the_tables_of_the_measured_rows() -> None:
    page = tables.PAGE.read_text(encoding="utf-8")
    assert tables.in_page(page) == page, "run python -m experiments.comparison.tables"


@pytest.mark.parametrize(
    ("method", "shots", "group"),
    [
        ("Patch rarity", 0, 0),
        ("SubspaceAD", 1, 1),
        ("SubspaceAD batched", 0, 2),
        ("APRIL-GAN", 0, 0),
        ("APRIL-GAN", 4, 2),  # scales its scores over the test images then
        ("Dual-Image", 0, 2),
        ("MuSc", 0, 2),
    ],
)
def test_a_method_stands_in_the_group_of_what_it_looks_at(method: str, shots: int, group: int) -> None:
    matrix = load_matrix([tables.HERE / "demo.yaml"])
    assert tables.group_of(method, matrix.methods[method], shots) == group


@pytest.mark.parametrize(("shots", "measured"), [(0, "1.17"), (1, ""), (4, "")])
def test_what_few_shot_images_cost_is_not_taken_from_other_numbers_of_them(shots: int, measured: str) -> None:
    costs = {
        "AdaptCLIP": {"trainable_parameters": "1099458", "test_8": "1.17"},
        "SubspaceAD, 1 shot": {"test_8": "1.00"},
    }
    assert tables.cost_of("AdaptCLIP", shots, costs)[2:3] == [measured]
    assert tables.cost_of("SubspaceAD", shots, costs)[2:3] == ["1.00" if shots == 1 else ""]


def test_means_of_a_benchmark_are_kept_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "HERE", tmp_path)
    rows = ["metal,image_auroc,0.5", "mean,image_auroc,0.25", "mean,pixel_pro,0.125"]
    lines = [
        f"CLIP,synthetic,{category},0,3,{metric},{value}" for category, metric, value in (r.split(",") for r in rows)
    ]
    source = tmp_path / "results.csv"
    source.write_text("\n".join(["method,dataset,category,shots,seed,metric,value", *lines, ""]))
    tables.keep(source, "demo")
    kept = (tmp_path / "demo.csv").read_text().splitlines()
    assert kept == [
        "method,dataset,shots,seed,image_auroc,image_ap,image_f1_max,pixel_ap,pixel_auroc,pixel_f1_max,pixel_pro,"
        "pixel_pro_05,pixel_aupimo",
        "CLIP,synthetic,0,3,0.2500000,,,,,,0.1250000,,",
    ]


def test_a_fusion_stands_beside_the_member_with_the_highest_mean() -> None:
    column = ("set", "image_auroc")
    values = {"UniADet": [50.0, 52.0, 54.0], "PatchLogit": [10.0, 20.0, 99.0], "Patch rarity": [51.0]}
    rows = {name: {column: numbers} for name, numbers in {**values, fusion.NAME: [54.0, 55.0, 59.0]}.items()}
    assert fusion.render(rows, [column]).splitlines()[2:] == [
        "| set: I-AUROC | 52.0 | 43.0 | 51.0 | 56.0 | UniADet | +4.0 [1.5, 6.5] |"
    ]


def test_a_member_that_has_no_seed_is_the_same_for_all_seeds() -> None:
    column = ("set", "image_auroc")
    values = {"UniADet": [50.0, 52.0], "PatchLogit": [10.0, 20.0], "Patch rarity": [60.0], fusion.NAME: [59.0, 61.0]}
    text = fusion.render({name: {column: numbers} for name, numbers in values.items()}, [column])
    assert text.endswith("| Patch rarity | +0.0 [-12.7, 12.7] |\n")
    assert not fusion.render({name: {column: [1.0]} for name in fusion.MEMBERS}, [column])


def test_seeds_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {column: [50.0] for column in (("synthetic", metric) for metric in tables.SHOWN["demo"]["synthetic"])}
    lines = [tables.Line(0, name, shots, True, planned, values) for name, shots, planned in [("A", 0, 1), ("B", 4, 3)]]
    monkeypatch.setattr(tables, "lines_of", lambda setting: lines)
    assert tables.render("demo").endswith("\nWith fewer seeds than the matrix has for them: B (1 of 3).\n")
