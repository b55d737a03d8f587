"""Runs of every method on a small table of images, of one category with masks and one without."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from tests.support.cases import KNOWLEDGE

VV = {"vv_from": 2, "prompt_depth": 2}
METHODS: dict[str, dict[str, Any]] = {
    "AFCLIP": {"layers": [1, 3], "scales": [1, 3]},
    "AnomalyCLIP": {**VV, "layers": [2, 3], "n_abnormal_prompts": 2},
    "FAPrompt": {**VV, "layer": 3, "n_prior_patches": 3, "n_abnormal_prompts": 2, "image_ce_weight": 1.0},
    "APRILGAN": {"layers": [1, 3], "temperature": 0.07},
    "KAnoCLIP": {
        **{"layers": [2, 3], "vv_from": 2, "interaction_width": 8, "interaction_heads": 2, "offset_groups": 2},
        **{"offset_stride": 1, "adapter_bottleneck": 4, "knowledge": KNOWLEDGE, "knowledge_margin": 0.5},
    },
}
UNTRAINED: dict[str, dict[str, Any]] = {"DualImageCLIP": {"steps": 0}}


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


def options(method: str, processes: int = 1, **extra: Any) -> list[str]:
    """Returns the options of a run whose processes together take 4 images a step."""
    arguments = {**METHODS, **UNTRAINED}[method]
    table = {"class_path": "Table", "init_args": {"num_workers": 0, "batch_size": 4 // processes}}
    sets = [{**table, "init_args": {**table["init_args"], "root": root, "name": root}} for root in ("train", "test")]
    config = {
        "seed_everything": 1,
        "model": {
            "class_path": method,
            "init_args": {
                "backbone": {"model": "small.json", "weights": "random", "image_size": 70},
                **arguments,
            },
        },
        "data": {"class_path": "CrossDataset", "init_args": {"train": sets[0], "test": [sets[1]]}},
        "trainer": {
            **{"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 1},
            **{"enable_progress_bar": False, "enable_model_summary": False, **extra},
        },
        "pictures": {"count": 0},
    }
    path = Path(f"{method}-{'-'.join(map(str, [processes, *extra.values()]))}.yaml")
    path.write_text(yaml.safe_dump(config))
    return [f"--config={path}"]
