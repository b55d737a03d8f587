"""The benchmark of the adaptation measures the stated quantities."""

import importlib.util
import json
from pathlib import Path

import pytest

from tests.support.clips import small_config

SCRIPT = Path(__file__).parents[2] / "experiments/methods/dual_image_benchmark.py"
SPEC = importlib.util.spec_from_file_location("dual_image_benchmark", SCRIPT)
assert SPEC
assert SPEC.loader
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)


def test_ratios_are_of_the_same_round() -> None:
    taken = {"without": [1.0, 10.0], "with": [3.0, 30.0], "extra pass": [0.5, 5.0]}
    assert benchmark.ratios(taken) == {
        "without": 1.0,
        "with": 3.0,
        "extra pass": 0.5,
        "with, the extra pass aside": 2.5,
    }


def test_the_script_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_config(tmp_path)
    benchmark.main([f"--model={model}", "--rounds=1", "--batch_size=2", f"--json={tmp_path / 'r.json'}"])
    assert "| without | 1.000 |" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "r.json").read_text())["ratios"]) == 5
