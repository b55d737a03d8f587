"""Exports of annotation tools that tests write by hand, and their conversion."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from afclip_lightning.annotations.rle import mask_to_brush, mask_to_coco
from afclip_lightning.cli.datasets import main
from afclip_lightning.data.images import read_mask
from afclip_lightning.datasets.listing import Listing
from afclip_lightning.types import Sample

WIDTH, HEIGHT = 40, 30


def write_images(folder: Path, *names: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """Writes images, each of its own colour, and returns their folder."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number + 1, len(name), sum(name.encode()) % 256)).save(path)
    return folder


def write_json_file(path: Path, content: Any) -> Path:
    """Writes an export and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def import_set(kind: str, export: Path, images: Path, *options: str) -> tuple[int, Path]:
    """Runs the command, and returns its exit code and the folder of the set, `set` beside the images."""
    out = images.parent / "set"
    return main(["import", str(export), "--from", kind, "--images", str(images), "--out", str(out), *options]), out


def samples_of(folder: Path, split: str = "test") -> dict[str, Sample]:
    """Returns the samples of all categories of a set by the path of the image below `images/`."""
    dataset = Listing(folder)
    found = [
        sample
        for category in dataset.find_categories()
        for sample in dataset.find_samples(category, split)  # type: ignore[arg-type]
    ]
    return {sample.image_path.relative_to(folder / "images").as_posix(): sample for sample in found}


def mask_of(folder: Path, name: str) -> np.ndarray:
    """Returns the mask of an image of a set, `[H, W]`, bool."""
    sample = samples_of(folder)[name]
    assert sample.mask_path is not None, f"{name} has no mask"
    return read_mask(sample.mask_path).astype(bool)


def box(left: int, top: int, right: int, bottom: int, size: Sequence[int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """Returns the mask of a box in whole pixels, right and bottom beyond its last pixel."""
    mask = np.zeros((size[1], size[0]), bool)
    mask[top:bottom, left:right] = True
    return mask


def png_text(mask: np.ndarray) -> str:
    """Returns a mask as a PNG of 0 and 1 in base64, as LabelMe embeds it."""
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_export(tool: str, folder: Path) -> Path:
    """Writes an export with several shapes on the image `a.png`, as a tool writes it, and returns its file."""
    bar = box(4, 5, 9, 8)
    if tool == "cvat":
        shapes = (
            '<polygon label="crack" occluded="0" points="1,1;9,1;9,6"/>'
            '<mask label="crack" rle="1,2,1" left="3" top="4" width="2" height="2"/>'
            '<box label="x" xtl="1" ytl="1" xbr="4" ybr="4" rotation="20"/>'
            '<ellipse label="x" cx="20" cy="15" rx="6" ry="3" rotation="9"/><polyline label="x" points="1,1;9,9"/>'
        )
        path = folder / "annotations.xml"
        path.write_text(
            '<?xml version="1.0"?><annotations><meta><task><id>1</id><name>t</name></task></meta>'
            f'<image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">{shapes}<tag label="y"/></image>'
            "</annotations>"
        )
        return path
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    polygon = {"points": [[1, 1], [50, 1], [50, 50]], "polygonlabels": ["crack"]}
    brush = {"format": "rle", "rle": mask_to_brush(bar), "brushlabels": ["crack"]}
    oval = {"x": 50, "y": 50, "radiusX": 9, "radiusY": 4, "rotation": 3, "ellipselabels": ["crack"]}
    results = [{"id": str(i), "type": "x", "value": value, **size} for i, value in enumerate((polygon, brush, oval))]
    annotation = {"result": results, "was_cancelled": False, "updated_at": "2026"}
    image = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    segments: list[Any] = [[[1, 1, 9, 1, 9, 5]], mask_to_coco(bar), []]
    shapes_of_coco = [
        {"image_id": 1, "category_id": 1, "segmentation": segment, "bbox": [1, 2, 3, 4]} for segment in segments
    ]
    names = {"labels": [{"name": "crack", "parent": ""}]}
    drawn = [{"type": "polygon", "points": [1, 1, 9, 1, 9, 5]}, {"type": "mask", "rle": mask_to_coco(bar)}]
    file = {"path": "a.png", "size": [HEIGHT, WIDTH]}
    item = {"id": "a", "annotations": [{"label_id": 0, **one} for one in drawn], "image": file}
    outlines = {"exterior": [[1, 1], [9, 1], [9, 5]], "interior": [[[3, 2], [4, 2], [4, 3]]]}
    things = [
        {"classTitle": "x", "geometryType": "polygon", "points": outlines},
        {"classTitle": "x", "geometryType": "bitmap", "bitmap": {"data": png_text(bar), "origin": [1, 2]}},
        {"classTitle": "x", "geometryType": "oriented_bbox", "points": [[1, 1], [9, 4]], "angle": 0.3},
    ]
    marked = [
        {"label": "x", "points": [[1, 1], [9, 1], [9, 5]], "shape_type": "polygon"},
        {"label": "x", "points": [[4, 5], [8, 7]], "shape_type": "mask", "mask": png_text(bar[5:8, 4:9])},
        {"label": "x", "points": [[9, 9], [11, 9]], "shape_type": "circle"},
    ]
    contents: dict[str, tuple[str, Any]] = {
        "labelstudio": ("tasks.json", [{"id": 1, "data": {"image": "a.png"}, "annotations": [annotation]}]),
        "coco": (
            "coco.json",
            {"images": [image], "annotations": shapes_of_coco, "categories": [{"id": 1, "name": "crack"}]},
        ),
        "datumaro": ("default.json", {"categories": {"label": names}, "items": [item]}),
        "supervisely": (
            "ann/a.png.json",
            {"size": {"height": HEIGHT, "width": WIDTH}, "objects": things, "tags": [{"name": "t", "value": "v"}]},
        ),
        "labelme": (
            "a.json",
            {"shapes": marked, "imagePath": "a.png", "imageHeight": HEIGHT, "imageWidth": WIDTH, "flags": {"y": True}},
        ),
    }
    name, content = contents[tool]
    return write_json_file(folder / name, content)
