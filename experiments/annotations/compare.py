"""Compares this project's conversion of exports with the masks of the tools' own packages.

`python -m experiments.annotations.compare FOLDER`: FOLDER holds what `write.py` wrote, a folder per tool.
"""

import argparse
from pathlib import Path

import numpy as np

from afclip_lightning.annotations.shapes import Export
from afclip_lightning.importers import coco, cvat, datumaro, labelme, labelstudio, supervisely
from afclip_runtime.images.rasterise import mark


def exports(folder: Path) -> dict[str, tuple[Export, Path]]:
    """Returns the existing exports by name, each with the folder of its tool's masks."""
    found: dict[str, tuple[Export, Path]] = {}
    if (by := folder / "datumaro").is_dir():
        found["Datumaro's format, by Datumaro"] = datumaro.read(by / "datumaro"), by
        found["COCO, by Datumaro"] = coco.read(by / "coco_instances/annotations/instances_all.json"), by
        found["CVAT, by Datumaro"] = cvat.read(by / "cvat/all.xml"), by
    if (by := folder / "labelstudio").is_dir():
        found["Label Studio, JSON"] = labelstudio.read(by / "tasks.json", labelstudio.Choice()), by
        found["Label Studio, JSON-MIN"] = labelstudio.read(by / "min/result.json", labelstudio.Choice()), by
    if (by := folder / "labelme").is_dir():
        found["LabelMe"] = labelme.read(by / "a.json", by / "images"), by
    if (by := folder / "supervisely").is_dir():
        found["Supervisely"] = supervisely.read(by), by
    return found


def main() -> None:
    """Prints a row per shape: pixels here, pixels of the tool, pixels of one and not the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    print("| export | shape | pixels here | by the tool | only here | only there |\n|---|---|---:|---:|---:|---:|")
    for name, (export, place) in exports(parser.parse_args().folder).items():
        with np.load(place / "drawn.npz") as drawn:
            masks = [drawn[key].astype(bool) for key in drawn.files]
        [image] = export.images
        for shape, theirs in zip(image.shapes, masks, strict=True):
            if shape.area is None:
                continue
            ours = mark(shape.area, (40, 60)).mask
            if not theirs.size:
                print(f"| {name} | {shape.kind} | {ours.sum()} | not drawn | | |")
                continue
            only = (ours & ~theirs).sum(), (theirs & ~ours).sum()
            print(f"| {name} | {shape.kind} | {ours.sum()} | {theirs.sum()} | {only[0]} | {only[1]} |")


if __name__ == "__main__":
    main()
