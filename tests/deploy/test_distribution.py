"""The sdist and the wheel of `python -m build`: complete, and able to run the demo without a checkout."""

import csv
import subprocess
import sys
import sysconfig
import tarfile
from email.parser import BytesParser
from pathlib import Path

import pytest

import afclip_runtime
from experiments.docs_site.repository import is_local, links
from tests.support import REPOSITORY
from tests.support.deploy import build_distributions, outside_environment, run

pytestmark = pytest.mark.slow

CLUTTER = ("tests", "docs", "findings", "experiments", "data", "runs", "site", ".venv", ".git")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with an sdist of the repository, and a wheel that was built from the sdist."""
    return build_distributions(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def program(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`afclip` of a fresh environment with only the wheel. Other packages come from the tests' environment."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", folder)
    (wheel,) = dist.glob("*.whl")
    run(folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", wheel)
    (places,) = folder.glob("lib/python*/site-packages")
    (places / "others.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")  # its own .pth do not count
    return folder / "bin/afclip"


def test_the_sdist_holds_the_project_and_no_clutter(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
        (metadata,) = [name for name in file.getnames() if name.count("/") == 1 and name.endswith("/PKG-INFO")]
        content = file.extractfile(metadata)
        assert content is not None
        facts = BytesParser().parse(content)
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    wanted = [n for n in tracked.splitlines() if n.startswith(("afclip_lightning/", "afclip_runtime/", "configs/"))]
    assert set(wanted) <= names
    assert not [name for name in names if name.partition("/")[0] in CLUTTER]
    assert facts["Version"] == afclip_runtime.__version__
    assert facts["License-Expression"] == "Apache-2.0"
    assert facts["Summary"]
    assert facts.get_all("Classifier")
    assert facts["License-File"] == "LICENSE"
    assert facts["Description-Content-Type"] == "text/markdown"
    text = facts.get_payload()
    assert text.startswith("# afclip_lightning")
    assert "in the README of a checkout" in text
    assert [target for target in links(text) if is_local(target)] == []  # the package index has no such files


def test_the_demo_runs_without_a_checkout(program: Path, tmp_path: Path) -> None:
    environment = outside_environment()
    where = run(
        program.with_name("python"),
        "-c",
        "import afclip_lightning as a; print(a.__file__)",
        cwd=tmp_path,
        env=environment,
    )
    assert str(program.parents[1]) in where
    run(program, "demo", "--out", "out", "--trainer.max_epochs", "1", cwd=tmp_path, env=environment)
    with (tmp_path / "out/results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["category"] for row in rows][-1].startswith("mean")
    assert all(float(row["pixel_auroc"]) > 0.5 for row in rows[-1:])
    assert (tmp_path / "out/head.ckpt").is_file()
