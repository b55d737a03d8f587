"""Deployment: the Dockerfile as instructions, sdist and wheel, and the tools that check deployment files."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.support import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
RUNTIME = REPOSITORY / "afclip_runtime"


@dataclass
class Stage:
    """A stage of a Dockerfile.

    Attributes:
        name: Its name.
        base: The image or the stage that it starts from.
        steps: Its instructions with their values, in order.
    """

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def value(self, instruction: str) -> str:
        """Returns the value of the last instruction of a kind; "" without one."""
        return next((value for kind, value in reversed(self.steps) if kind == instruction), "")


def stages() -> dict[str, Stage]:
    """Returns the stages of the Dockerfile by name."""
    from dockerfile_parse import DockerfileParser

    found: dict[str, Stage] = {}
    parser = DockerfileParser(path=str(DEPLOY / "Dockerfile"))
    for step in parser.structure:
        kind, value = step["instruction"], step["value"]
        if kind == "FROM":
            base, _, name = re.split(r"\s+(as|AS)\s+", value)
            found[name] = Stage(name, base)
        elif found and kind != "COMMENT":
            list(found.values())[-1].steps.append((kind, value))
    return found


def steps_of(name: str) -> list[tuple[str, str]]:
    """Returns the instructions of a stage after those of the stages that it starts from."""
    stage = stages()[name]
    return [*(steps_of(stage.base) if stage.base in stages() else []), *stage.steps]


def tool(name: str) -> str:
    """Returns the path of a tool from a package; skips the test if it is missing."""
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def run(*command: str | Path, timeout: float = 600, **options: object) -> str:
    """Returns what a command prints; fails the test with it if the command fails."""
    done = subprocess.run(  # type: ignore[call-overload]
        list(map(str, command)), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return str(done.stdout)


def build_distributions(folder: Path) -> Path:
    """Returns the folder after it got an sdist of the repository, and a wheel that was built from the sdist."""
    run(sys.executable, "-m", "build", "--outdir", folder, REPOSITORY, cwd=folder)
    return folder


def outside_environment() -> dict[str, str]:
    """Returns the variables of this process without those that lead to the checkout, its data and its settings."""
    ours = ("PYTHONPATH", "WANDB_MODE")
    return {name: value for name, value in os.environ.items() if name not in ours and not name.startswith("AFCLIP_")}


def project_of(folder: Path) -> dict[str, Any]:
    """Returns the section `project` of a folder's pyproject.toml."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib  # type: ignore[no-redef]
    project: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def runtime_project() -> dict[str, list[Requirement]]:
    """Returns what the runtime's pyproject.toml requires: by extra, and without one under ""."""
    project = project_of(RUNTIME)
    named = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in named.items()}


def pinned() -> set[str]:
    """Returns the names, in small letters with hyphens, that constraints.txt pins."""
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {normal(line.partition("==")[0]) for line in lines if "==" in line and not line.startswith("#")}


def normal(name: str) -> str:
    """Returns the name of a package as the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()
