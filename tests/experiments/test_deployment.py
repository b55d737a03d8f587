"""What deployment costs: packages count with their extras, tables hold measured values, no number without a GPU."""

import json
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from experiments.deployment import tensorrt_speed
from experiments.deployment.installed_size import required, size
from experiments.deployment.measure import Command, costs
from experiments.deployment.table import RESULTS, costs_table, sizes_table, speed_table
from tests.support import REPOSITORY


def test_packages_are_counted_with_what_they_require() -> None:
    found = required(["jsonargparse[signatures]"])
    assert {"jsonargparse", "docstring-parser", "pyyaml"} <= found.keys()
    assert "docstring-parser" not in required(["jsonargparse"])
    assert required(["no-such-package"]) == {}


def test_a_size_is_that_of_the_files_on_disk() -> None:
    package = distribution("filelock")
    files = [Path(str(package.locate_file(file))) for file in package.files or ()]
    assert size(package) == sum(file.stat().st_size for file in files if file.is_file()) > 10_000


@pytest.mark.slow
def test_a_command_is_measured_beside_the_first(tmp_path: Path) -> None:
    small = Command([sys.executable, "-c", "pass"], tmp_path)
    large = Command([sys.executable, "-c", "x = bytearray(200_000_000); sum(range(10**7))"], tmp_path)
    found = costs({"small": small, "large": large}, tmp_path, threads=1, rounds=2)
    assert found["small"]["memory_bytes_ratio"] == 1
    assert found["large"]["memory_bytes_ratio"] > 5
    assert found["large"]["processor_seconds_ratio"] > 2
    with pytest.raises(RuntimeError, match="ended with 3"):
        Command([sys.executable, "-c", "raise SystemExit(3)"], tmp_path).cost(tmp_path, 1)


def test_the_guide_has_the_numbers_that_were_measured() -> None:
    results = json.loads(RESULTS.read_text("utf-8"))
    guide = (REPOSITORY / "docs/deployment.md").read_text("utf-8")
    for table in (sizes_table, costs_table, speed_table):
        assert table(results) in guide, "python -m experiments.deployment.table prints the tables of the guide"


def test_without_tensorrt_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tensorrt_speed", str(tmp_path)])
    assert tensorrt_speed.main() == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "pip install onnxruntime-gpu tensorrt" in said.err
