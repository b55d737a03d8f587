"""A run folder as written by `test`, made without a run."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from afclip_lightning import results
from afclip_lightning.metrics import AnomalyMetrics

HOSTILE = '"><script>document.title="owned"</script><img src="http://127.0.0.1:9/x" onerror="document.title=1">'
CATEGORIES = {"a": 0.2, "b": 3.0, HOSTILE: 1.0}  # how far anomalous scores are from normal ones


def write_run(folder: Path, categories: dict[str, float] = CATEGORIES, images: int = 30) -> Path:
    """Writes a run folder as written by `test`, with a third of the images normal, and returns it."""
    generator = np.random.default_rng(0)
    rows, scores, curves, cases = [], [], {}, []
    (folder / "pictures" / "cases").mkdir(parents=True)
    for category, distance in categories.items():
        label = (np.arange(images) >= images // 3).astype(int)
        mask = np.zeros((images, 8, 8), np.uint8)
        mask[label == 1, 2:5, 2:5] = 1
        maps = np.float32(generator.normal(0, 1, mask.shape) + distance * mask)
        score = np.float32(generator.normal(0, 1, images) + distance * label)
        metrics = AnomalyMetrics()
        metrics.update(maps, mask, score, label)
        result = metrics.result()
        rows.append(result.row("drawn", category))
        curves["drawn", category] = result.curves
        for i in range(images):
            image = f"/somewhere/{category}/{i:03}.png"
            scores.append(results.ImageScore("drawn", category, image, int(label[i]), float(score[i]), 1.0, True))
            if i % 8 == 0:
                for suffix in ("", "_map"):
                    picture = Image.new("RGB", (32, 32), (40 * len(cases) % 256, 90, 200 if suffix else 60))
                    picture.save(folder / f"pictures/cases/{len(cases):04d}{suffix}.jpg")
                kept = {"dataset": "drawn", "category": category, "image": image, "label": int(label[i])}
                kept |= {"score": float(score[i]), "kind": "best" if i % 16 else "worst", "mask_known": True}
                kept |= {"outline": "M0.2 0.2L0.6 0.2L0.6 0.6Z" if label[i] else ""}
                cases.append({**kept, "picture": f"{len(cases):04d}.jpg", "map": f"{len(cases):04d}_map.jpg"})
    results.write(results.with_means(rows), folder, "results", f"Test {HOSTILE}")
    results.write_scores(scores, folder / "scores.csv")
    results.write_curves(curves, 0.3, folder / "curves.json")
    (folder / "pictures/cases/cases.json").write_text(json.dumps(cases))
    (folder / "run.json").write_text(json.dumps({"command": ["afclip", "test", "a b"], "method": HOSTILE}))
    return folder
