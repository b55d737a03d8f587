"""Benchmarks that train on several sets: their plan, the dependencies of a head, the table of held-out sets."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from afclip_lightning.benchmark.leave_one_out import leave_one_out_table
from afclip_lightning.benchmark.matrix import Matrix, Method, Plan, Transfer, load_matrix, plan
from afclip_lightning.benchmark.render import NONE, measured
from afclip_lightning.benchmark.table import Measurement
from afclip_lightning.cli import benchmark
from afclip_runtime.errors import UserError
from tests.support import REPOSITORY

MATRIX = """
methods:
  AF-CLIP: {configs: [configs/afclip_demo.yaml]}
  Patch rarity: {configs: [configs/patch_rarity_demo.yaml], trains: false}
datasets:
  one: {class_path: Synthetic, init_args: {root: data/drawn, categories: [cloth]}}
  two: {class_path: Synthetic, init_args: {root: data/drawn, categories: [gear]}}
  three: {class_path: Synthetic, init_args: {root: data/drawn, categories: [wood]}}
  gone: {class_path: BTAD, init_args: {root: data/btad}}
leave_one_out: [one, two, three]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(*changes: str) -> Plan:
    Path("matrix.yaml").write_text(MATRIX)
    return plan(load_matrix([Path("matrix.yaml")], changes), Path("out"))


def data_of(found: Plan, cell: int, step: str) -> Any:
    """Returns the `data` section that a step of a cell reads."""
    chosen = found.cells[cell]
    (arguments,) = [one.arguments for one in chosen.steps if one.name == step]
    (path,) = [Path(a.removeprefix("--config=")) for a in arguments if "/data-" in a]
    return yaml.safe_load(chosen.files[path])["data"]


@pytest.mark.usefixtures("folder")
def test_each_set_is_tested_by_heads_of_all_the_others() -> None:
    found = planned()
    assert {cell.name: [step.name for step in cell.steps] for cell in found.cells} == {
        "AF-CLIP_two+three_0": ["fit", "one-0"],
        "AF-CLIP_one+three_0": ["fit", "two-0"],
        "AF-CLIP_one+two_0": ["fit", "three-0"],
        "Patch-rarity_0": ["one-0", "two-0", "three-0"],
    }
    assert [cell.train for cell in found.cells] == ["two + three", "one + three", "one + two", ""]
    section = data_of(found, 0, "fit")
    assert section["class_path"] == "CrossDataset"
    arguments = section["init_args"]
    assert [part["init_args"]["categories"] for part in arguments["train"]] == [["gear"], ["wood"]]
    assert [part["init_args"]["categories"] for part in arguments["test"]] == [
        ["cloth"]
    ]  # of which it holds no picture
    assert data_of(found, 0, "one-0")["class_path"] == "Synthetic"


@pytest.mark.usefixtures("folder")
def test_a_transfer_trains_on_a_list_and_says_how() -> None:
    changes = ["leave_one_out=[]", "transfers=[{train: [one, two], test: [three]}]"]
    found = planned(*changes, "cross_dataset={train_sampling: evenly}")
    assert [cell.name for cell in found.cells] == ["AF-CLIP_one+two_0", "Patch-rarity_0"]
    assert data_of(found, 0, "fit")["init_args"]["train_sampling"] == "evenly"
    fit, _ = found.cells[0].steps
    assert planned(*changes).cells[0].steps[0].digest != fit.digest
    more = planned(
        "leave_one_out=[]",
        "transfers=[{train: [one, two], test: [three, gone]}]",
        "cross_dataset={train_sampling: evenly}",
    )
    assert more.missing == ("gone (data/btad)",)
    assert more.cells[0].steps[0].digest == fit.digest


@pytest.mark.usefixtures("folder")
def test_a_head_does_not_depend_on_what_is_tested() -> None:
    datasets = "datasets.four={class_path: Synthetic, init_args: {root: data/drawn, categories: [mesh]}}"
    digests = [
        planned("leave_one_out=[]", datasets, f"transfers=[{{train: [one, two], test: {test}}}]")
        .cells[0]
        .steps[0]
        .digest
        for test in ("[three]", "[three, four]")
    ]
    assert digests[0] == digests[1]


@pytest.mark.usefixtures("folder")
def test_many_sets_have_a_short_folder() -> None:
    kinds = ["cloth", "wood", "terrazzo", "gear", "biscuit", "metal"]
    names = {kind: f"{kind}-{'x' * 30}" for kind in kinds}
    datasets = [
        f"datasets.{name}={{class_path: Synthetic, init_args: {{root: data/drawn, categories: [{kind}]}}}}"
        for kind, name in names.items()
    ]
    found = planned(*datasets, f"leave_one_out=[{','.join(names.values())}]")
    folders = {cell.name for cell in found.cells}
    assert len(folders) == 7
    assert all(len(name) < 60 for name in folders)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("changes", "told"), [
    (["leave_one_out=[one]"], "names one dataset; heads are trained on the others"),
    (["leave_one_out=[one, two, one]"], "leave_one_out: 'one' is listed twice"),
    (["leave_one_out=[one, two, five]"], "name the dataset 'five', which is not one of one, two, three, gone"),
    (["leave_one_out=[one, gone]"], "leave_one_out: not on disk: gone (data/btad)."),
    (["leave_one_out=[]"], "transfers: is empty"),
    (["leave_one_out=[]", "transfers=[{train: [], test: [one]}]"], "transfers[0].train: is empty"),
    (["leave_one_out=[]", "transfers=[{train: [one, one], test: [two]}]"], "'one' is listed twice"),
    (["leave_one_out=[]", "transfers=[{train: 3, test: [two]}]"], "transfers[0].train"),
    (["leave_one_out=[]", "transfers=[{train: [one, two], test: [two]}]"], "two would be trained on and tested on"),
    (["transfers=[{train: [three, two], test: [one]}]"], "transfers train twice on three, two"),
    (["cross_dataset={train_sampling: odd}"], "'by_size', 'evenly'"),
    (["cross_dataset={sampling: evenly}"], "sampling"),
    (["datasets.two.init_args.categories=[cloth]"], "trained on and tested on: synthetic/cloth"),
    (["datasets.two.init_args.batch_size=3"], "batch_size must be the same for all that is trained on"),
])  # fmt: skip
def test_mistakes_are_named(changes: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        planned(*changes)
    assert told in str(error.value)


def test_the_option_takes_the_place_of_the_transfers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "matrix.yaml").write_text(
        MATRIX.replace("leave_one_out: [one, two, three]", "transfers: [{train: one, test: [two]}]")
    )
    seen: list[str] = []
    monkeypatch.setattr(benchmark, "run_cells", lambda cells, **_: seen.extend(cell.name for cell in cells))
    given = ["--config=matrix.yaml", "--out=out", f"published={REPOSITORY}/experiments/published"]
    assert benchmark.main([*given, "--leave_one_out", "one, three"]) == 0
    assert seen == ["AF-CLIP_three_0", "AF-CLIP_one_0", "Patch-rarity_0"]
    assert benchmark.main([*given, "--leave_one_out=one,five"]) == 2
    assert "'five'" in capsys.readouterr().err


HELD = Matrix(
    methods={"new": Method(configs=[]), "plain": Method(configs=[], trains=False)},
    datasets=dict.fromkeys(("mvtec", "visa", "btad"), ""),
    transfers=[Transfer("visa", ["mvtec"])],
    leave_one_out=["mvtec", "visa", "btad"],
)
OTHERS = {"mvtec": "visa + btad", "visa": "mvtec + btad", "btad": "mvtec + visa"}


def row(value: float, dataset: str, **other: Any) -> Measurement:
    facts = {"method": "new", "train": OTHERS[dataset], "category": "mean", "shots": 0, "seed": 0}
    facts |= {"metric": "image_auroc", "backbone": "CLIP (weights)"}
    return Measurement(cell="", dataset=dataset, value=value, **(facts | other))


def body(rows: list[Measurement]) -> list[tuple[str, ...]]:
    (grid,) = leave_one_out_table(rows, HELD)
    column = grid.header.index("I-AUROC")
    return [(*cells[:4], cells[column], cells[-1]) for cells in grid.rows]


def test_a_row_per_set_and_the_mean_over_them_seed_by_seed() -> None:
    rows = [row(0.6 + 0.1 * n + 0.2 * seed, name, seed=seed) for n, name in enumerate(OTHERS) for seed in (0, 1)]
    rows += [row(0.5, name, method="plain", train="") for name in ("visa", "mvtec")]
    rows += [row(0.1, "mvtec", train="visa"), row(0.1, "mvtec", category="bottle")]  # of a transfer, of a category
    assert body(rows[::-1]) == [
        ("new", "0", "mvtec", "2", "70.0 ± 14.1", "CLIP"),
        ("new", "0", "visa", "2", "80.0 ± 14.1", "CLIP"),
        ("new", "0", "btad", "2", "90.0 ± 14.1", "CLIP"),
        ("new", "0", "mean of 3", NONE, "80.0 ± 14.1", "CLIP"),
        ("plain", "0", "mvtec", "1", "50.0", "CLIP"),
        ("plain", "0", "visa", "1", "50.0", "CLIP"),
        ("plain", "0", "mean of 3", NONE, NONE, "CLIP"),  # of two sets it would be another mean
    ]


def test_a_mean_has_the_seeds_that_all_sets_have() -> None:
    rows = [row(0.6, "mvtec"), row(0.7, "visa"), row(0.8, "btad"), row(0.0, "btad", seed=1)]
    assert body(rows)[-1] == ("new", "0", "mean of 3", NONE, "70.0", "CLIP")


def test_nothing_is_left_out() -> None:
    plain = Matrix(methods=HELD.methods, datasets=HELD.datasets, transfers=HELD.transfers)
    assert leave_one_out_table([row(0.1, "mvtec", train="visa")], plain) == []
    assert leave_one_out_table([], HELD) == []


def test_papers_have_no_numbers_of_sets_that_were_left_out() -> None:
    results = measured([row(0.6, "mvtec"), row(0.7, "mvtec", train="visa")], HELD)
    assert results[0].values["0", "mvtec", "image_auroc"] == {0: 70.0}


def test_the_matrices_of_the_project_name_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    for name in ("leave_one_out", "leave_one_out_demo"):
        matrix = load_matrix([Path(f"experiments/{name}.yaml")])
        assert set(matrix.leave_one_out) == set(matrix.datasets)
        assert all(Path(config).is_file() for method in matrix.methods.values() for config in method.configs)
    plan(matrix, Path("out"))
