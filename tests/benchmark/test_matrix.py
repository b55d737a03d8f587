"""A matrix is read strictly, obeys the protocol, and becomes cells whose commands can be repeated by hand."""

import copy
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import yaml

from afclip_lightning.benchmark.matrix import CELL, Plan, load_matrix, plan
from afclip_lightning.engine.factory import methods
from afclip_runtime.errors import UserError
from tests.support import REPOSITORY
from tests.support.layouts.mvtec import write_mvtec

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


@pytest.mark.slow
def test_a_dataset_that_appears_is_tested_on_without_fitting_again(folder: Path) -> None:
    before = planned()
    assert before.missing == ("mvtec (data/mvtec)",)
    write_mvtec(folder / "data/mvtec", ["bottle"])
    after = planned()
    assert after.missing == ()
    steps = {step.name: step.digest for step in after.cells[0].steps}
    assert list(steps) == ["fit", "two-0", "two-2", "mvtec-0", "mvtec-2"]
    assert {step.name: step.digest for step in before.cells[0].steps}.items() <= steps.items()


@pytest.mark.slow
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
    assert fit.endswith('--out="$1"/fit')
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


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_only_methods_that_take_features_alone_share_a_store() -> None:
    cells = planned().cells
    caches = {cell.method: any("--features.cache" in a for s in cell.steps for a in s.arguments) for cell in cells}
    assert caches == {"AF-CLIP": True, "Dual-Image": False}
    assert not any(
        "--features" in a for c in planned(MATRIX, "store=false").cells for s in c.steps for a in s.arguments
    )


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("test: [one]", "test: [one, two]", "two would be trained on and tested on"),
        ("categories: [gear]", "categories: [gear, cloth]", "synthetic/cloth"),
        ("test: [one]", "test: [three]", "'three', which is not one of one, two, mvtec"),
        ("train: two", "train: one", "one would be trained on"),
        ("train: two, test: [one]", "train: one, test: [two]", "train twice on one"),
        ("shots: [0, 2]", "shot: [0, 2]", "shot"),
        ("shots: [0, 2]", "shots: few", "methods.AF-CLIP.shots"),
        ("configs/afclip_demo.yaml", "configs/none.yaml", "configs/none.yaml does not exist"),
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
        ("seeds: [3, 4]", "seeds: [3, 4", "matrix.yaml, line 13: cannot be read as YAML"),
        ("seeds: [3, 4]", "seeds: []", "seeds: is empty"),
        ("seeds: [3, 4]", "seeds: [3, 3]", "seeds: 3 is listed twice"),
        ("seeds: [3, 4]", "seeds: [-1]", "seeds: must be whole numbers from 0 to 4294967295"),
        ("seeds: [3, 4]", "seeds: [4294967296]", "seeds: must be whole numbers"),
        ("seeds: [3, 4]", "seeds: [1.5]", "seeds[0]"),
        ("seeds: [3, 4]", "seeds: [3]\nseeds: [4]", "'seeds' occurs twice"),
        ("seeds: [3, 4]", "options: {a: 1}", "cannot be read"),
        ("seeds: [3, 4]", "options: [steps]", "'steps' is not an option"),
        ("seeds: [3, 4]", "options: [--out=x]", "'--out=x' is set by the benchmark"),
        ("seeds: [3, 4]", "options: [--seed_everything, '3']", "'--seed_everything' is set by the benchmark"),
        ("seeds: [3, 4]", "published: 2026-01-01", "published"),
        ("seeds: [0]", "seeds: []", "methods.Dual-Image.seeds: is empty"),
        ("shots: [0, 2]", "shots: []", "methods.AF-CLIP.shots: is empty"),
        ("shots: [0, 2]", "shots: [-1]", "methods.AF-CLIP.shots: must be whole numbers from 0"),
        ("shots: [0, 2]", "shots: [true]", "methods.AF-CLIP.shots[0]"),
        ("shots: [0, 2]", "shots: [.nan]", "methods.AF-CLIP.shots[0]"),
        ("shots: [0, 2]", "shots: [2, 2]", "methods.AF-CLIP.shots: 2 is listed twice"),
        ("trains: false, seeds: [0]", "trains: false, shots: [4]", "Dual-Image.shots: DualImage"),
        ("shots: [0, 2]", "tests: [five]", "methods.AF-CLIP.tests: 'five' is not one of the datasets"),
        ("shots: [0, 2]", "tests: []", "methods.AF-CLIP.tests: is empty"),
        ("shots: [0, 2]", "published: []", "methods.AF-CLIP.published: is empty"),
        ("configs: [configs/afclip_demo.yaml]", "configs: []", "methods.AF-CLIP.configs: is empty"),
        ("configs: [configs/afclip_demo.yaml]", "configs: [configs]", "configs is a folder"),
        ("test: [one]", "test: []", "transfers[1].test: is empty"),
        ("test: [one]", "test: [one, one]", "transfers[1].test: 'one' is listed twice"),
        ("AF-CLIP:", "'':", "'' cannot be the name of a folder"),
        ("AF-CLIP:", "'..':", "'..' cannot be the name of a folder"),
        ("AF-CLIP:", '"a\\e[31mb":', r"'a\x1b[31mb' cannot be the name of a folder"),
        ("AF-CLIP:", f"{'a' * 300}:", "cannot be the name of a folder"),
        ("AF-CLIP:", "dual-IMAGE:", "would share one folder"),
        ("init_args: {root: data/drawn, categories: [cloth]}", "init_args: [1]", "init_args must be a mapping"),
        ("init_args: {root: data/drawn, categories: [cloth]}", "init_args: null", "init_args must be a mapping"),
        ("init_args: {root: data/drawn, categories: [cloth]}", "init_arg: {}", "has 'init_arg'"),
        ("root: data/drawn,", "root: data/drawn, test: 3,", "'one', Synthetic: "),
        ("categories: [cloth]", "categories: 3", "'one', Synthetic: "),
        (
            "class_path: Synthetic, init_args: {root: data/drawn",
            "class_path: 3, init_args: {root: data/drawn",
            "neither",
        ),
        (
            "class_path: Synthetic, init_args: {root: data/drawn",
            "class_path: AnomalyDataModule, init_args: {root: data/drawn",
            "no dataset class 'AnomalyDataModule'",
        ),
    ],
)
def test_mistakes_are_named(old: str, new: str, told: str) -> None:
    assert old in MATRIX
    with pytest.raises(UserError) as error:
        planned(MATRIX.replace(old, new))
    assert told in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["benchmark", "benchmark_papers", "ablation", "comparison/demo", "comparison/real"])
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


NOT_IN_THE_PAPERS_MATRIX = {
    "PatchLogit": "ours, and made for a DINOv2 (the ready model `real`); experiments/comparison has it",
}


@pytest.mark.slow
def test_every_method_is_at_the_papers_size_or_has_a_reason_not_to_be() -> None:
    matrix = load_matrix([REPOSITORY / "experiments/benchmark_papers.yaml"])
    configs = {c.format(train="mvtec", test="mvtec") for method in matrix.methods.values() for c in method.configs}
    run = {yaml.safe_load((REPOSITORY / config).read_text())["model"]["class_path"] for config in configs}
    assert run | NOT_IN_THE_PAPERS_MATRIX.keys() == methods().keys()
    assert not run & NOT_IN_THE_PAPERS_MATRIX.keys()


@pytest.mark.slow
def test_every_method_is_on_the_demo() -> None:
    matrix = load_matrix([REPOSITORY / "experiments/comparison/demo.yaml"])
    configs = {config for method in matrix.methods.values() for config in method.configs}
    run = {yaml.safe_load((REPOSITORY / config).read_text())["model"]["class_path"] for config in configs}
    assert run == methods().keys()


@pytest.mark.usefixtures("folder")
def test_a_test_without_few_shot_images_says_so_whatever_the_config_has() -> None:
    text = MATRIX.replace("configs/dual_image_demo.yaml", "configs/anomalydino_demo.yaml")  # k_shot: 4
    cell = next(cell for cell in planned(text).cells if cell.method == "Dual-Image")
    assert all("--model.k_shot=0" in step.arguments for step in cell.steps)


def test_every_ablation_is_run() -> None:
    matrix = load_matrix([REPOSITORY / "experiments/ablation.yaml"])
    used = {config for method in matrix.methods.values() for config in method.configs}
    assert {f"configs/ablation/{path.name}" for path in (REPOSITORY / "configs/ablation").glob("*.yaml")} <= used


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"\xff\xfe", b"a: \0", b"[" * 100_000, b"{a: " * 1000, b"a: &a [*a]"]
)
def test_files_that_are_not_matrices_give_one_error(content: bytes) -> None:
    Path("matrix.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"^matrix\.yaml"):
        load_matrix([Path("matrix.yaml")])


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "change", ["seeds=[0", "seeds=x", "=3", "nothing=3", "methods=3", "seeds", "methods.AF-CLIP=1"]
)
def test_a_change_that_is_none_is_one_error(change: str) -> None:
    with pytest.raises(UserError, match=r"matrix\.yaml"):
        planned(MATRIX, change)


@pytest.mark.usefixtures("folder")
def test_two_cells_never_share_a_folder() -> None:
    text = MATRIX.replace("Dual-Image:", "AF-CLIP_one:").replace("trains: false, seeds: [0]", "seeds: [3]")
    text = text.replace(
        "  two:", "  one_two: {class_path: Synthetic, init_args: {root: e, categories: [mesh]}}\n  two:"
    )
    with pytest.raises(UserError, match="share the folder AF-CLIP_one_two_3"):
        planned(
            text.replace("{train: two, test: [one]}", "{train: two, test: [one]}\n  - {train: one_two, test: [one]}")
        )


@pytest.mark.usefixtures("folder")
def test_configs_of_one_name_in_several_folders_are_kept_apart(folder: Path) -> None:
    demo = (folder / "configs/dual_image_demo.yaml").read_text()
    for name in ("two", "one"):
        (folder / name).mkdir()
        (folder / name / "own.yaml").write_text(f"{demo}\n# {name}")
    own = planned(MATRIX.replace("configs: [configs/dual_image_demo.yaml]", 'configs: ["{test}/own.yaml"]')).cells[-1]
    read = [argument for step in own.steps for argument in step.arguments if "own.yaml" in argument]
    assert len(set(read)) == 2


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the path of every value within a nested value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, inner in items for found in paths_of(inner, (*path, key)))]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("${x}"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@hypothesis.settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(st.data())
def test_a_matrix_with_anything_in_one_place_is_planned_or_is_one_error(data: st.DataObject) -> None:
    content = yaml.safe_load(MATRIX)
    *parents, last = data.draw(st.sampled_from(paths_of(content)[1:]))
    place = content
    for key in parents:
        place = place[key]
    place[last] = data.draw(JSON)
    with suppress(UserError):
        planned(yaml.safe_dump(copy.deepcopy(content)))
