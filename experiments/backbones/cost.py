"""Cost of a pass of each preset's vision tower: operations, and time relative to ViT-B/16.

    python -m experiments.backbones.cost                     # every architecture: minutes on one core
    python -m experiments.backbones.cost --presets dinov3-l  # adds to what is there

Operations are counted at the preset's own image size, on torch's meta device, 2 per multiply-add. Time is measured with
random weights, one image and one thread, at 16 × 16 patches for every tower, in seconds of the processor, so that other
work on the machine counts less: the median over pairs of passes, the tower's and then ViT-B/16's. Presets of one model
share a row. `--pairs 0` counts operations alone.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from open_clip.timm_model import TimmModel
from torch.utils.flop_counter import FlopCounterMode

from afclip_lightning.backbones.presets import PRESETS, Preset
from afclip_lightning.backbones.sources import MODELS
from afclip_lightning.backbones.towers import ClipVisionTower, TimmVisionTower, VisionTower
from afclip_runtime.files import write_text

open_clip.add_model_config(MODELS)

TABLE = Path(__file__).with_name("cost.csv")
FIELDS = ("model", "parameters", "gflops", "image_size", "patches", "ratio", "lowest", "highest", "pairs")
REFERENCE = "clip-b"
SIDE = 16  # patches of a side
LONGEST = 20.0  # seconds of a pass


def build(preset: Preset, device: str, side: int | None = None) -> VisionTower:
    """Returns the preset's vision tower with random weights, for images of a side in pixels or of its patches."""
    with torch.device(device):
        if preset.model.startswith("timm:"):
            name = preset.model.removeprefix("timm:").partition(".")[0]
            visual: Any = TimmModel(name, embed_dim=0, pool="token", proj="", image_size=preset.native_size)
        else:
            config = open_clip.get_model_config(preset.model)
            visual = _build_vision_tower(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]))
        tower = TimmVisionTower(visual) if isinstance(visual, TimmModel) else ClipVisionTower(visual)
        size = side or SIDE * tower.patch_size
        tower.resize((size, size), "bicubic_antialias")
    return tower.eval().to(device)


def count_gflops(preset: Preset) -> float:
    """Returns the operations of an image at the preset's size, in 10^9."""
    tower = build(preset, "meta", preset.image_size)
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), counter:  # with gradients: without them attention is one operation that is not counted
        tower.visual(torch.empty(1, 3, preset.image_size, preset.image_size))
    return counter.get_total_flops() / 1e9


def passes(preset: Preset) -> tuple[Callable[[], float], int, int]:
    """Returns a function that runs a pass and returns its seconds, the image's side, and the number of patches."""
    tower = build(preset, "cpu").requires_grad_(False)
    size = SIDE * tower.patch_size
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))

    def run() -> float:
        with torch.inference_mode():
            start = time.process_time()
            tower.visual(image)
            return time.process_time() - start

    return run, size, SIDE * SIDE


def measure(preset: Preset, reference: Callable[[], float], pairs: int) -> dict[str, Any]:
    """Returns the preset's row of the table."""
    parameters = sum(parameter.numel() for parameter in build(preset, "meta").parameters())
    row: dict[str, Any] = {
        "model": preset.model,
        "parameters": parameters,
        "gflops": round(count_gflops(preset), 1),
    }
    if pairs:
        run, size, patches = passes(preset)
        if run() <= LONGEST:  # the first pass makes what is made once
            ratios = [run() / reference() for _ in range(pairs)]
            row |= {"image_size": size, "patches": patches, "pairs": pairs}
            middle, lowest, highest = statistics.median(ratios), min(ratios), max(ratios)
            row |= {"ratio": round(middle, 2), "lowest": round(lowest, 2), "highest": round(highest, 2)}
    return row


def read(path: Path = TABLE) -> dict[str, dict[str, str]]:
    """Returns the rows by model."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def write(rows: dict[str, dict[str, Any]], path: Path = TABLE) -> None:
    """Writes the rows in the order of the presets."""
    models = dict.fromkeys(preset.model for preset in PRESETS.values())
    lines = [",".join(FIELDS)]
    lines += [",".join(str(rows[model].get(field, "")) for field in FIELDS) for model in models if model in rows]
    write_text(path, "\n".join(lines) + "\n")


def main(args: Sequence[str] | None = None) -> None:
    """Measures presets and adds them to the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=PRESETS, metavar="NAME")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    reference, *_ = passes(PRESETS[REFERENCE])
    reference()
    rows: dict[str, dict[str, Any]] = dict(read())
    for preset in {PRESETS[name].model: PRESETS[name] for name in options.presets}.values():
        rows[preset.model] = {**rows.get(preset.model, {}), **measure(preset, reference, options.pairs)}
        print(preset.name, rows[preset.model], flush=True)
        write(rows)


if __name__ == "__main__":
    main()
