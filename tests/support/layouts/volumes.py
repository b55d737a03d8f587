"""Slices of volumes, in the layout that an import writes."""

import json
from pathlib import Path

from tests.support.layouts import write_image, write_mask


def write_volumes(root: Path) -> Path:
    """Writes three slices each of two volumes: a normal one in training, one with an anomalous slice in test."""
    lines = []
    for number, split in ((1, "train"), (2, "test")):
        volume = f"volume-{number:04d}"
        for index in range(3):
            name = f"{volume}/axial-{index:04d}.png"
            line = {"image": f"images/{name}", "label": "normal", "category": "head", "split": split}
            line |= {"group": volume, "patient": f"patient-{number:04d}", "axis": "axial", "index": index}
            write_image(root / line["image"])
            if (number, index) == (2, 1):
                line |= {"label": "anomalous", "mask": f"masks/{name}"}
                write_mask(root / line["mask"])
            lines.append(json.dumps(line) + "\n")
    (root / "slices.jsonl").write_text("".join(lines))
    return root
