"""A run of seconds: a random CLIP of three blocks, trained on one small folder and tested on another."""

from pathlib import Path

from afclip_lightning.engine.app import main
from tests.support.clips import small_config
from tests.support.layouts.mvtec import write_mvtec

BASE = """
seed_everything: 0
trainer: {max_epochs: 1, accelerator: cpu, logger: false, enable_progress_bar: false, enable_model_summary: false}
model:
  class_path: AFCLIP
  init_args:
    backbone: {model: small.json, weights: random, image_size: 28}
    layers: [1, 2, 3]
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 1.0e-3}}
data:
  class_path: CrossDataset
  init_args:
    train: {class_path: MVTecLayout, init_args: {root: trained, num_workers: 0}}
    test: [{class_path: MVTecLayout, init_args: {root: tested, num_workers: 0}}]
pictures: {count: 0}
"""


def write_small_run(folder: Path) -> None:
    """Writes the two sets, the backbone and `base.yaml`; everything in it is relative to the folder."""
    write_mvtec(folder / "trained", ["bottle"])
    write_mvtec(folder / "tested", ["cable"])
    small_config(folder)
    (folder / "base.yaml").write_text(BASE)


def run(command: str, *args: str, config: str = "base.yaml") -> int:
    """Runs a command in the working folder, like a separate process, and returns its exit code."""
    try:
        return main([command, f"--config={config}", *args])
    except SystemExit as stop:
        return int(stop.code or 0)
