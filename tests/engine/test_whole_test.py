"""A whole test over two processes writes the files of one, bit for bit: intervals, thresholds without labels, types.

Each process takes an image at a time, so that the backbone computes the same whatever the processes are.
"""

import json
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
import yaml
from PIL import Image
from torch import distributed

from afclip_lightning.engine.app import main
from afclip_lightning.engine.run_folder import RUN_FOLDER_VARIABLE
from tests.support import free_port
from tests.support.clips import small_config

pytestmark = pytest.mark.slow

CATEGORIES = ["bottle", "cable"]
COUNTS = {"train/good": 6, "test/good": 7, "test/hole": 3, "test/scratch": 5}  # odd ones, which two share unevenly
METHODS = {"PatchRarity": {"layers": [1, 3]}, "NearestNeighbours": {"layers": [1, 3], "k_shot": 1}}
EXTRAS = {"threshold": "mean+1sd", "intervals": 100, "aupimo": True, "defect_types": True}


def write_set(root: Path) -> None:
    """Writes two categories in MVTec's layout."""
    rng = np.random.default_rng(0)
    for category in CATEGORIES:
        for kind, count in COUNTS.items():
            for i in range(count):
                pixels, name = rng.integers(0, 150, (230, 170, 3)), kind.partition("/")[2]
                if name != "good":
                    mask = np.zeros((230, 170), np.uint8)
                    mask[30 : 60 + 9 * i, 40:90] = 255
                    pixels[mask > 0] += 60
                    path = root / category / "ground_truth" / name / f"{i:03}_mask.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask).save(path)
                path = root / category / kind / f"{i:03}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)


def options(method: str, resolution: str, processes: int) -> list[str]:
    backbone = {"model": "small.json", "weights": "random", "image_size": 70}
    trainer = {"accelerator": "cpu", "devices": processes, "enable_progress_bar": False, "enable_model_summary": False}
    config = {
        "seed_everything": 1,
        "model": {"class_path": method, "init_args": {"backbone": backbone, **METHODS[method]}},
        "data": {"class_path": "MVTecAD", "init_args": {"root": "set", "num_workers": 0, "batch_size": 1}},
        "trainer": trainer | ({"strategy": "ddp"} if processes > 1 else {}),
        "pictures": {"count": 0},
        "evaluation": {**EXTRAS, "resolution": resolution},
    }
    config["data"]["init_args"]["categories"] = CATEGORIES
    path = Path(f"{method}-{resolution}-{processes}-{os.environ.get('LOCAL_RANK', '')}.yaml")
    path.write_text(yaml.safe_dump(config))
    return [f"--config={path}"]


CASES = [("PatchRarity", "image"), ("PatchRarity", "backbone"), ("NearestNeighbours", "backbone")]


def run_all(rank: int, folder: Path, port: str) -> None:
    """What one of three processes does: the last works alone, the first two together."""
    torch.set_num_threads(1)
    os.chdir(folder)
    sys.argv[1:] = []  # those of the tests
    place, processes = "one", 1
    if rank < 2:
        place, processes = "two", 2
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    for method, resolution in CASES:
        os.environ.pop(RUN_FOLDER_VARIABLE, None)
        given = options(method, resolution, processes)
        assert main(["test", *given, f"--out={place}/{method}-{resolution}"]) == 0
    if rank < 2:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of one process under `one`, those of two under `two`."""
    folder = tmp_path_factory.mktemp("whole")
    small_config(folder)
    write_set(folder / "set")
    multiprocessing.set_forkserver_preload([__name__])  # imported once for all three
    torch.multiprocessing.start_processes(run_all, (folder, free_port()), nprocs=3, start_method="forkserver")
    return folder


@pytest.mark.parametrize(("method", "resolution"), CASES)
def test_the_files_of_two_processes_are_those_of_one(folder: Path, method: str, resolution: str) -> None:
    one, two = (folder / place / f"{method}-{resolution}" for place in ("one", "two"))
    names = {path.name for path in one.iterdir() if path.name.startswith(("results", "scores", "curves", "image_"))}
    assert {"results.json", "results_by_type.csv", "image_counts.npz"} < names
    for name in names:
        assert (two / name).read_bytes() == (one / name).read_bytes(), name
    rows = json.loads((one / "results.json").read_text())["rows"]
    assert [row["category"] for row in rows] == [*CATEGORIES, "mean"]
    for row in rows:
        assert row["intervals"].keys() > {"image_auroc", "pixel_pro", "image_fixed_fpr", "pixel_fixed_f1"}
        assert 0 < row["operating_points"]["pixel"]["fpr"] < 1
        low, high = row["intervals"]["pixel_fixed_fpr"]
        assert low < high
