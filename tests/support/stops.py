"""Runs that a signal stops, and that end like uninterrupted runs."""

from pathlib import Path

import pytest
import torch

from afclip_runtime.launch import signals
from tests.support.commands import table


def stop_after(looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a run see a stop request after a number of checks."""
    answers = iter([False] * looks)
    monkeypatch.setattr(signals, "requested", lambda: next(answers, True))


def assert_same_end(first: Path, second: Path) -> None:
    runs = [torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (first, second)]
    for key in ("state_dict", "optimizer_states", "global_step", "epoch"):
        torch.testing.assert_close(runs[0][key], runs[1][key], rtol=0, atol=0)
    torch.testing.assert_close(*(run["callbacks"]["Preemption"] for run in runs), rtol=0, atol=0)
    assert table(first / "results.csv") == table(second / "results.csv")
