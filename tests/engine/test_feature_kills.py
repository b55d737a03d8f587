"""`features build --launcher`: ten kills in all phases of the work lose nothing and repeat nothing that is finished."""

import random
import subprocess
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from afclip_lightning.backbones import store_files
from tests.support.clips import small_config
from tests.support.commands import subprocess_of
from tests.support.feature_kills import PHASES, KilledBuild, lock_holders, write_slow_set
from tests.support.processes import contents
from tests.support.table_runs import options, write_set

pytestmark = pytest.mark.slow

PARTS = [f"part{number:02d}" for number in range(40)]  # a part is a chunk
IMAGES, TAPS = 24, 2
TRAINED = 4


def start(folder: Path, store: str, *extra: str) -> "subprocess.Popen[str]":
    command = ["features", "build", *options("AFCLIP", tests=PARTS), f"--features.cache={store}", *extra]
    return subprocess_of(command, cwd=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and the features of one process in `whole`."""
    folder = tmp_path_factory.mktemp("kills")
    small_config(folder)
    write_set(folder / "train", 0, {("a", 0): TRAINED - 1, ("a", 1): 1})
    for number, part in enumerate(PARTS):
        write_slow_set(folder / part, IMAGES, number)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where the options are written
        process = start(folder, "whole")
        said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert len(contents(folder / "whole")) == TAPS * (TRAINED + IMAGES * len(PARTS))
    return folder


@pytest.fixture
def at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def victims(seed: int) -> list[str]:
    """Returns ten victims: eight workers, two in each phase, and two drivers."""
    phases = [*PHASES, *PHASES]
    random.Random(seed).shuffle(phases)
    return [*phases[:3], "driver", *phases[3:6], "driver", *phases[6:]]


@pytest.mark.parametrize(("launcher", "seed"), [("local", 25), ("ray", 26)])
def test_ten_kills_lose_nothing_and_repeat_nothing(
    launcher: str, seed: int, at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE", str(at / launcher))  # by which its processes are found
    build = KilledBuild(
        partial(start, at, launcher, f"--launcher={launcher}", "--jobs=2"), at / launcher, launcher, seed
    )
    said = build.run(victims(seed))
    assert Counter(build.killed) == {"driver": 2, **dict.fromkeys(PHASES, 2)}
    assert "leaked" not in said  # as bindings made with nanobind say at the end of a worker
    assert store_files.verify(at / launcher) == []
    assert contents(at / launcher) == contents(at / "whole")


def test_two_builds_share_the_chunks(at: Path) -> None:
    pair = [start(at, "shared", "--launcher=local") for _ in range(2)]
    holders: set[int] = set()
    while any(process.poll() is None for process in pair):
        holders |= {pid for _, pid, _ in lock_holders(at / "shared")}
    said = [process.communicate()[0] for process in pair]
    codes = [process.returncode for process in pair]
    assert 0 in codes, said
    assert set(codes) <= {0, 75}, said
    assert {process.pid for process in pair} <= holders
    assert sum("are not computed yet: another build has them" in text for text in said) == codes.count(75)
    assert contents(at / "shared") == contents(at / "whole")
    again = start(at, "shared", "--launcher=local")
    assert f"Features: {Path('shared')}" in again.communicate()[0]
    assert again.returncode == 0
    assert contents(at / "shared") == contents(at / "whole")
