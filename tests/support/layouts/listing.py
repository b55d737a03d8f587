"""AnomalyCLIP's `meta.json` and AA-CLIP's JSON lines, written beside a set in MVTec AD's layout."""

import json
from pathlib import Path
from typing import Any

from tests.support.layouts.mvtec import write_mvtec


def entries(root: Path) -> list[dict[str, Any]]:
    """Returns the entries of AnomalyCLIP's scripts for the test images of `bolt`: masks paired by position."""
    found = []
    for kind in ("good", "crack", "stain"):
        folder = root / "bolt/ground_truth" / kind
        masks = sorted(folder.iterdir()) if folder.is_dir() else []
        for i, image in enumerate(sorted((root / "bolt/test" / kind).iterdir())):
            mask = masks[i].relative_to(root).as_posix() if masks else ""
            path = image.relative_to(root).as_posix()
            found.append(
                {
                    "img_path": path,
                    "mask_path": mask,
                    "cls_name": "bolt",
                    "specie_name": kind,
                    "anomaly": int(bool(mask)),
                }
            )
    return found


def write_meta(root: Path, train: str = "train", test: str = "test") -> Path:
    """Writes a set of one category and its `meta.json`, and returns the root."""
    write_mvtec(root, ["bolt"])
    good = [{"img_path": f"bolt/train/good/00{i}.png", "mask_path": "", "anomaly": 0} for i in range(2)]
    (root / "meta.json").write_text(json.dumps({train: {"bolt": good}, test: {"bolt": entries(root)}}, indent=4))
    return root


def write_json_lines(root: Path) -> Path:
    """Writes a set of one category and its `full-shot.jsonl`, and returns the root."""
    write_mvtec(root, ["bolt"])
    lines = []
    for entry in entries(root):
        line = {"image_path": entry["img_path"], "label": entry["anomaly"], "class_name": "bolt"}
        lines.append(json.dumps(line | ({"mask_path": entry["mask_path"]} if entry["anomaly"] else {})))
    (root / "full-shot.jsonl").write_text("\n".join(lines) + "\n\n")
    return root
