"""A fusion against its heads on the demo's drawn products: AUROC of images and pixels, with intervals.

    python -m experiments.fusion.demo --heads seed-0/head.ckpt seed-1/head.ckpt seed-2/head.ckpt --data DIR --out FILE

The heads are of one trained method on the demo's backbone, one per seed; beside each stand PatchRarity and CLIP, which
train nothing. DIR is `AFCLIP_DATA` of a run of the demo: the fusion takes its scales from `NORMAL` normal images of
each of the 6 categories that the heads were trained on, and is tested on the 6 others, as `head fuse` wrote it.
Intervals are of 95 %, from a paired bootstrap over the test images of each category; of each resample the mean over
categories and seeds counts. The best head is that with the highest value on the test images, in hindsight.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from afclip_lightning.inspection.fuse import fuse
from afclip_lightning.inspection.predictor import load
from afclip_runtime.images.find import walk_images
from experiments.adapt.compare import _area, auroc
from experiments.adapt.extract import rows_of
from experiments.fusion.compare import RESAMPLES, counts_of

NORMAL, SIDE, BATCH = 20, 56, 16
KINDS = ("pred_score", "anomaly_map")
BACKBONE = {"model": "tiny-8-112", "weights": "embedded", "image_size": 112}


def main() -> None:
    """Runs the comparison; prints a table and writes all numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    beside = []
    for name, arguments in (("PatchRarity", {"layers": [2, 4, 6, 8]}), ("CLIP", {})):
        file = options.out.with_name(f"{name}.yaml")
        file.write_text(
            yaml.safe_dump({"model": {"class_path": name, "init_args": {"backbone": BACKBONE, **arguments}}})
        )
        beside.append(str(file))
    trained_on = sorted((options.data / "synthetic_train").iterdir())
    normal = [sorted(walk_images(folder / "test" / "good"))[:NORMAL] for folder in trained_on]
    heads = []
    for seed, head in enumerate(options.heads):
        file = fuse([str(head), *beside], normal, options.out.with_name(f"fusion-{seed}.safetensors"), lambda on, _: on)
        heads.append(load(file, device="cpu"))
        print("scale of scores and maps:", heads[-1].method.scale.tolist(), flush=True)
    rng, values = np.random.default_rng(0), {"image": {}, "pixel": {}}
    for folder in sorted((options.data / "synthetic").iterdir()):
        rows = [row for row in rows_of(folder) if row["split"] == "test"]
        label, masks = np.array([row["label"] for row in rows]), []
        views = [heads[0].views(row["path"])[0] for row in rows]
        for row in rows:
            mask = np.zeros((SIDE, SIDE), bool)
            if row["mask"]:
                mask = np.array(Image.open(row["mask"]).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)) > 127
            masks.append(mask)
        weights = [np.ones(len(label))]
        for _ in range(RESAMPLES):
            drawn = np.concatenate([rng.choice(np.flatnonzero(label == k), (label == k).sum()) for k in (0, 1)])
            weights.append(np.bincount(drawn, minlength=len(label)).astype(float))
        for model in heads:
            rules: dict[str, list[list[torch.Tensor]]] = {}
            fusion = model.method
            with torch.inference_mode():
                for start in range(0, len(rows), BATCH):
                    part = views[start : start + BATCH]
                    batch = model.batch_of(part, [Path(row["path"]) for row in rows[start : start + BATCH]])
                    features = fusion.extract(batch)
                    said = {
                        type(one).__name__: one.predict_from(features, fusion.spec, batch) for one in fusion.members
                    }
                    for name, one in {**said, "Fusion": fusion.score(features, batch)}.items():
                        small = F.avg_pool2d(one.anomaly_map, one.anomaly_map.shape[-1] // SIDE)
                        rules.setdefault(name, []).append([one.pred_score, small])
                    plain = [torch.stack([getattr(one, kind) for one in said.values()]).mean(dim=0) for kind in KINDS]
                    small = F.avg_pool2d(plain[1], plain[1].shape[-1] // SIDE)
                    rules.setdefault("mean of the heads as they are", []).append([plain[0], small])
            for name, parts in rules.items():
                scores, maps = (torch.cat(kind) for kind in zip(*parts, strict=True))
                counts = counts_of(maps, np.stack(masks))
                image = [auroc(scores.numpy(), label, weight) for weight in weights]
                pixel = [_area(*np.tensordot(weight, counts, axes=1)) for weight in weights]
                values["image"].setdefault(name, []).append(np.array(image))
                values["pixel"].setdefault(name, []).append(np.array(pixel))
    results: dict[str, dict[str, list[float]]] = {}
    for metric, rules in values.items():
        means = {name: np.mean(of, axis=0) for name, of in rules.items()}
        best = max(list(means)[:3], key=lambda name: means[name][0])
        for name, value in means.items():
            for key, numbers in ((metric, value), (f"{metric} above {best}", value - means[best])):
                low, high = np.quantile(numbers[1:], [0.025, 0.975])
                results.setdefault(name, {})[key] = [100 * float(v) for v in (numbers[0], low, high)]
    options.out.write_text(json.dumps(results, indent=1))
    for name, of in results.items():
        print(name, *(f"{key} {v:.1f} [{low:.1f}, {high:.1f}]" for key, (v, low, high) in of.items()), sep=" | ")


if __name__ == "__main__":
    main()
