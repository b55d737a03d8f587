"""Small jobs of the commands that use the launcher, and the comparison of their outputs.

A unit of work takes a second or more, so that two machines which begin some moments apart both get some.
"""

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet

from afclip_lightning.backbones import store_files
from afclip_lightning.backbones.store_layout import feature_files
from tests.support import REPOSITORY
from tests.support.bundles import write_bundle
from tests.support.clips import small_config
from tests.support.kills import write_slow_images
from tests.support.layouts.mvtec import write_mvtec
from tests.support.processes import assert_alike, rows
from tests.support.sweeps import write_sweep
from tests.support.table_runs import write_set

DRAWN = "root: drawn, image_size: 112, train_normal: 2, test_normal: 4, test_anomalous: 4"
MATRIX = f"""
methods:
  Patch rarity: {{configs: [{REPOSITORY}/configs/patch_rarity_demo.yaml], trains: false}}
datasets:
  one: {{class_path: Synthetic, init_args: {{{DRAWN}, categories: [cloth]}}}}
  two: {{class_path: Synthetic, init_args: {{{DRAWN}, categories: [metal]}}}}
transfers: [{{train: one, test: [two]}}]
seeds: [0, 1, 2, 3, 4, 5, 6, 7]
published: {REPOSITORY}/experiments/published
"""
SIDE, SETS, SET = 3000, 5, 60  # pixels of an image; sets of images whose features are built, and images of a set
DEMO = f"--config={REPOSITORY}/configs/afclip_demo.yaml"
COMMANDS: dict[str, Sequence[str]] = {
    "inspect": ("afclip_runtime", "inspect", "images", "--bundle=bundle", "--shard_images=3", "--threads=1"),
    "features": ("afclip_lightning", "features", "build", DEMO, "--config=features.yaml"),
    "benchmark": ("afclip_lightning", "benchmark", "--config=matrix.yaml"),
    "sweep": ("afclip_lightning", "sweep", "--config=sweep.yaml"),
}
"""Program, verb and options of each, for the folder `work`."""
CODES = {"inspect": 1, "features": 0, "benchmark": 0, "sweep": 0}  # an image cannot be read
TABLES = {"benchmark": "results.csv", "sweep": "sweep.csv"}
LOGS = {"benchmark": "cells/*/log.txt", "sweep": "trials/*/output.log"}
LOCKS = {"inspect": "plan/locks/*/*.lock", "features": ".build/*/locks/*/*.lock"}
LASTING = ("parts/*/*.parquet", "*/*/*/*/*.safetensors", "cells/*/*/done.json")  # never written a second time


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the inputs of the commands; all paths in it are relative to the folder."""
    folder = tmp_path_factory.mktemp("spread") / "shared"
    folder.mkdir()
    write_bundle(folder / "bundle")
    damaged = write_slow_images(folder / "images", 18, SIDE)[7]
    damaged.unlink()
    damaged.write_bytes(b"no image")
    _write_sets(folder)
    (folder / "matrix.yaml").write_text(MATRIX)
    write_mvtec(folder / "data/mvtec", ["bottle", "cable", "capsule"], by_name=True)
    small_config(folder)
    write_sweep(folder / "sweep.yaml", 1, method="grid", parameters={"model.prompt_tokens": {"values": [2, 4, 6, 8]}})
    return folder


def _write_sets(folder: Path) -> None:
    """Writes sets of images, each of which is a unit of `features build`, and the config that reads them."""
    names = [f"set{number}" for number in range(SETS)]
    for number, name in enumerate(names):
        write_set(folder / name, number, {("a", 0): SET - 1, ("a", 1): 1})
    sets = [{"class_path": "Table", "init_args": {"root": name, "num_workers": 0, "batch_size": 4}} for name in names]
    config = {
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False},
        "data": {"init_args": {"train": sets[0], "test": sets[1:]}},
    }
    (folder / "features.yaml").write_text(yaml.safe_dump(config))


def to(verb: str, out: str | Path) -> str:
    """Returns the option of a command that says where its output goes."""
    return f"--{'features.cache' if verb == 'features' else 'out'}={out}"


def workers_of(verb: str, out: Path) -> set[str]:
    """Returns the machines that have begun a unit so far. They stand in the logs of units, else in their locks."""
    files, line = (LOGS, r"^== process \d+ on (.+)$") if verb in LOGS else (LOCKS, r"^ *\d+ \d+ on (.+)$")
    return {name for file in out.glob(files[verb]) for name in re.findall(line, _text(file), re.MULTILINE)}


def workers_until_the_end(verb: str, out: Path, process: subprocess.Popen[Any], timeout: float = 400) -> set[str]:
    """Waits for the end of a command, and returns the machines that have begun a unit. A build removes its locks."""
    end, found = time.monotonic() + timeout, set[str]()
    while process.poll() is None and time.monotonic() < end:
        found |= workers_of(verb, out)
        time.sleep(0.05)
    return found | workers_of(verb, out)


def results_in(out: Path) -> dict[Path, tuple[int, int]]:
    """Returns the files of finished work, each with what changes when it is written again."""
    files = [path for pattern in LASTING for path in out.glob(pattern)]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:  # removed meanwhile
        return ""


def of_one_process(verb: str, work: Path) -> Path:
    """Returns the output of a command that one process has run."""
    out = work / "one" / verb
    if not out.exists():
        command = [sys.executable, "-m", *COMMANDS[verb], "--launcher=local", to(verb, out)]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == CODES[verb], done.stdout + done.stderr
    return out


def assert_same_outcome(verb: str, found: Path, expected: Path) -> None:
    """Compares the outputs of a command: its table, the parts of one, or its files byte for byte."""
    if verb == "inspect":
        tables = [pa.concat_tables(map(parquet.read_table, parts(out))) for out in (expected, found)]
        assert tables[0].num_rows == 18
        assert tables[1].equals(tables[0])
        assert [part.relative_to(found) for part in parts(found)] == [p.relative_to(expected) for p in parts(expected)]
        return
    if verb == "features":
        stores = [{file.relative_to(o): file.read_bytes() for file in feature_files(o)} for o in (found, expected)]
        assert len({path.name for path in stores[1]}) == SETS * SET
        assert stores[0] == stores[1]
        assert store_files.verify(found) == []
        return
    tables = [rows(out / TABLES[verb]) for out in (expected, found)]
    for table in tables:
        for row in table:
            for column in [name for name in row if re.search("second|time", name)] + ["trial"]:
                row.pop(column, None)  # trials are numbered as they are claimed
        table.sort(key=lambda row: sorted(row.items()))
    assert len(tables[0]) >= 2
    assert_alike(tables[1], tables[0])


def parts(out: Path) -> list[Path]:
    return sorted(out.glob("parts/*/*.parquet"))
