"""Both wheels: their contents; and the runtime's wheel in its own environment, without torch."""

import csv
import json
import re
import shutil
import sys
import zipfile
from math import isfinite
from pathlib import Path

import pytest

import afclip_runtime
from tests.support import REPOSITORY
from tests.support.bundles import write_bundle
from tests.support.deploy import RUNTIME, normal, run
from tests.support.uploads import encoded, picture

pytestmark = pytest.mark.slow

TOO_HEAVY = {"torch", "lightning", "open-clip-torch", "timm", "opencv-python-headless", "scipy", "albumentations"}
NEEDED = ("afclip_lightning", "afclip_runtime", "configs", "pyproject.toml", "CHANGELOG.md", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of `make wheels`, built from a copy because builds leave files behind."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheels")
    for name in NEEDED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree)
    (recipe,) = re.findall(r"pip wheel .*", (REPOSITORY / "Makefile").read_text(encoding="utf-8"))
    run(sys.executable, "-m", *recipe.replace("dist ", f"{out} ").split(), cwd=tree)
    return {path.name.partition("-")[0]: path for path in out.glob("*.whl")}


def names_in(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_both_hold_the_runtime_whole_and_one_version(wheels: dict[str, Path]) -> None:
    assert set(wheels) == {"afclip_lightning", "afclip_runtime"}
    assert {path.name.split("-")[1] for path in wheels.values()} == {afclip_runtime.__version__}
    sources = {path.relative_to(REPOSITORY).as_posix() for path in RUNTIME.rglob("*.py")}
    pages = {path.relative_to(REPOSITORY).as_posix() for path in (RUNTIME / "serving/web").iterdir()}
    assert pages
    sources |= {"afclip_runtime/py.typed"}
    for name, wheel in wheels.items():
        assert sources | pages <= names_in(wheel), name
        assert any(path.endswith("licenses/LICENSE") for path in names_in(wheel)), name
    contents = [[zipfile.ZipFile(wheel).read(path) for path in sorted(sources | pages)] for wheel in wheels.values()]
    assert contents[0] == contents[1], "whoever installs both gets one runtime"
    assert f"afclip_runtime-{afclip_runtime.__version__}-py3-none-any.whl" in (RUNTIME / "README.md").read_text()
    runtime = {path for path in names_in(wheels["afclip_runtime"]) if ".dist-info/" not in path}
    assert runtime == sources | pages


@pytest.fixture(scope="module")
def python(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of a fresh environment in which the runtime's wheel is installed, with an engine."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", folder)
    found = folder / "bin/python"
    flags = ["--quiet", "--disable-pip-version-check", "--constraint", REPOSITORY / "constraints.txt"]
    run(found, "-m", "pip", "install", *flags, f"{wheels['afclip_runtime']}[onnx]")
    return str(found)


def test_the_runtime_brings_nothing_heavy(python: str) -> None:
    listed = json.loads(run(python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"))
    installed = {normal(package["name"]) for package in listed}
    assert {"afclip-runtime", "numpy", "onnxruntime"} <= installed
    assert not installed & TOO_HEAVY
    size = sum(path.stat().st_size for path in Path(python).parents[1].rglob("*") if path.is_file())
    print(f"the environment has {len(installed)} packages and {size / 2**20:.0f} MB")


def test_it_judges_images_there(python: str, tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle")
    (tmp_path / "photos").mkdir()
    for seed in range(3):
        (tmp_path / f"photos/{seed}.png").write_bytes(encoded(picture(seed)))
    assert "inspect" in run(python, "-m", "afclip_runtime", "--help", cwd=tmp_path)
    for verb in ("inspect", "calibrate", "serve", "health"):
        run(python, "-m", "afclip_runtime", verb, "--help", cwd=tmp_path)
    run(python, "-m", "afclip_runtime", "inspect", "--bundle", "bundle", "photos", "--out", "out", cwd=tmp_path)
    with (tmp_path / "out/inspections.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert all(isfinite(float(row["score"])) for row in rows)
