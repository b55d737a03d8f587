"""The wheel and all that it needs, downloaded into an empty environment: what the README shows runs there."""

import csv
import os
import sys
from pathlib import Path

import pytest

from tests.support import REPOSITORY
from tests.support.blocks import blocks_of
from tests.support.deploy import build_distributions, outside_environment, run

pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.skipif("AFCLIP_NETWORK" not in os.environ, reason="downloads 3 GB: set AFCLIP_NETWORK to run it"),
]
DRAWN = """
from afclip_lightning.datasets.synthetic import Synthetic

Synthetic("drawn", ["metal"], train_normal=2, test_normal=1, test_anomalous=1).prepare_data()
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with an sdist of the repository, and a wheel that was built from the sdist."""
    return build_distributions(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def scripts(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `bin` of a new environment, into which pip installed the wheel and all packages that it needs."""
    folder: Path = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", folder)
    (wheel,) = dist.glob("*.whl")
    flags = ["--quiet", "--disable-pip-version-check", "--constraint", REPOSITORY / "constraints.txt"]
    run(folder / "bin/python", "-m", "pip", "install", *flags, wheel, timeout=3600, env=outside_environment())
    return folder / "bin"


def test_what_the_readme_shows_runs_there(scripts: Path, tmp_path: Path) -> None:
    def do(program: str, *args: str) -> str:
        environment = {**outside_environment(), "HOME": str(tmp_path / "home")}
        return run(scripts / program, *args, timeout=3600, cwd=tmp_path / "work", env=environment)

    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    assert "inspect" in do("afclip", "--help")
    assert "inspect" in do("python", "-m", "afclip_runtime", "--help")

    do("afclip", "demo", "--out", "run")
    with (tmp_path / "work/run/results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["category"].startswith("mean")
    assert float(rows[-1]["pixel_auroc"]) > 0.85

    do("python", "-c", DRAWN)
    (image,) = (tmp_path / "work/drawn/metal/test/good").glob("*.png")
    image.rename(tmp_path / "work/bolt.png")
    (code,) = (block.text for block in blocks_of(REPOSITORY / "README.md") if block.language == "python")
    assert 'load("real")' in code  # which the extra `real` brings
    score, verdict = do("python", "-c", code.replace('load("real")', 'load("run/head.ckpt")')).splitlines()[-1].split()
    assert 0 <= float(score) <= 1
    assert verdict == "None"

    do("afclip", "inspect", "--checkpoint", "run/head.ckpt", "drawn/metal/train/good", "--out", "inspected")
    with (tmp_path / "work/inspected/inspections.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_the_package_index_can_show_it(dist: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(tmp_path / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "twine")
    assert "FAILED" not in run(tmp_path / "venv/bin/twine", "check", "--strict", *dist.iterdir())
