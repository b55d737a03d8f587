"""Runs of every method on a small table of images, of one category with masks and one without."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from tests.support.cases import run_arguments


def write_set(root: Path, seed: int, counts: dict[tuple[str, int], int]) -> None:
    """Writes images of categories and labels, and the table that lists them; those of `b` have no masks."""
    rng, lines = np.random.default_rng(seed), ["image,label,mask,category"]
    root.mkdir()
    for (category, label), count in counts.items():
        for i in range(count):
            name, mask = f"{category}{label}{i}.png", ""
            pixels = rng.integers(0, 200, (70, 70, 3))
            if label:
                marked = np.zeros((70, 70), np.uint8)
                marked[10 : 30 + 9 * i, 20:50] = 255
                pixels = pixels + marked[..., None] // 5
                if category == "a":
                    mask = f"mask{i}.png"
                    Image.fromarray(marked).save(root / mask)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name)
            lines.append(f"{name},{label},{mask},{category}")
    (root / "images.csv").write_text("\n".join(lines))


def options(method: str, processes: int = 1, tests: Sequence[str] = ("test",), **extra: Any) -> list[str]:
    """Returns the options of a run whose processes together use 4 images per step, with one test set per folder."""
    table = {"class_path": "Table", "init_args": {"num_workers": 0, "batch_size": 4 // processes}}
    sets = [{**table, "init_args": {**table["init_args"], "root": root, "name": root}} for root in ("train", *tests)]
    config = {
        "seed_everything": 1,
        "model": {
            "class_path": method,
            "init_args": {
                "backbone": {"model": "small.json", "weights": "random", "image_size": 70},
                **run_arguments(method),
            },
        },
        "data": {"class_path": "CrossDataset", "init_args": {"train": sets[0], "test": sets[1:]}},
        "trainer": {
            **{"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 1},
            **{"enable_progress_bar": False, "enable_model_summary": False, **extra},
        },
        "pictures": {"count": 0},
    }
    path = Path(f"{method}-{'-'.join(map(str, [processes, *extra.values()]))}.yaml")
    path.write_text(yaml.safe_dump(config))
    return [f"--config={path}"]
