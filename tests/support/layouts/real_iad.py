"""Real-IAD's lists and folders: per category one training object and two test objects, each with five views."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support.layouts import write_image, write_mask

SHOWN = (1, 4)  # views that show the defect


def write_real_iad(root: Path, categories: Iterable[str], lists: str = "realiad_jsons") -> Path:
    """Writes lists and images of the size 1024, and returns the root."""
    for category in categories:
        images = root / "realiad_1024" / category
        listed: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
        for split, number, kind in (("train", 1, "OK"), ("test", 2, "OK"), ("test", 3, "NG_HS")):
            folder = "NG/HS" if kind == "NG_HS" else "OK"
            for view in range(1, 6):
                stem = f"{folder}/S{number:04}/{category}_{number:04}_{kind}_C{view}_20231023092610"
                write_image(images / f"{stem}.jpg")
                shown = kind == "NG_HS" and view in SHOWN
                if shown:
                    write_mask(images / f"{stem}.png")
                listed[split].append(
                    {
                        "category": category,
                        "anomaly_class": "HS" if shown else "OK",
                        "image_path": f"{stem}.jpg",
                        "mask_path": f"{stem}.png" if shown else None,
                    }
                )
        path = root / lists / f"{category}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"meta": {"prefix": f"{category}/", "normal_class": "OK"}, **listed}))
    return root
