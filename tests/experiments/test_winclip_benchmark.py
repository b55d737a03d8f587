"""The benchmark runs this project's WinCLIP like a user, and its table holds ratios."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.methods.winclip import WinCLIP
from tests.support.methods import batch_of, score

SCRIPT = Path(__file__).parents[2] / "experiments/methods/winclip_benchmark.py"
SPEC = importlib.util.spec_from_file_location("winclip_benchmark", SCRIPT)
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)


@pytest.mark.slow
def test_what_is_timed_is_winclip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "MODEL", "tiny-8-112")
    monkeypatch.setattr(benchmark, "SIZE", 112)
    monkeypatch.setattr(benchmark, "CATEGORY", "a")
    weights = tmp_path / "weights.pt"
    benchmark.write_weights(weights)
    measured = benchmark.measure("this project", tmp_path, 1, torch.get_num_threads(), torch.device("cpu"))
    assert measured["hooks"] == 0
    assert measured["seconds"] > 0
    batch = batch_of(1)
    batch.image = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    model = WinCLIP(ClipBackbone("tiny-8-112", str(weights), image_size=None), templates="code")
    expected = torch.cat([part.flatten() for part in score(model, batch)])
    kept = torch.from_numpy(np.load(tmp_path / "this project.npy"))
    torch.testing.assert_close(kept, expected)


def test_the_table_holds_ratios_of_medians() -> None:
    ours = [{"seconds": s, "cpu_seconds": 2 * s, "hooks": 0} for s in (1.0, 9.0, 2.0)]
    theirs = [{"seconds": s, "cpu_seconds": 3 * s, "hooks": 4} for s in (5.0, 5.0, 30.0)]
    lines = benchmark.table({"this project": ours, "anomalib": theirs}, 8, 2e-7).splitlines()
    assert lines[2:4] == ["| this project | 1.00× | 1.00× | 0 |", "| anomalib | 2.50× | 3.75× | 4 |"]
    assert lines[-1] == "Scores and maps differ by 2e-07 at most."
