"""The progress display of a run is the same with any installed packages."""

from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelSummary, TQDMProgressBar
from lightning.pytorch.trainer.connectors import callback_connector

from afclip_lightning.engine import flows
from afclip_lightning.engine.flows import Run
from afclip_lightning.engine.run_parts import display_callbacks
from tests.support.small_run import run, write_small_run

QUIET = "--trainer.enable_progress_bar=false"


class Other(TQDMProgressBar):
    """A progress bar chosen by a user."""


def test_what_the_user_chose_or_left_out_stays() -> None:
    assert [type(callback) for callback in display_callbacks([], True, True)] == [TQDMProgressBar, ModelSummary]
    assert [type(callback) for callback in display_callbacks([Other()], True, True)] == [ModelSummary]
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
    assert [type(callback) for callback in trainer.callbacks if isinstance(callback, ModelSummary)] == [ModelSummary]
