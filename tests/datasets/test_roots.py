"""The default root of a dataset: in Python, in YAML and for the `datasets` command."""

from inspect import isabstract, signature
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonargparse import ArgumentParser

from afclip_lightning.data.base import AnomalyData, AnomalyDataModule
from afclip_lightning.datasets.catalogue import dataset_classes, find_dataset
from afclip_lightning.engine.roots import fill_in_roots

SHIPPED = [
    cls for cls in dataset_classes() if not isabstract(cls) and cls.__module__.startswith("afclip_lightning.datasets.")
]


def cases() -> list[tuple[type[AnomalyDataModule], dict[str, Any]]]:
    """Returns every class with its required arguments; a class with subsets once per subset."""
    found: list[tuple[type[AnomalyDataModule], dict[str, Any]]] = []
    for cls in SHIPPED:
        subsets = (
            get_args(signature(cls).parameters["subset"].annotation) if "subset" in signature(cls).parameters else ()
        )
        found += [(cls, {"subset": subset}) for subset in subsets] or [(cls, {})]
    return found


def in_python(cls: type[AnomalyDataModule], arguments: dict[str, Any]) -> AnomalyDataModule:
    return cls(**arguments)


def in_yaml(cls: type[AnomalyDataModule], arguments: dict[str, Any]) -> AnomalyDataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AnomalyData, "data")
    section = {"class_path": cls.__name__, "init_args": arguments}
    return parser.instantiate_classes(parser.parse_object({"data": section})).data


def of_the_command(cls: type[AnomalyDataModule], arguments: dict[str, Any]) -> AnomalyDataModule:
    return find_dataset(cls.__name__, [f"--{name}={value}" for name, value in arguments.items()])


@pytest.mark.parametrize("build", [in_python, in_yaml, of_the_command])
@pytest.mark.parametrize(
    ("cls", "arguments"), cases(), ids=lambda x: getattr(x, "__name__", None) or "-".join(x.values())
)
def test_a_root_by_default(
    cls: type[AnomalyDataModule], arguments: dict[str, Any], build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AFCLIP_DATA", raising=False)
    assert signature(cls).parameters["root"].default is None
    if not (cls.name or arguments):  # one's own
        with pytest.raises(Exception, match="root must be given"):
            build(cls, arguments)
        return
    dataset = build(cls, arguments)
    folder = dataset.folder or dataset.name
    assert dataset.root == Path("data") / folder
    for place, found in (("/sets", "/sets"), ("~/sets", str(Path("~/sets").expanduser())), ("", "data")):
        monkeypatch.setenv("AFCLIP_DATA", place)  # read when a dataset is made
        assert build(cls, arguments).root == Path(found) / folder
        assert dataset.root == Path("data") / folder
    assert build(cls, {**arguments, "root": "given"}).root == Path("given")


def test_a_run_records_where_its_datasets_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFCLIP_DATA", "/sets")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AnomalyData, "data")
    test = [
        {"class_path": "Medical", "init_args": {"subset": "isic"}},
        {"class_path": "VisA", "init_args": {"root": "x"}},
    ]
    section = {"class_path": "CrossDataset", "init_args": {"train": {"class_path": "MVTecAD"}, "test": test}}
    data = parser.parse_object({"data": section}).data
    fill_in_roots(data)
    recorded = data.as_dict()["init_args"]
    assert recorded["train"]["init_args"]["root"] == "/sets/mvtec"
    assert [dataset["init_args"]["root"] for dataset in recorded["test"]] == ["/sets/ISIC2016", "x"]
