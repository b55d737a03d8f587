"""Blocks of README and docs that need only the package run, page by page, as a reader runs them.

The blocks of a page run in order in one folder, which holds what pages call `RUN`, `photos`, `good` and so on. Runs of
the demo see a few drawn images of two categories, for one epoch.
"""

import shutil
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from afclip_lightning.__main__ import main
from tests.support import REPOSITORY
from tests.support.blocks import Block, blocks, commands, program_of

pytestmark = pytest.mark.slow
RUNS = {"fit", "validate", "test", "predict"}
SMALL = """
test_before_fit: false
data:
  class_path: CrossDataset
  init_args:
    train:
      class_path: Synthetic
      init_args: {root: DATA/trained, categories: [cloth], test_normal: 4, test_anomalous: 8, num_workers: 0}
    test:
    - class_path: Synthetic
      init_args: {root: DATA/tested, categories: [metal], test_normal: 8, test_anomalous: 8, num_workers: 0}
"""
STAND_INS = {"a run", "photos of your own"}
RUNNABLE = sorted(
    (block for block in [*blocks("bash"), *blocks("python")] if set(block.needs) <= STAND_INS),
    key=lambda block: (block.page, block.line),
)
PAGES = {page: list(found) for page, found in groupby(RUNNABLE, key=lambda block: block.page)}


def run(args: list[str]) -> int:
    """Runs a command in this process, a run of the demo on the small data, and returns its exit code."""
    if args[0] in RUNS and any(arg.endswith("_demo.yaml") for arg in args):
        args = [*args, "--config", "small.yaml", *(["--trainer.max_epochs", "1"] if args[0] == "fit" else [])]
    sys.argv = ["afclip", *args]
    return main()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yields a folder with what pages name: a trained run, photos, normal images, maps with their masks."""
    folder: Path = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", sys.argv)
        for name in ("configs", "experiments"):
            (folder / name).symlink_to(REPOSITORY / name)
        (folder / "small.yaml").write_text(SMALL.replace("DATA", str(folder / "data")))
        assert run(["fit", "--config", "configs/afclip_demo.yaml", "--out", "RUN"]) == 0
        metal = folder / "data/tested/metal"
        shutil.copytree(metal / "train/good", folder / "good")
        (folder / "photos").mkdir()
        for image in [*sorted((metal / "test").rglob("*.png"))[:2], *sorted((metal / "test/good").glob("*.png"))[:2]]:
            shutil.copy(image, folder / f"photos/{image.parent.name}_{image.name}")
        for name in ("bolts", "good_bolts"):
            shutil.copytree(folder / ("photos" if name == "bolts" else "good"), folder / name)
        for name, image in zip(("image", "bolt", "good1", "good2"), sorted((folder / "good").iterdir()), strict=False):
            shutil.copy(image, folder / f"{name}.png")
        yield folder


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a copy of that folder, which is the working folder. Its data are those that the demo draws."""
    shutil.copytree(world, tmp_path / "here", symlinks=True, ignore=shutil.ignore_patterns("data"))
    drawn = tmp_path / "here/data/synthetic"
    drawn.mkdir(parents=True)
    (drawn / "metal").symlink_to(world / "data/tested/metal")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "argv", sys.argv)
    return tmp_path / "here"


def run_block(block: Block) -> None:
    """Runs a block; a command that fails, or a line of Python, fails the test with its place."""
    if block.language == "python":
        random = np.random.default_rng(0)
        maps = random.random((4, 16, 16))
        given = {"anomaly_map": maps, "mask": maps > 0.9, "pred_score": maps.max((1, 2)), "label": [1, 0, 1, 0]}
        exec(compile(block.text, block.place, "exec"), given)
        return
    for words in commands(block.text):
        program, args = program_of(words)
        assert program == "afclip", f"{block.place}: {program} does not run here; say what it needs"
        assert run(args) == 0, f"{block.place}: afclip {' '.join(args)}"


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.usefixtures("here")
def test_the_blocks_of_a_page_run(page: str) -> None:
    for block in PAGES[page]:
        run_block(block)
