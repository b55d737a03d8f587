"""The loading benchmark measures the stated quantities, on a few small images."""

import importlib.util
import json
from pathlib import Path

import pytest

from afclip_lightning.data.loading_options import Loading

SCRIPT = Path(__file__).parents[2] / "experiments/loading/benchmark.py"
SPEC = importlib.util.spec_from_file_location("loading_benchmark", SCRIPT)
assert SPEC
assert SPEC.loader
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)


def test_every_pass_walks_all_images(tmp_path: Path) -> None:
    benchmark.draw_images(tmp_path / "images", 5, 40, benchmark.FORMATS["mixed"])
    paths = sorted((tmp_path / "images").iterdir())
    assert [path.suffix for path in paths] == [".png", ".jpg", ".png", ".jpg", ".png"]
    assert benchmark.plain_loop(paths, 28) == 5
    assert benchmark.plain_loops(paths, 28, 2) == 5
    with pytest.raises(RuntimeError, match="a process of the plain loop failed"):
        benchmark.plain_loops([tmp_path / "gone.png"], 28, 1)
    for loading in (Loading(), Loading(draft=True), Loading(cache_mb=1)):
        assert benchmark.loader_pass(paths, 28, 2, 0, loading)() == 5


def test_ratios_are_of_the_same_round() -> None:
    speeds = {"plain": [10.0, 1.0, 100.0], "ours": [20.0, 3.0, 100.0]}
    assert benchmark.ratios(speeds, "plain") == {"plain": 1.0, "ours": 2.0}


@pytest.mark.slow
def test_the_script_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--count=3", "--size=40", "--input=28", "--workers=1", "--rounds=1", "--format=jpg"]
    benchmark.main([*small, f"--json={tmp_path / 'r.json'}"])
    assert "| plain Pillow loop | 1.00× |" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "r.json").read_text())["ratios"]) == 7
