"""Each set's config, merged over one that trains on another set, tests on that set alone."""

import contextlib
import inspect
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

import afclip_lightning.datasets
from afclip_lightning.data.base import AnomalyData, AnomalyDataModule
from afclip_lightning.datasets.bmad import SUBSETS as BMAD
from afclip_lightning.datasets.catalogue import catalogue, dataset_classes
from afclip_lightning.datasets.cross_dataset import CrossDataset
from afclip_lightning.datasets.listing import Listing
from afclip_lightning.datasets.medical import SUBSETS as MEDICAL
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.datasets.synthetic import Synthetic
from afclip_lightning.datasets.volumes import Volumes
from afclip_lightning.discovery import descendants, import_submodules
from afclip_lightning.engine.app import main
from afclip_runtime.errors import DatasetError

import_submodules(afclip_lightning.datasets)

CONFIGS = Path(__file__).parents[2] / "configs"
SETS = sorted((CONFIGS / "data").glob("*.yaml"))
OWN = {"json_lines": "my_set", "meta_json": "my_set", "volumes": "my_set"}  # named after their folder


def merged(override: Path, folder: Path, experiment: str = "") -> CrossDataset:
    """Returns the data of two configs that are merged as on the command line, by a parser of the data alone."""
    base = CONFIGS / f"{experiment or ('afclip_visa' if override.stem == 'mvtec' else 'afclip_mvtec')}.yaml"
    parser = ArgumentParser(exit_on_error=False, parser_mode="omegaconf")
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(AnomalyData, "data")
    arguments = []
    for path in (base, override):
        part = folder / path.name
        part.write_text(yaml.safe_dump({"data": yaml.safe_load(path.read_text())["data"]}))
        arguments.append(f"--config={part}")
    data = parser.instantiate_classes(parser.parse_args(arguments)).data
    assert isinstance(data, CrossDataset)
    return data


@pytest.mark.parametrize("override", SETS, ids=lambda path: path.stem)
def test_config_of_a_set(override: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no set is
    monkeypatch.delenv("AFCLIP_DATA", raising=False)
    data = merged(override, tmp_path)
    (dataset,) = data.all_test_sets
    assert dataset.name == OWN.get(override.stem, override.stem)
    assert dataset.root.parts[0] == "data"
    with pytest.raises(DatasetError, match=dataset.name):
        data.check("test")  # a set that is asked for by name is never left out in silence


@pytest.mark.parametrize("override", SETS, ids=lambda path: path.stem)
@pytest.mark.parametrize("experiment", ["clip_mvtec", "dual_image_mvtec", "musc_visa", "afclip_mvtec"])
def test_config_of_a_set_over_one_that_trains_nothing(experiment: str, override: Path, tmp_path: Path) -> None:
    if (experiment, override.stem) == ("afclip_mvtec", "mvtec"):
        return  # see below
    data = merged(override, tmp_path, experiment)
    (dataset,) = data.all_test_sets
    assert dataset.name == OWN.get(override.stem, override.stem)
    assert [part.name for part in data.parts if part is not dataset] == ["mvtec"] * (experiment == "afclip_mvtec")
    dataset.check_names() if dataset.name not in OWN.values() else None  # no class names of another set are left


@pytest.mark.slow
def test_a_set_over_an_experiment_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["afclip_lightning"])  # Lightning warns of the test runner's own arguments
    printed = io.StringIO()
    configs = [f"--config={CONFIGS / name}.yaml" for name in ("afclip_mvtec", "data/sdd_thirds")]
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        main(["fit", *configs, "--print_config"])
    arguments = yaml.safe_load(printed.getvalue())["data"]["init_args"]
    assert arguments["train"]["class_path"].endswith("MVTecAD")
    assert [dataset["class_path"].rpartition(".")[2] for dataset in arguments["test"]] == ["KolektorSDDThirds"]
    assert not arguments["skip_missing"]


def test_the_set_that_is_trained_on_is_refused(tmp_path: Path) -> None:
    for name in ("visa", "mvtec"):
        shutil.copy(CONFIGS / f"data/{name}.yaml", tmp_path / f"{name}_.yaml")
    with pytest.raises(ValueError, match="trained on and tested on: mvtec/bottle"):
        merged(tmp_path / "mvtec_.yaml", tmp_path)  # over afclip_mvtec.yaml
    merged(tmp_path / "visa_.yaml", tmp_path)


def sets_of(config: Any) -> Iterator[tuple[type[AnomalyDataModule], dict[str, Any]]]:
    """Yields class and arguments of every dataset in a config, at any depth."""
    classes = {cls.__name__: cls for cls in dataset_classes()}
    if isinstance(config, dict) and config.get("class_path") in classes:
        yield classes[config["class_path"]], config.get("init_args", {})
    for inner in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        yield from sets_of(inner)


@pytest.mark.parametrize("path", [*CONFIGS.glob("*.yaml"), *SETS], ids=lambda path: path.stem)
def test_configs_look_for_a_set_in_its_own_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFCLIP_DATA", "${oc.env:AFCLIP_DATA,data}")
    found = list(sets_of(yaml.safe_load(path.read_text())))
    assert found
    for cls, arguments in found:
        drawn = cls is Synthetic and arguments.get("root", "").endswith("synthetic_train")  # the half to train on
        assert ("root" in arguments) == (drawn or cls in (Listing, MVTecLayout, Volumes))  # which are one's own
        if "raw" in arguments:
            assert Path(arguments["raw"]) == cls().root.with_name(cls.raw_folder)


def test_the_table_of_the_readme_names_the_same_folders() -> None:
    text = (CONFIGS.parent / "data/README.md").read_text()
    table = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \| `([\w./-]+)` \|", text, re.MULTILINE)
    package = Path(inspect.getfile(afclip_lightning)).parent  # other tests leave classes of files elsewhere
    shipped = [dataset for dataset in catalogue() if Path(inspect.getfile(type(dataset))).is_relative_to(package)]
    expected = {(type(d).__name__, d.name.removeprefix("bmad_"), d.folder or d.name) for d in shipped}
    assert {(cls, subset or folder, folder) for cls, subset, folder in table} == expected


def test_every_published_set_has_a_config() -> None:
    classes = descendants(AnomalyDataModule)
    folder = Path(afclip_lightning.datasets.__path__[0])
    shipped = [cls for cls in classes if Path(inspect.getfile(cls)).parent == folder and cls is not Synthetic]
    published = {cls.name for cls in shipped if getattr(cls, "name", "")}
    published |= {*MEDICAL, *(f"bmad_{subset}" for subset in BMAD)}
    assert published == {path.stem for path in SETS} - set(OWN)
