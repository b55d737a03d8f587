"""The published numbers are complete, well formed, and agree with every total that their sources print."""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

import pytest

from afclip_lightning.datasets.catalogue import catalogue
from afclip_lightning.metrics.pro import DEFINITIONS

FOLDER = Path(__file__).parents[2] / "experiments/published"
PAPERS = ("afclip", "faprompt", "dual_image", "kanoclip")
RESULT_COLUMNS = [
    "method",
    "dataset",
    "category",
    "shots",
    "level",
    "metric",
    "value",
    "std",
    "source",
    "pro_definition",
    "note",
]
ABLATION_COLUMNS = ["paper", "table", "variant", "dataset", "level", "metric", "value", "std", "note"]
METRICS = {"image": {"auroc", "ap", "f1_max"}, "pixel": {"auroc", "ap", "f1_max", "pro"}}

# FAPrompt's Tables 3 to 5 average over these; MVTec AD, for which another checkpoint is tested, is left out.
INDUSTRIAL = ("visa", "btad", "aitex", "dagm", "dtd", "elpv", "sdd", "mpdd")
MEDICAL = ("brainmri", "headct", "lag", "br35h", "colondb", "clinicdb", "kvasir", "endo", "isic", "tn3k")
WHOLE_METHODS = {
    "Baseline": "AnomalyCLIP",
    "AnomalyCLIP": "AnomalyCLIP",
    "CoCoOp, image prior": "CoCoOp",
    "FAPrompt": "FAPrompt",
    "FAPrompt, patch prior, both ticks": "FAPrompt",
}

Row = dict[str, str]


def read(name: str) -> list[Row]:
    with (FOLDER / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


RESULTS = {name: read(name) for name in (*PAPERS, "released_logs")}
ABLATIONS = read("ablations")
PRINTED = [row for name in PAPERS for row in RESULTS[name]]


def half_unit(printed: str) -> float:
    """Returns the possible rounding error of a printed number; `100` and `65` are `100.0` and `65.0` without zeros."""
    return 0.5 * 10.0 ** -max(len(printed.partition(".")[2]), 1)


def agrees(printed: str, computed: float, cells: Iterable[str]) -> bool:
    return abs(float(printed) - computed) <= half_unit(printed) + max(map(half_unit, cells)) + 1e-9


def lookup(name: str, method: str, dataset: str, level: str, metric: str) -> Row:
    """Returns the zero-shot number, from the first table that has it."""
    wanted = (method, dataset, "", "0", level, metric)
    keys = ("method", "dataset", "category", "shots", "level", "metric")
    return next(row for row in RESULTS[name] if tuple(row[key] for key in keys) == wanted)


@pytest.mark.parametrize("name", RESULTS)
def test_rows_are_well_formed(name: str) -> None:
    known = {dataset.name: set(dataset.published_counts) for dataset in catalogue()}
    for row in RESULTS[name]:
        assert list(row) == RESULT_COLUMNS
        assert all(text == text.strip() for text in row.values())
        assert row["method"]
        assert row["source"]
        assert row["dataset"] in known, row
        assert row["category"] in known[row["dataset"]] | {""}, row
        assert row["shots"] in {"0", "1", "2", "4", "8", "16", "full"}, row
        assert row["metric"] in METRICS[row["level"]], row
        assert 0 <= float(row["value"]) <= 100, row
        assert not row["std"] or 0 <= float(row["std"]) < 10, row
        assert row["pro_definition"] in ((*DEFINITIONS, "") if row["metric"] == "pro" else ("",)), row


def test_ablation_rows_are_well_formed() -> None:
    for row in ABLATIONS:
        assert list(row) == ABLATION_COLUMNS
        assert row["dataset"] in ({"industrial", "medical"} if row["paper"] == "FAPrompt" else {"mvtec", "visa"}), row
        assert row["metric"] in METRICS[row["level"]], row
        assert 0 <= float(row["value"]) <= 100, row


def test_no_number_is_there_twice() -> None:
    for rows, columns in (
        *((rows, ("method", "dataset", "category", "shots", "level", "metric", "source")) for rows in RESULTS.values()),
        (ABLATIONS, ("paper", "table", "variant", "dataset", "level", "metric")),
    ):
        twice = [key for key, count in Counter(tuple(row[c] for c in columns) for row in rows).items() if count > 1]
        assert twice == []


def test_every_table_has_all_its_cells() -> None:
    counts = Counter(row["source"].removesuffix(" (quoted)") for row in PRINTED)
    assert counts == {
        "AF-CLIP, Table 1": 16 * 6 * 2,
        "AF-CLIP, Table 2": 6 * 8 + 3 * (6 * 8 - 4),  # AnomalyGPT has four dashes a setting
        "AF-CLIP, Table 3": 12 * 2 - 2,  # DiffNet and InCTRL have no pixel level
        "FAPrompt, Table 1": 13 * 11 * 2,
        "FAPrompt, Table 2": 14 * 11 * 2,
        "Dual-Image, Table 1": 6 * 12,
        "KAnoCLIP, Table 1": 7 * 12,
        "KAnoCLIP, Table 2": 7 * (12 - 3),
    }
    assert Counter((row["paper"], row["table"]) for row in ABLATIONS) == {
        ("AF-CLIP", "4"): 5 * 8,
        ("AF-CLIP", "5"): 4 * 4,
        ("AF-CLIP", "6"): 2 * 4,
        ("FAPrompt", "3"): 6 * 8,
        ("FAPrompt", "4"): 4 * 8,
        ("FAPrompt", "5"): 6 * 8,
        ("Dual-Image", "3"): 6,
        ("KAnoCLIP", "3"): 5 * 4,
    }


def test_deviations_are_where_they_are_printed() -> None:
    for row in (row for rows in RESULTS.values() for row in rows):
        printed = row["source"].startswith("AF-CLIP, Table 2") and row["method"] != "IIPAD"
        assert bool(row["std"]) == printed, row
    for row in ABLATIONS:
        assert bool(row["std"]) == (row["paper"] == "Dual-Image"), row


def test_own_numbers_are_not_marked_as_quoted() -> None:
    own = {"AF-CLIP": {"AF-CLIP", "AF-CLIP+"}, "FAPrompt": {"FAPrompt"}, "KAnoCLIP": {"KAnoCLIP"}}
    own["Dual-Image"] = {"Dual-Image", "Dual-Image+"}
    for row in PRINTED:
        paper = row["source"].partition(",")[0]
        assert row["source"].endswith(" (quoted)") == (row["method"] not in own[paper]), row


def test_means_over_categories_are_those_of_the_logs() -> None:
    groups: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for row in RESULTS["released_logs"]:
        key = tuple(row[c] for c in ("source", "method", "dataset", "shots", "level", "metric"))
        groups[key][row["category"]] = row["value"]
    per_category = {key: cells for key, cells in groups.items() if len(cells) > 1}
    assert len(per_category) == 2 * 3 + 2 * 4 + 2 * 7  # AF-CLIP, AnomalyCLIP and a WinCLIP, each on two datasets
    sizes = {dataset.name: len(dataset.published_counts) for dataset in catalogue()}
    for key, cells in per_category.items():
        printed = cells.pop("")
        assert len(cells) == sizes[key[2]]
        assert agrees(printed, mean(map(float, cells.values())), cells.values()), key


def test_averages_of_faprompt_are_those_of_its_cells() -> None:
    contradictions = {}
    for row in ABLATIONS:
        if row["paper"] != "FAPrompt" or row["variant"] not in WHOLE_METHODS:
            continue
        method = WHOLE_METHODS[row["variant"]]
        sets = INDUSTRIAL if row["dataset"] == "industrial" else MEDICAL
        cells = [
            cell["value"]
            for cell in RESULTS["faprompt"]
            if (cell["method"], cell["level"], cell["metric"]) == (method, row["level"], row["metric"])
            and cell["dataset"] in sets
        ]
        assert (
            len(cells)
            == {"industrial": {"image": 8, "pixel": 7}, "medical": {"image": 4, "pixel": 6}}[row["dataset"]][
                row["level"]
            ]
        )
        computed = mean(map(float, cells))
        if not agrees(row["value"], computed, cells):
            contradictions[method, row["dataset"], row["level"], row["metric"]] = (row["value"], round(computed, 2))
    assert contradictions == {
        ("AnomalyCLIP", "medical", "image", "auroc"): ("87.7", 88.15),  # Tables 3 and 5, against Table 1
        ("AnomalyCLIP", "medical", "image", "ap"): ("90.6", 90.85),
        ("CoCoOp", "industrial", "pixel", "auroc"): ("85.5", 85.31),  # Table 4, against Table 2
        ("CoCoOp", "industrial", "pixel", "pro"): ("80.9", 77.66),
    }


def test_how_the_pixel_averages_of_cocoop_came_about() -> None:
    """They include MVTec AD, and the PRO leaves out AITEX, which is printed as `56,9`."""
    for metric, left_out, printed in (("auroc", set(), "85.5"), ("pro", {"aitex"}, "80.9")):
        cells = [
            row["value"]
            for row in RESULTS["faprompt"]
            if (row["method"], row["level"], row["metric"]) == ("CoCoOp", "pixel", metric)
            and row["dataset"] in {"mvtec", *INDUSTRIAL} - left_out
        ]
        assert agrees(printed, mean(map(float, cells)), cells)


def test_largest_gains_are_those_in_faprompts_text() -> None:
    printed = {
        ("industrial", "image", "auroc"): "3.9",
        ("industrial", "image", "ap"): "3.0",
        ("medical", "image", "auroc"): "2.3",
        ("medical", "image", "ap"): "1.3",
        ("industrial", "pixel", "auroc"): "1.4",
        ("industrial", "pixel", "pro"): "4.0",  # the text says AP; Table 2 has PRO
        ("medical", "pixel", "auroc"): "3.2",
        ("medical", "pixel", "pro"): "4.2",
    }
    contradictions = {}
    for (domain, level, metric), gain in printed.items():
        by_dataset: dict[str, dict[str, float]] = defaultdict(dict)
        for row in RESULTS["faprompt"]:
            if (row["level"], row["metric"]) == (level, metric) and (row["dataset"] in MEDICAL) == (
                domain == "medical"
            ):
                by_dataset[row["dataset"]][row["method"]] = float(row["value"])
        found = max(cells.pop("FAPrompt") - max(cells.values()) for cells in by_dataset.values())
        if round(found, 1) != float(gain):
            contradictions[domain, level, metric] = (gain, round(found, 1))
    # Over AnomalyCLIP it is 4.2, on TN3K; AnoVL's 50.5 there is the best of the others.
    assert contradictions == {("medical", "pixel", "pro"): ("4.2", 4.1)}


@pytest.mark.parametrize(
    ("name", "better", "worse", "dataset", "level", "gain"),
    [
        ("afclip", "AF-CLIP", "AdaCLIP", "visa", "image", 2.2),
        ("afclip", "AF-CLIP", "AdaCLIP", "btad", "image", 1.9),
        ("afclip", "AF-CLIP", "AdaCLIP", "dtd", "image", 0.9),
        ("afclip", "AF-CLIP", "AnomalyCLIP", "mvtec", "pixel", 1.2),
        ("afclip", "AF-CLIP", "AnomalyCLIP", "dagm", "pixel", 1.5),
        ("afclip", "AF-CLIP", "AnomalyCLIP", "dtd", "pixel", 0.7),
        ("kanoclip", "KAnoCLIP", "AnomalyCLIP", "mvtec", "pixel", 3.2),
        ("kanoclip", "KAnoCLIP", "AnomalyCLIP", "visa", "pixel", 2.2),
        ("kanoclip", "KAnoCLIP", "WinCLIP", "mvtec", "image", 1.3),
        ("kanoclip", "KAnoCLIP", "MVFA-AD", "visa", "image", 1.5),
        ("kanoclip", "KAnoCLIP", "MVFA-AD", "bmad_brain", "image", 2.1),
        ("kanoclip", "KAnoCLIP", "AnomalyCLIP", "bmad_brain", "pixel", 1.3),
        ("kanoclip", "KAnoCLIP", "MVFA-AD", "bmad_liver", "image", 4.0),
        ("kanoclip", "KAnoCLIP", "AnomalyCLIP", "bmad_liver", "pixel", 2.4),
    ],
)
def test_gains_are_those_in_the_texts(
    name: str, better: str, worse: str, dataset: str, level: str, gain: float
) -> None:
    values = [float(lookup(name, method, dataset, level, "auroc")["value"]) for method in (better, worse)]
    assert round(values[0] - values[1], 1) == gain


def test_full_variants_of_the_ablations_are_the_methods() -> None:
    full = {
        ("AF-CLIP", "V4"): ("afclip", "AF-CLIP"),
        ("AF-CLIP", "Adaptor"): ("afclip", "AF-CLIP"),
        ("AF-CLIP", "with patch alignment loss"): ("afclip", "AF-CLIP"),
        ("Dual-Image", "reference image + TTA"): ("dual_image", "Dual-Image+"),
        ("KAnoCLIP", "row 5"): ("kanoclip", "KAnoCLIP"),
    }
    compared, contradictions = 0, set()
    for row in ABLATIONS:
        if (row["paper"], row["variant"]) in full:
            name, method = full[row["paper"], row["variant"]]
            value = lookup(name, method, row["dataset"], row["level"], row["metric"])["value"]
            compared += 1
            if row["value"] != value:
                contradictions.add((method, row["dataset"], row["level"], row["metric"], value, row["value"]))
    assert compared == 8 + 4 + 4 + 6 + 4
    assert contradictions == {
        ("AF-CLIP", "visa", "image", "ap", "90.0", "89.9"),  # Tables 1 and 2, against 4; the log has 89.90
        ("Dual-Image+", "mvtec", "pixel", "f1_max", "42.5", "42.4"),
    }


def test_tables_of_one_paper_agree() -> None:
    cells: dict[tuple[str, ...], set[float]] = defaultdict(set)
    for row in PRINTED:
        paper, method = row["source"].partition(",")[0], row["method"]
        if (method, row["shots"]) == ("AF-CLIP+", "0"):
            method = "AF-CLIP"
        cells[paper, method, row["dataset"], row["shots"], row["level"], row["metric"]].add(float(row["value"]))
    assert [key for key, values in cells.items() if len(values) > 1] == []


def test_the_released_log_rounds_to_the_table() -> None:
    compared, contradictions = 0, set()
    for row in RESULTS["released_logs"]:
        # The paper prints no pixel AP, and of the medical sets without normal images no image level.
        if row["method"] == "AF-CLIP" and not row["category"] and (row["level"], row["metric"]) != ("pixel", "ap"):
            printed = lookup("afclip", "AF-CLIP", row["dataset"], row["level"], row["metric"])["value"]
            compared += 1
            if abs(float(printed) - float(row["value"])) > half_unit(printed) + 1e-9:
                contradictions.add((row["dataset"], row["level"], row["metric"], row["value"], printed))
    assert compared == 5 * 4 + 4 * 2 + 2 * 2
    assert contradictions == {
        ("visa", "image", "ap", "89.90", "90.0"),
        ("btad", "image", "ap", "95.26", "95.2"),
        ("btad", "pixel", "pro", "78.38", "78.3"),
        ("br35h", "image", "ap", "96.48", "96.4"),
    }


def test_the_readme_lists_where_papers_disagree() -> None:
    cells: dict[tuple[str, ...], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in PRINTED:
        key = (row["method"], row["dataset"], row["shots"], row["level"], row["metric"])
        papers = cells[key][f"{float(row['value']):.1f}"]
        paper = row["source"].partition(",")[0]
        if paper not in papers:
            papers.append(paper)
    expected = [
        f"| {method} | {dataset} | {level} {metric} | "
        + "; ".join(f"{value} {', '.join(papers)}" for value, papers in values.items())
        + " |"
        for (method, dataset, _, level, metric), values in sorted(cells.items())
        if len(values) > 1
    ]
    lines = (FOLDER / "README.md").read_text().splitlines()
    start = lines.index("| method | dataset | metric | values |") + 2
    assert lines[start : start + len(expected)] == expected
    assert not lines[start + len(expected)].startswith("|")
