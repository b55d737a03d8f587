"""Methods in the same samples of the images: the samples, several seeds, ranks, and the possibly best methods."""

import csv
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from afclip_lightning.benchmark.comparison import FEWEST, compare, sampled
from afclip_lightning.benchmark.comparison_tables import explained, tables
from afclip_lightning.benchmark.matrix import Matrix, Method, Transfer
from afclip_lightning.benchmark.recorded import Group, on_the_same_images, read_recorded
from afclip_lightning.benchmark.render import NONE, latex, markdown, own_tables
from afclip_lightning.benchmark.table import Measurement, read_results
from afclip_lightning.benchmark.uncertainty import to_csv, uncertainties
from afclip_lightning.metrics.intervals import Settings, interval, intervals_of
from afclip_lightning.metrics.resampling import draws
from afclip_lightning.results import FIXED, MEAN
from tests.support.recorded_runs import write_recorded

PLACE = ("drawn", MEAN, "image_auroc")


def groups(*folders: Path | list[Path]) -> list[Group]:
    lists = [of if isinstance(of, list) else [of] for of in folders]
    return on_the_same_images([Group(of[0].name, tuple(map(read_recorded, of))) for of in lists])


def test_samples_are_those_of_images_drawn_by_hand(tmp_path: Path) -> None:
    first, second = (write_recorded(tmp_path / name, 1.0, seed=i) for i, name in enumerate("ab"))
    of = groups(first, second)
    methods, left_out = sampled(of, 100, seed=3)
    assert left_out == []
    for group, method in zip(of, methods, strict=True):
        for category in "ab":
            records = sorted(group.runs[0].records["drawn", category], key=lambda record: record.name)
            labels = np.array([record.label for record in records])
            scores = np.array([record.score for record in records])
            for number, weights in enumerate(draws(labels, 100, (3, "drawn", category))[:5]):
                at = np.repeat(np.arange(len(labels)), weights.astype(int))
                assert sorted(labels[at]) == sorted(labels)
                auroc = method.resampled["drawn", category, "image_auroc"].samples[number]
                assert auroc == pytest.approx(roc_auc_score(labels[at], scores[at]), abs=1e-12)
                ap = method.resampled["drawn", category, "image_ap"].samples[number]
                assert ap == pytest.approx(average_precision_score(labels[at], scores[at]), abs=1e-12)
        assert method.resampled[PLACE].samples == pytest.approx(
            (
                method.resampled["drawn", "a", "image_auroc"].samples
                + method.resampled["drawn", "b", "image_auroc"].samples
            )
            / 2
        )
    again, _ = sampled(groups(second, first), 100, seed=3)
    assert (again[1].resampled[PLACE].samples == methods[0].resampled[PLACE].samples).all()  # whichever comes first


def test_the_interval_of_a_value_is_that_of_the_runs_own_table(tmp_path: Path) -> None:
    of = groups(*(write_recorded(tmp_path / name, 1.0, seed=i, pixels=True) for i, name in enumerate("ab")))
    methods, _ = sampled(of, 200)
    for group, method in zip(of, methods, strict=True):
        own = intervals_of(group.runs[0].records, Settings(200)).by_row
        found = {place: interval(one) for place, one in method.resampled.items()}
        assert {place[2] for place in found} > {"image_auroc", "pixel_ap", "pixel_pro"}
        assert found == {place: own[place[:2]][place[2]] for place in found}


def test_samples_of_several_runs_have_the_variance_of_their_mean(tmp_path: Path) -> None:
    """Runs that separate the images perfectly, not at all and in reverse vary only between seeds."""
    runs = [write_recorded(tmp_path / f"{skill}", skill) for skill in (80.0, -80.0, 79.0, -79.0)]
    [many, _], _ = sampled(groups(runs, write_recorded(tmp_path / "other", 1.0)), 4000)
    values = many.values[PLACE]
    assert sorted(values) == [0, 0, 1, 1]
    assert many.resampled[PLACE].samples.mean() == pytest.approx(0.5, abs=0.02)
    assert many.resampled[PLACE].samples.var() == pytest.approx(np.var(values, ddof=1) / 4, rel=0.1)


def test_methods_are_ranked_over_categories(tmp_path: Path) -> None:
    many = {f"c{i}": (8, 8) for i in range(FEWEST)}
    folders = [write_recorded(tmp_path / f"{s}", s, seed=i, categories=many) for i, s in enumerate((0.3, 1.0, 2.5))]
    found = compare(groups(*folders), 100)
    [ranked] = [ranked for ranked in found.ranked if ranked.metric == "image_auroc"]
    assert (ranked.count, ranked.over, ranked.names) == (FEWEST, "categories", ("0.3", "1.0", "2.5"))
    assert ranked.ranking.ranks.argsort().tolist() == [2, 1, 0]
    [signed] = [s for s in found.signed if (s.metric, s.first, s.second) == ("image_auroc", "0.3", "2.5")]
    assert (signed.wins, signed.losses, signed.p_value) == (6, 0, pytest.approx(2 / 64))
    assert signed.corrected >= signed.p_value
    few = compare(groups(*(write_recorded(tmp_path / f"few{i}", 1.0, seed=i) for i in range(3))), 100)
    assert not few.signed
    assert not few.ranked


MATRIX = Matrix(
    methods={name: Method(configs=[]) for name in ("weak", "strong", "seeds")},
    datasets={"drawn": ""},
    transfers=[Transfer("other", ["drawn"])],
)


def cell(
    out: Path,
    method: str,
    skill: float,
    seed: int,
    pixels: bool = True,
    categories: dict[str, tuple[int, int]] | None = None,
) -> list[Measurement]:
    name = f"{method}_{seed}/drawn-0"
    folder = write_recorded(out / "cells" / name, skill, seed=seed, pixels=pixels, categories=categories)
    run = read_recorded(folder)
    metrics = run.metrics["drawn", "a"].keys()
    return [
        Measurement(
            name, method, "", "drawn", MEAN, 0, seed, metric, np.mean([m[metric] for m in run.metrics.values()]), "CLIP"
        )
        for metric in metrics
    ]


def test_a_benchmark_marks_what_may_be_the_best_where_runs_kept_their_images(tmp_path: Path) -> None:
    rows = [*cell(tmp_path, "weak", 0.2, 0), *cell(tmp_path, "strong", 2.5, 1)]
    rows += [row for seed in (2, 3, 4) for row in cell(tmp_path, "seeds", 2.4, seed)]
    found = uncertainties(rows, tmp_path / "cells")
    table, intervals = own_tables(rows, MATRIX, found)
    column = table.header.index("P-AP")
    assert {row for row, at in table.bold if at == column} <= {1, 2}
    text = markdown(table)
    assert "**" in text.splitlines()[4 + max(row for row, _ in table.bold)]
    assert "With 95 % confidence the truly best of a column is among them" in text
    document = latex([table, intervals])
    assert r"\textbf{" in document.partition(r"\toprule")[2]
    assert "sources of variation, images and seeds" in document
    assert [row[-1] for row in intervals.rows] == ["images", "images", "images and seeds"]
    assert [row[3] for row in intervals.rows] == ["1", "1", "3"]
    low, high = map(float, intervals.rows[2][column].strip("[]").split(","))
    assert low < float(table.rows[2][column].split()[0]) < high
    lines = list(csv.DictReader(to_csv(found).splitlines()))
    assert {line["may_be_best"] for line in lines if line["method"] == "weak"} == {"0"}
    assert {line["over"] for line in lines if line["method"] == "seeds"} == {"images and seeds"}


def test_without_kept_images_a_benchmarks_tables_are_as_they_were(tmp_path: Path) -> None:
    rows = [*cell(tmp_path, "weak", 0.2, 0, pixels=False), *cell(tmp_path, "strong", 2.5, 1, pixels=False)]
    assert uncertainties(rows, tmp_path / "cells") == {}
    [table] = own_tables(rows, MATRIX, {})
    assert not table.bold
    assert not table.below
    rows += cell(tmp_path, "seeds", 0.5, 2)
    table, intervals = own_tables(rows, MATRIX, uncertainties(rows, tmp_path / "cells"))
    assert not table.bold  # the highest number is of a run that kept nothing
    assert intervals.rows[1][4:] == (NONE,) * (len(intervals.header) - 6) + ("CLIP", NONE)
    assert intervals.rows[2][4].startswith("[")


def test_what_fixed_thresholds_give_has_tables_of_its_own(tmp_path: Path) -> None:
    rows = []
    for seed, (name, skill) in enumerate({"weak": 0.2, "strong": 2.5}.items()):
        folder = write_recorded(tmp_path / f"cells/{name}/drawn-0", skill, seed=seed, pixels=True, threshold=0.8)
        found = read_results(folder)
        assert {metric for category, metric, _ in found if category == MEAN} > set(FIXED)
        of_run = [(metric, value) for category, metric, value in found if category == MEAN]
        rows += [
            Measurement(f"{name}/drawn-0", name, "", "drawn", MEAN, 0, seed, metric, value, "CLIP")
            for metric, value in of_run
        ]
    table, _, fixed, intervals = own_tables(rows, MATRIX, uncertainties(rows, tmp_path / "cells"))
    assert not {"I-FPR", "P-F1 fixed"} & set(table.header)
    assert fixed.title == "At thresholds fixed without labels on drawn"
    assert fixed.header[4:-1] == tuple(FIXED.values())
    columns = {fixed.header[column] for _, column in fixed.bold}
    assert columns == {"I-BA", "I-F1 fixed", "P-BA", "P-F1 fixed"}  # of the rates one buys the other
    low, high = map(float, intervals.rows[1][fixed.header.index("P-F1 fixed")].strip("[]").split(","))
    assert low < float(fixed.rows[1][fixed.header.index("P-F1 fixed")]) < high
    assert own_tables(rows, MATRIX)[1].title == fixed.title


def test_comparisons_have_what_fixed_thresholds_give(tmp_path: Path) -> None:
    many = {f"c{i}": (8, 8) for i in range(FEWEST)}
    of = [
        write_recorded(tmp_path / name, skill, categories=many, pixels=True, threshold=0.8)
        for name, skill in (("weak", 0.5), ("strong", 2.5), ("same", 2.5))
    ]
    found = compare(groups(*of), 100)
    place = ("drawn", "c0", "pixel_fixed_f1")
    run, strong = read_recorded(of[1]), found.methods[1]
    again = intervals_of(run.records, Settings(100), thresholds=run.thresholds).by_row["drawn", "c0"]
    assert interval(strong.resampled[place]) == again["pixel_fixed_f1"]
    assert strong.value(place) == run.metrics["drawn", "c0"]["pixel_fixed_f1"]
    assert {row.metric for row in found.compared} > set(FIXED)
    assert (
        {"image_fixed_f1"}
        < {row.metric for row in found.ranked} & set(FIXED)
        == {name for name in FIXED if not name.endswith(("_fpr", "_tpr"))}
    )
    means, *_ = tables(found)
    assert {means.rows[row][0] for row, _ in means.bold}.isdisjoint({"I-FPR", "P-FPR", "I-TPR", "P-TPR"})
    said = "P-F1 fixed are at the thresholds that each run fixed without labels"
    assert said in "\n".join(explained(found))
    none = write_recorded(tmp_path / "none", 2.0, categories=many, pixels=True)
    assert not {row.metric for row in compare(groups(of[0], none), 100).compared} & set(FIXED)


def test_runs_of_other_images_have_no_intervals_and_that_is_said(tmp_path: Path) -> None:
    rows = [*cell(tmp_path, "weak", 0.2, 0), *cell(tmp_path, "strong", 2.5, 1)]
    folder = tmp_path / "cells/strong_1/drawn-0"
    other = write_recorded(tmp_path / "other", 1.0, categories={"a": (9, 9), "b": (9, 9)}, pixels=True)
    for name in ("image_counts.npz", "results.json"):
        (folder / name).write_bytes((other / name).read_bytes())
    [table] = own_tables(rows, MATRIX, uncertainties(rows, tmp_path / "cells"))
    assert "No intervals: " in table.below[0]
    assert "are not runs on the same images" in markdown(table)


def test_too_few_images_have_no_intervals_and_that_is_said(tmp_path: Path) -> None:
    few = {"a": (4, 9), "b": (9, 9)}
    rows = [row for i, name in enumerate(("weak", "strong")) for row in cell(tmp_path, name, 1.0, i, categories=few)]
    [table] = own_tables(rows, MATRIX, uncertainties(rows, tmp_path / "cells"))
    assert not table.bold
    assert table.below[0].startswith("drawn/a is left out, and so is its dataset's mean, in I-AUROC")
