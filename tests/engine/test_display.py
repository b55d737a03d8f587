"""What a run prints on its progress is the same with any installed packages, and says nothing that is of no use."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelSummary, TQDMProgressBar
from lightning.pytorch.trainer.connectors import callback_connector

from afclip_lightning.engine import flows
from afclip_lightning.engine.callbacks.summary import ParameterSummary
from afclip_lightning.engine.flows import Run
from afclip_lightning.engine.run_parts import display_callbacks
from tests.support.small_run import run, write_small_run

NOISE = """
import logging, warnings
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from afclip_lightning.engine.quiet import quiet_libraries, quiet_worker
quiet_libraries()
QUIET
for text in (
    "The `srun` command is available on your system but is not used. HINT: …",
    "`isinstance(treespec, LeafSpec)` is deprecated, use …",
    "The 'train_dataloader' does not have many workers which may be a bottleneck.",
    "It is recommended to use `self.log('test/a/mean/pixel_ap', ..., sync_dist=True)` when logging on epoch level …",
    "the disk is slow",
):
    rank_zero_warn(text)
for text in (
    "💡 Tip: For seamless cloud uploads and versioning, …",
    "GPU available: False, used: False",
    "GPU available: True (cuda), used: True",
    "GPU available: True (cuda), used: False",
    "TPU available: False, using: 0 TPU cores",
    "Trainer already configured with model summary callbacks: [<class …>].",
    "Backbone: tiny",
):
    rank_zero_info(text)
"""
QUIET = "--trainer.enable_progress_bar=false"


class Other(TQDMProgressBar):
    """A progress bar chosen by a user."""


def test_what_the_user_chose_or_left_out_stays() -> None:
    assert [type(callback) for callback in display_callbacks([], True, True)] == [TQDMProgressBar, ParameterSummary]
    assert [type(callback) for callback in display_callbacks([Other()], True, True)] == [ParameterSummary]
    assert [type(callback) for callback in display_callbacks([ModelSummary()], True, True)] == [TQDMProgressBar]
    assert display_callbacks([], False, False) == []


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--trainer.enable_progress_bar=true"], [QUIET]])
def test_an_extra_changes_no_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    """With `rich`, which the extra `hub` installs, Lightning uses other bars by default."""
    monkeypatch.chdir(tmp_path)
    write_small_run(tmp_path)
    monkeypatch.setattr(callback_connector, "_RICH_AVAILABLE", True)
    seen: list[Run] = []
    monkeypatch.setattr(flows, "test", seen.append)
    assert run("test", "--trainer.enable_model_summary=true", *options) == 0
    trainer = seen[0].trainer
    bar = trainer.progress_bar_callback
    assert (bar is None) if QUIET in options else (type(bar) is TQDMProgressBar)
    assert [type(callback) for callback in trainer.callbacks if isinstance(callback, ModelSummary)] == [
        ParameterSummary
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quiet", "lines"), [("", ["GPU available: True (cuda), used: False", "Backbone: tiny"]), ("quiet_worker()", [])]
)
def test_what_is_of_no_use_is_silenced_and_the_rest_comes_through(quiet: str, lines: list[str]) -> None:
    command = [sys.executable, "-c", NOISE.replace("QUIET", quiet)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr.splitlines()
    assert [line for line in said if "available" in line or "Backbone" in line] == lines
    warned = [line for line in said if line not in lines]
    assert len(warned) == 1
    assert warned[0].endswith("the disk is slow")


@pytest.mark.parametrize(("flops", "shown"), [(0, False), (2000, True)])
def test_operations_that_were_not_counted_are_left_out(
    flops: int, shown: bool, caplog: pytest.LogCaptureFixture
) -> None:
    columns = [("  ", ["0"]), ("Name", ["head"]), ("Params", ["1.2 M"]), ("FLOPs", [str(flops)])]
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):  # which a worker of a test silences
        caplog.set_level("INFO", logger=name)
    logging.getLogger("lightning.pytorch").addHandler(caplog.handler)
    try:
        ParameterSummary.summarize(columns, 3_000_000, 1_200_000, 12.0, {"train": 1, "eval": 0}, flops)
    finally:
        logging.getLogger("lightning.pytorch").removeHandler(caplog.handler)
    assert ("flops" in caplog.text.lower()) == shown
    if not shown:
        assert "0  | head | 1.2 M" in caplog.text
        assert caplog.text.rstrip().endswith("Parameters: 1.2 M trained, 1.8 M frozen")
