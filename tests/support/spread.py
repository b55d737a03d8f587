"""Small jobs of the commands that use the launcher, and the comparison of their outputs."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.support import REPOSITORY
from tests.support.bundles import write_bundle
from tests.support.clips import small_config
from tests.support.layouts.mvtec import write_mvtec
from tests.support.processes import assert_alike, rows
from tests.support.small_head import write_pictures
from tests.support.sweeps import write_sweep

DRAWN = "root: drawn, image_size: 112, train_normal: 2, test_normal: 4, test_anomalous: 4"
MATRIX = f"""
methods:
  Patch rarity: {{configs: [{REPOSITORY}/configs/patch_rarity_demo.yaml], trains: false}}
datasets:
  one: {{class_path: Synthetic, init_args: {{{DRAWN}, categories: [cloth]}}}}
  two: {{class_path: Synthetic, init_args: {{{DRAWN}, categories: [metal]}}}}
transfers: [{{train: one, test: [two]}}]
seeds: [0, 1]
published: {REPOSITORY}/experiments/published
"""
COMMANDS: dict[str, Sequence[str]] = {
    "inspect": ("afclip_runtime", "inspect", "images", "--bundle=bundle", "--shard_images=3", "--threads=1"),
    "benchmark": ("afclip_lightning", "benchmark", "--config=matrix.yaml"),
    "sweep": ("afclip_lightning", "sweep", "--config=sweep.yaml"),
}
"""Program, verb and options of each, for the folder `work`."""
CODES = {"inspect": 1, "benchmark": 0, "sweep": 0}  # an image cannot be read
TABLES = {"benchmark": "results.csv", "sweep": "sweep.csv"}


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the inputs of the commands; all paths in it are relative to the folder."""
    folder = tmp_path_factory.mktemp("spread") / "shared"
    folder.mkdir()
    write_bundle(folder / "bundle")
    write_pictures(folder / "images", 18)
    (folder / "images/007.png").write_bytes(b"no image")
    (folder / "matrix.yaml").write_text(MATRIX)
    write_mvtec(folder / "data/mvtec", ["bottle", "cable", "capsule"], by_name=True)
    small_config(folder)
    write_sweep(folder / "sweep.yaml", 1, method="grid", parameters={"model.prompt_tokens": {"values": [2, 4]}})
    return folder


def of_one_process(verb: str, work: Path) -> Path:
    """Returns the output of a command that one process has run."""
    out = work / "one" / verb
    if not out.exists():
        command = [sys.executable, "-m", *COMMANDS[verb], "--launcher=local", f"--out={out}"]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == CODES[verb], done.stdout + done.stderr
    return out


def assert_same_outcome(verb: str, found: Path, expected: Path) -> None:
    """Compares the outputs of a command: its table, or its parts."""
    if verb == "inspect":
        tables = [pa.concat_tables(map(parquet.read_table, parts(out))) for out in (expected, found)]
        assert tables[0].num_rows == 18
        assert tables[1].equals(tables[0])
        assert [part.relative_to(found) for part in parts(found)] == [p.relative_to(expected) for p in parts(expected)]
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
