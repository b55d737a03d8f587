"""A whole test over two processes writes the files of one, bit for bit.

Intervals, thresholds without labels, defect types, sPRO and groups of images are among them.

Each process takes an image at a time, so that the backbone computes the same whatever the processes are.
"""

import json
import multiprocessing
import os
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
import yaml
from PIL import Image
from torch import distributed

from afclip_lightning.engine.app import main
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


def write_defects(root: Path) -> None:
    """Gives each image of a set a folder of masks, and writes how much of each defect has to be found."""
    for mask in sorted(root.glob("*/ground_truth/*/*_mask.png")):
        pixels = np.asarray(Image.open(mask)).copy()
        mask.unlink()
        folder = mask.with_name(mask.stem.removesuffix("_mask"))
        folder.mkdir()
        Image.fromarray(pixels).save(folder / "000.png")
        pixels[pixels > 0] = 0
        pixels[5:15, 100:140] = 254
        Image.fromarray(pixels).save(folder / "001.png")
    kinds = [
        {"defect_name": "hole", "pixel_value": 255, "saturation_threshold": 400, "relative_saturation": False},
        {"defect_name": "scratch", "pixel_value": 254, "saturation_threshold": 0.5, "relative_saturation": True},
    ]
    for category in CATEGORIES:
        (root / category / "defects_config.json").write_text(json.dumps(kinds))


def write_views(root: Path) -> None:
    """Writes a table of the images of a set; every three images are views of one object."""
    lines = ["image,label,mask,category,split,group"]
    for category in CATEGORIES:
        for i, image in enumerate(sorted((root / category).glob("t*/*/*.png"))):
            split, kind = image.parts[-3:-1]
            mask = f"{category}/ground_truth/{kind}/{image.stem}_mask.png" if kind != "good" else ""
            label = "anomalous" if mask else "normal"
            lines.append(f"{image.relative_to(root)},{label},{mask},{category},{split},{split}{i // 3}")
    (root / "images.csv").write_text("\n".join([*lines, ""]))


DATA = {
    "set": {"class_path": "MVTecAD", "init_args": {"root": "set"}},
    "defects": {"class_path": "SaturatedLayout", "init_args": {"root": "defects"}},
    "views": {"class_path": "Table", "init_args": {"root": "set", "name": "views"}},
}


def options(method: str, resolution: str, data: str, processes: int) -> list[str]:
    backbone = {"model": "small.json", "weights": "random", "image_size": 70}
    trainer = {"accelerator": "cpu", "devices": processes, "enable_progress_bar": False, "enable_model_summary": False}
    config = {
        "seed_everything": 1,
        "model": {"class_path": method, "init_args": {"backbone": backbone, **METHODS[method]}},
        "data": deepcopy(DATA[data]),
        "trainer": trainer | ({"strategy": "ddp"} if processes > 1 else {}),
        "pictures": {"count": 0},
        "evaluation": {**EXTRAS, "resolution": resolution},
    }
    config["data"]["init_args"] |= {"num_workers": 0, "batch_size": 1, "categories": CATEGORIES}
    path = Path(f"{method}-{resolution}-{data}-{processes}-{os.environ.get('LOCAL_RANK', '')}.yaml")
    path.write_text(yaml.safe_dump(config))
    return [f"--config={path}"]


CASES = [
    ("PatchRarity", "image", "set"),
    ("PatchRarity", "backbone", "set"),
    ("NearestNeighbours", "backbone", "set"),
    ("PatchRarity", "image", "defects"),
    ("PatchRarity", "backbone", "views"),
]
OWN = {"defects": {"pixel_spro", "pixel_spro_05"}, "views": {"group_auroc", "group_ap", "group_f1_max"}}


def run_all(rank: int, folder: Path, port: str) -> None:
    """The work of one of three processes: the last works alone, the first two together."""
    torch.set_num_threads(1)
    os.chdir(folder)
    sys.argv[1:] = []  # those of the tests
    place, processes = "one", 1
    if rank < 2:
        place, processes = "two", 2
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    for method, resolution, data in CASES:
        given = options(method, resolution, data, processes)
        assert main(["test", *given, f"--out={place}/{method}-{resolution}-{data}"]) == 0
    if rank < 2:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of one process under `one`, those of two under `two`."""
    folder = tmp_path_factory.mktemp("whole")
    small_config(folder)
    write_set(folder / "set")
    write_views(folder / "set")
    write_set(folder / "defects")
    write_defects(folder / "defects")
    multiprocessing.set_forkserver_preload([__name__])  # imported once for all three
    torch.multiprocessing.start_processes(run_all, (folder, free_port()), nprocs=3, start_method="forkserver")
    return folder


@pytest.mark.parametrize(("method", "resolution", "data"), CASES)
def test_the_files_of_two_processes_are_those_of_one(folder: Path, method: str, resolution: str, data: str) -> None:
    one, two = (folder / place / f"{method}-{resolution}-{data}" for place in ("one", "two"))
    names = {
        path.name for path in one.iterdir() if path.name.startswith(("results", "scores", "groups", "curves", "image_"))
    }
    assert {"results.json", "image_counts.npz"} < names
    assert ("results_by_type.csv" in names) == (data != "views")
    assert ("groups.csv" in names) == (data == "views")
    for name in names:
        assert (two / name).read_bytes() == (one / name).read_bytes(), name
    rows = json.loads((one / "results.json").read_text())["rows"]
    assert [row["category"] for row in rows] == [*CATEGORIES, "mean"]
    for row in rows:
        assert row["intervals"].keys() > {"image_auroc", "pixel_pro", "image_fixed_fpr", "pixel_fixed_f1"}
        assert 0 < row["operating_points"]["pixel"]["fpr"] < 1
        low, high = row["intervals"]["pixel_fixed_fpr"]
        assert low < high
        assert OWN.get(data, set()) <= row["metrics"].keys()
