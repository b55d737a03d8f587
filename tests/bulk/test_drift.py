"""The column drift of a sharded job equals that of one process that inspects the images in order."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afclip_runtime.bulk import summary
from afclip_runtime.bulk.parts import facts_of, part_path
from afclip_runtime.bulk.plan import Plan
from afclip_runtime.files import read_json_lines
from afclip_runtime.inspection.calibration import Calibration, from_normals
from afclip_runtime.inspection.drift import keep
from afclip_runtime.inspection.folder import inspect as inspect_files
from afclip_runtime.inspection.inputs import find_inputs
from afclip_runtime.inspection.table import Record
from tests.support.sharded import inspect, load, rows_of

IMAGES, BEGIN, END = 360, 100, 200  # the light differs from the image BEGIN to the image END


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(IMAGES):
        blue = rng.integers(40, 60) + (60 if BEGIN <= number < END else 0)
        Image.new("RGB", (4, 4), (0, 0, int(blue))).save(tmp_path / "in" / f"{number:05d}.png")
    return tmp_path / "in"


@pytest.fixture
def calibration() -> Calibration:
    scores = np.random.default_rng(1).integers(40, 60, 100).astype(np.float32) / 255
    return Calibration(from_normals(scores, 0.01), None, "", {}, None, keep(scores))


def test_the_column_is_that_of_one_process(folder: Path, tmp_path: Path, calibration: Calibration) -> None:
    inputs = find_inputs([str(folder)], tmp_path / "csv")
    inspect_files(load(calibration), inputs, tmp_path / "csv", [], 0)
    wanted = [row.drift for _, row in read_json_lines(tmp_path / "csv/inspections.jsonl", Record)]
    assert wanted[BEGIN] is None
    assert wanted[END - 1] == "higher"
    assert wanted[-1] is None  # it was over
    found = inspect(tmp_path / "out", folder, shard_images=50, calibration=calibration)
    assert [row["drift"] for row in rows_of(tmp_path / "out")] == wanted
    assert "the calibration no longer holds: scores are higher" in found.drift[""]
    assert [facts_of(tmp_path / "out", number) is not None for number in range(found.shards)] == [True] * 8


def test_parts_are_rewritten_only_if_the_column_changes(folder: Path, tmp_path: Path, calibration: Calibration) -> None:
    inspect(tmp_path / "out", folder, shard_images=50, calibration=calibration)
    before = [part_path(tmp_path / "out", number).stat().st_mtime_ns for number in range(8)]
    drift = [row["drift"] for row in rows_of(tmp_path / "out")]
    assert summary.finish(tmp_path / "out", {None: calibration.good}).drift
    assert [part_path(tmp_path / "out", number).stat().st_mtime_ns for number in range(8)] == before
    rng = np.random.default_rng(2)
    for number in range(BEGIN, END):  # taken again, in the right light
        Image.new("RGB", (4, 4), (0, 0, int(rng.integers(40, 60)))).save(folder / f"{number:05d}.png")
    found = inspect(tmp_path / "out", folder, shard_images=50, calibration=calibration)
    assert drift != [row["drift"] for row in rows_of(tmp_path / "out")] == [None] * IMAGES
    assert not found.drift
    assert Plan.read(tmp_path / "out").todo(tmp_path / "out") == []


def test_a_job_that_is_not_complete_has_no_drift_yet(folder: Path, tmp_path: Path, calibration: Calibration) -> None:
    inspect(tmp_path / "out", folder, shard_images=50, calibration=calibration)
    part_path(tmp_path / "out", 7).unlink()
    found = summary.finish(tmp_path / "out", {None: calibration.good})
    assert (found.done, found.shards, found.drift) == (7, 8, {})
