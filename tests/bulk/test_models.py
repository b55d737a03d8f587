"""The models of both programs give the same results with and without shards: torch, graphs, several methods."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from afclip_lightning.cli import inspect as of_lightning
from afclip_runtime.cli import inspect as of_runtime
from tests.support.bundles import write_bundle
from tests.support.sharded import rows_of, write_tar
from tests.support.small_head import MODEL_OPTIONS, write_pictures

pytestmark = pytest.mark.slow

SHARDS = ("--launcher", "local", "--shard_images", "2")
COLUMNS = ("method", "score", "verdict", "area", "regions", "threshold_from", "error")
BY_HAND = ("--threshold", "0.3", "--pixel_threshold", "0.4")
METHODS = ("--methods", "CLIP,WinCLIP", *MODEL_OPTIONS)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "images", 5)
    monkeypatch.chdir(tmp_path)


def both(main: Callable[[Sequence[str]], int], *args: str, sources: Sequence[str] = ("images",)) -> list[list[str]]:
    """Returns the rows of the table without shards, after checking that the parts have the same."""
    assert main(["images", *args, "--out", "plain", "--save", "map"]) == 0
    assert main([*sources, *args, "--out", "out", "--save", "map", *SHARDS]) == 0
    with Path("plain/inspections.csv").open(newline="") as file:
        table = [[row.get(name, "") for name in COLUMNS] for row in csv.DictReader(file)]
    parts = [[cell(row[name]) for name in COLUMNS] for row in rows_of(Path("out").absolute())]
    assert sorted(parts) == sorted(table)
    assert (
        len(list(Path("plain").rglob("maps/**/*.png"))) == len(list(Path("out").rglob("maps/**/*.png"))) == len(table)
    )
    return table


def cell(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else "" if value is None else str(value)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_bundle(engine: str, bundle: Path) -> None:
    table = both(of_runtime.main, "--bundle", str(bundle), "--engine", engine, "--batch_size", "1", *BY_HAND)
    assert len(table) == 5


def test_several_methods_by_torch_on_an_archive() -> None:
    write_tar(Path("images.tar"), Path("images"))
    table = both(of_lightning.main, *METHODS, "--batch_size", "1", sources=["images.tar"])
    assert {row[0] for row in table} == {"CLIP", "WinCLIP"}
    assert len(table) == 10


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["images", "--axis", "axial"], "--axis does not go with --launcher local"),
        (["images", "--save", "coco"], "--save coco does not go with --launcher local"),
        (["images/000.png", "--feedback", "normal"], "--feedback does not go with --launcher local"),
        (["images", "--white", "auto"], "--white auto is estimated from images, and there are none here"),
    ],
)
def test_what_is_not_by_shards(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert of_lightning.main([*args, "--methods", "CLIP", *MODEL_OPTIONS, *SHARDS]) == 2
    assert said in capsys.readouterr().err
