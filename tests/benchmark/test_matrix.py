"""A matrix is read strictly, keeps to the protocol, and becomes cells whose commands a person can repeat."""

import shlex
from pathlib import Path

import pytest
import yaml

from afclip_lightning.benchmark.matrix import CELL, Plan, load_matrix, plan
from afclip_lightning.errors import UserError
from tests.layouts.mvtec import write_mvtec

REPOSITORY = Path(__file__).parents[2]
MATRIX = """
methods:
  AF-CLIP: {configs: [configs/afclip_demo.yaml], shots: [0, 2]}
  Dual-Image: {configs: [configs/dual_image_demo.yaml], trains: false, seeds: [0]}
datasets:
  one: {class_path: Synthetic, init_args: {root: data/drawn, categories: [cloth]}}
  two: {class_path: Synthetic, init_args: {root: "${oc.env:ELSEWHERE}", categories: [gear]}}
  mvtec: configs/data/mvtec.yaml
transfers:
  - {train: one, test: [two, mvtec]}
  - {train: two, test: [one]}
seeds: [3, 4]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the project's configs and without data."""
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFCLIP_DATA", raising=False)
    monkeypatch.setenv("ELSEWHERE", "data/elsewhere")
    return tmp_path


def planned(text: str = MATRIX, *changes: str) -> Plan:
    Path("matrix.yaml").write_text(text)
    return plan(load_matrix([Path("matrix.yaml")], changes), Path("out"))


@pytest.mark.usefixtures("folder")
def test_a_head_is_fitted_once_and_tested_on_all_its_sets_and_shots() -> None:
    found = {cell.name: [step.name for step in cell.steps] for cell in planned().cells}
    assert found == {
        "AF-CLIP_one_3": ["fit", "two-0", "two-2"],
        "AF-CLIP_one_4": ["fit", "two-0", "two-2"],
        "AF-CLIP_two_3": ["fit", "one-0", "one-2"],
        "AF-CLIP_two_4": ["fit", "one-0", "one-2"],
        "Dual-Image_0": ["two-0", "one-0"],
    }


def test_a_dataset_that_appears_is_tested_on_without_fitting_again(folder: Path) -> None:
    before = planned()
    assert before.missing == ("mvtec (data/mvtec)",)
    write_mvtec(folder / "data/mvtec", ["bottle"])
    after = planned()
    assert after.missing == ()
    steps = {step.name: step.digest for step in after.cells[0].steps}
    assert list(steps) == ["fit", "two-0", "two-2", "mvtec-0", "mvtec-2"]
    assert {step.name: step.digest for step in before.cells[0].steps}.items() <= steps.items()


@pytest.mark.usefixtures("folder")
def test_what_a_run_depends_on_is_in_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    def digests(*changes: str) -> dict[str, str]:
        return {f"{c.name}/{step.name}": step.digest for c in planned(MATRIX, *changes).cells for step in c.steps}

    before = digests()
    assert digests() == before
    assert not before.items() & digests("options=[--trainer.max_epochs=1]").items()
    assert not before.items() & digests("methods.AF-CLIP.options=[--model.temperature=1]", "seeds=[3]").items() - {
        item for item in before.items() if item[0].startswith("Dual-Image")
    }
    monkeypatch.setenv("ELSEWHERE", "data/third")
    moved = {name for name, digest in digests().items() if before[name] != digest}
    # all that is trained on it or tested on it, and what is tested with such a head
    assert moved == {name for name in before if "_two_" in name or "/two-" in name}


@pytest.mark.usefixtures("folder")
def test_commands_are_those_of_the_command_line() -> None:
    cell = planned().cells[0]
    fit, _, few = cell.script().splitlines()[3:]
    assert shlex.split(fit)[:4] == ["python", "-m", "afclip_lightning", "fit"]
    assert fit.endswith('--run_dir="$1"/fit')
    assert '--ckpt_path="$1"/fit/head.ckpt' in few
    assert "--model.k_shot=2 --model.shot_seed=3" in few
    assert "--features.cache=out/features" in few
    for step in cell.steps:
        configs = [Path(a.removeprefix("--config=")) for a in step.arguments if a.startswith("--config=")]
        method, data = (yaml.safe_load(cell.files[path]) for path in configs)
        assert "data" not in method
        assert list(data) == ["data"]
        assert [CELL in a for a in step.arguments].count(True) == (2 if step.dataset else 1)
    assert yaml.safe_load(cell.files[cell.folder / "data-two.yaml"])["data"]["init_args"]["root"] == "data/elsewhere"


@pytest.mark.usefixtures("folder")
def test_only_methods_that_take_features_alone_share_a_store() -> None:
    cells = planned().cells
    caches = {cell.method: any("--features.cache" in a for s in cell.steps for a in s.arguments) for cell in cells}
    assert caches == {"AF-CLIP": True, "Dual-Image": False}
    assert not any(
        "--features" in a for c in planned(MATRIX, "store=false").cells for s in c.steps for a in s.arguments
    )


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("test: [one]", "test: [one, two]", "two would be trained on and tested on"),
        ("categories: [gear]", "categories: [gear, cloth]", "synthetic/cloth"),
        ("test: [one]", "test: [three]", "'three', which is none of one, two, mvtec"),
        ("train: two", "train: one", "one would be trained on"),
        ("train: two, test: [one]", "train: one, test: [two]", "train twice on one"),
        ("shots: [0, 2]", "shot: [0, 2]", "shot"),
        ("shots: [0, 2]", "shots: few", "methods.AF-CLIP.shots"),
        ("configs/afclip_demo.yaml", "configs/none.yaml", "configs/none.yaml: cannot be read"),
        ("configs/afclip_demo.yaml", "configs/data/mvtec.yaml", "name no model"),
        (
            "class_path: Synthetic, init_args: {root: data/drawn",
            "class_path: Drawn, init_args: {root: data/drawn",
            "'one'",
        ),
        ("configs/data/mvtec.yaml", "configs/afclip_mvtec.yaml", "'mvtec'"),
        ("configs/data/mvtec.yaml", "configs/ablation/afclip_v1.yaml", "neither a data section"),
        ("Dual-Image:", "AF/CLIP:", "AF-CLIP, AF/CLIP would share one folder"),
        ("methods:", "method:", "method"),
        ("seeds: [3, 4]", "seeds: [3, 4", "matrix.yaml: cannot be read"),
    ],
)
def test_mistakes_are_named(old: str, new: str, told: str) -> None:
    assert old in MATRIX
    with pytest.raises(UserError) as error:
        planned(MATRIX.replace(old, new))
    assert told in str(error.value)


@pytest.mark.parametrize("name", ["benchmark", "benchmark_papers", "ablation"])
def test_the_matrices_of_the_project_name_what_there_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    matrix = load_matrix([Path(f"experiments/{name}.yaml")])
    plan(matrix, Path("out"))  # builds every dataset
    tests = {test for transfer in matrix.transfers for test in transfer.test}
    for method in matrix.methods.values():
        for template in method.configs:
            for transfer in matrix.transfers:
                for test in tests if method.tests is None else method.tests:
                    assert Path(template.format(train=transfer.train, test=test)).is_file()


def test_every_ablation_is_run() -> None:
    matrix = load_matrix([REPOSITORY / "experiments/ablation.yaml"])
    used = {config for method in matrix.methods.values() for config in method.configs}
    assert {f"configs/ablation/{path.name}" for path in (REPOSITORY / "configs/ablation").glob("*.yaml")} <= used
