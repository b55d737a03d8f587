"""A section of a config becomes an object, and every rejection is one message."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.data.base import AnomalyData
from afclip_lightning.datasets.cross_dataset import CrossDataset
from afclip_lightning.datasets.folder import Folder
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.discovery.sections import all_arguments, instantiate, instantiate_subclass, prepare, refusals
from afclip_runtime.errors import DatasetError, UserError


class Taker:
    """Takes an existing object, a number, and an argument without a type."""

    def __init__(self, ready: object, number: int = 1, loose=None) -> None:  # type: ignore[no-untyped-def]
        if number < 0:
            raise ValueError(f"number must not be negative, got {number}")
        if number == 13:
            raise DatasetError("thirteen.png cannot be read")
        self.ready, self.number, self.count = ready, number, len(loose or [])


def test_arguments_by_name_and_as_on_the_command_line(tmp_path: Path) -> None:
    by_name = instantiate(Folder, {"root": str(tmp_path), "normal_dir": "ok", "batch_size": 5})
    as_options = instantiate(Folder, [f"--root={tmp_path}", "--normal_dir", "ok", "--batch_size=5"])
    assert isinstance(by_name, Folder)
    assert by_name.root == as_options.root == tmp_path
    assert by_name.batch_size == as_options.batch_size == 5


def test_a_section_names_its_class(tmp_path: Path) -> None:
    inner = {"class_path": f"{MVTecLayout.__module__}.MVTecLayout", "init_args": {"root": str(tmp_path)}}
    section = {"class_path": f"{CrossDataset.__module__}.CrossDataset", "init_args": {"train": inner, "test": [inner]}}
    built = instantiate_subclass(AnomalyData, section)
    assert isinstance(built, CrossDataset)
    assert [part.root for part in built.parts] == [tmp_path, tmp_path]


def test_what_is_an_object_already_comes_later() -> None:
    ready = object()
    made = prepare(Taker, {"number": 3}, later=["ready"])(ready=ready)
    assert made.ready is ready
    assert made.number == 3


def test_arguments_that_are_not_given_are_filled_in() -> None:
    arguments = all_arguments(ClipBackbone, {"model": "tiny-8-112"})
    assert arguments["model"] == "tiny-8-112"
    assert "weights" in arguments


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: instantiate(Folder, {"rot": "x"}), "Folder: Option 'rot' is not accepted"),
    (lambda: instantiate(Folder, ["--rot=x"], "set 'a'"), "set 'a': "),
    (lambda: instantiate(Folder, {"normal_dir": "ok"}),
     "Folder: root must be given: only a published dataset has one by default"),
    (lambda: instantiate(Folder, {"root": "x", "normal_dir": "g", "batch_size": "many"}),
     "Folder: batch_size: expected a whole number, got many."),
    (lambda: instantiate(Folder, {"root": "x", "normal_dir": "g", "batch_size": 0}),
     "Folder: batch_size must be at least 1, got 0"),
    (lambda: instantiate(CrossDataset, {"train": {"class_path": "MVTecLayot"}, "test": []}),
     "CrossDataset: train: there is no class 'MVTecLayot' that fits here; did you mean 'MVTecLayout'."),
    (lambda: prepare(Taker, {"number": "x"}, later=["ready"]), "Taker: number: expected a whole number, got x."),
    (lambda: prepare(Taker, {"number": -1}, "a.ckpt", ["ready"])(ready=1),
     "a.ckpt: number must not be negative, got -1"),
    (lambda: prepare(Taker, {"loose": 3}, later=["ready"])(ready=1), "Taker: object of type 'int' has no len()"),
    (lambda: prepare(Taker, {"number": 13}, later=["ready"])(ready=1), "thirteen.png cannot be read"),
    (lambda: all_arguments(ClipBackbone, {"image_size": "large"}),
     "ClipBackbone: image_size: expected a whole number or tuple or null, got large."),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_every_refusal_is_one_message(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_constructors_own_words_are_found_under_the_parsers(tmp_path: Path) -> None:
    inner = {"class_path": f"{MVTecLayout.__module__}.MVTecLayout", "init_args": {"root": "x", "batch_size": -1}}
    section = {"class_path": f"{CrossDataset.__module__}.CrossDataset", "init_args": {"train": inner, "test": [inner]}}
    with pytest.raises(UserError) as caught:
        instantiate_subclass(AnomalyData, section)
    assert str(caught.value) == "batch_size must be at least 1, got -1"


class Misspelt(Folder):
    """A class of a user with a mistake in its code."""

    def __init__(self, root: str) -> None:
        super().__init__(roott)  # type: ignore[name-defined]  # noqa: F821


def test_a_mistake_in_the_code_of_a_class_is_named_with_its_line(tmp_path: Path) -> None:
    line = Misspelt.__init__.__code__.co_firstlineno + 1
    section = {"class_path": f"{__name__}.Misspelt", "init_args": {"root": str(tmp_path)}}
    with pytest.raises(UserError) as caught:
        instantiate_subclass(AnomalyData, section)
    assert str(caught.value) == f"name 'roott' is not defined (NameError in {__file__}, line {line})"


def test_a_fault_of_the_program_is_not_a_user_error() -> None:
    with pytest.raises(AttributeError), refusals():
        raise AttributeError("a fault")
