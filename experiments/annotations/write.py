"""Writes an export with an annotation tool's own package, and that package's masks of its shapes.

Run in an environment of the tool, not of this project: `python write.py TOOL FOLDER`. FOLDER gets `images/a.png`, the
export, and `drawn.npz`, which holds the mask of each shape as the tool draws it, in the order of the export.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 60
PIXELS = np.zeros((HEIGHT, WIDTH), bool)
PIXELS[5:20, 10:50:3] = True
PIXELS[30] = True  # a crack
OUTLINE = [(3.0, 3.0), (20.0, 3.0), (20.5, 15.25), (5.0, 18.0)]
BOX = (30.0, 4.0, 12.0, 5.0)  # left, top, width, height


def write_datumaro(folder: Path) -> list[np.ndarray]:
    """Writes Datumaro's own format, COCO and CVAT; polygons are drawn by pycocotools."""
    import datumaro
    from datumaro.components.annotation import Bbox, Mask, Polygon
    from datumaro.components.media import Image as Media
    from pycocotools import mask as coder

    flat = [number for point in OUTLINE for number in point]
    shapes = [Polygon(flat, label=0), Bbox(*BOX, label=0), Mask(PIXELS, label=0)]
    media = Media.from_file(path=str(folder / "images/a.png"), size=(HEIGHT, WIDTH))
    item = datumaro.DatasetItem("a", subset="all", media=media, annotations=shapes)
    dataset = datumaro.Dataset.from_iterable([item], categories=["crack"])
    for kind in ("datumaro", "coco_instances", "cvat"):
        dataset.export(str(folder / kind), kind, save_media=False)
    left, top, width, height = BOX
    corners = [left, top, left + width, top, left + width, top + height, left, top + height]
    drawn = [coder.decode(coder.frPyObjects([points], HEIGHT, WIDTH))[..., 0] for points in (flat, corners)]
    return [*drawn, PIXELS]


def write_labelstudio(folder: Path) -> list[np.ndarray]:
    """Writes JSON, and JSON-MIN by the package; it draws brushes alone."""
    from label_studio_sdk.converter import Converter
    from label_studio_sdk.converter.brush import decode_rle, mask2rle

    def result(name: str, value: dict[str, object]) -> dict[str, object]:
        size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
        control = {"id": name, "from_name": name, "to_name": "image", "type": f"{name}labels"}
        return {**control, **size, "value": {**value, f"{name}labels": ["crack"]}}

    rle = mask2rle(PIXELS.astype(np.uint8) * 255)
    left, top, width, height = BOX
    box = {"x": left / 0.6, "y": top / 0.4, "width": width / 0.6, "height": height / 0.4, "rotation": 0}
    results = [
        result("polygon", {"points": [[x / 0.6, y / 0.4] for x, y in OUTLINE]}),
        result("rectangle", box),
        result("brush", {"format": "rle", "rle": rle}),
    ]
    annotation = {"id": 1, "result": results, "was_cancelled": False, "created_at": "2026-01-01", "completed_by": 1}
    (folder / "tasks.json").write_text(json.dumps([{"id": 1, "data": {"image": "a.png"}, "annotations": [annotation]}]))
    controls = "".join(
        f'<{tag}Labels name="{tag.lower()}" toName="image"><Label value="crack"/></{tag}Labels>'
        for tag in ("Polygon", "Rectangle", "Brush")
    )
    config = f'<View><Image name="image" value="$image"/>{controls}</View>'
    converter = Converter(config, project_dir=".", download_resources=False)
    converter.convert_to_json_min(str(folder / "tasks.json"), str(folder / "min"), is_dir=False)
    none = np.zeros((0, 0))  # the package draws brushes alone
    return [none, none, decode_rle(rle).reshape(HEIGHT, WIDTH, 4)[..., 3] > 0]


def write_labelme(folder: Path) -> list[np.ndarray]:
    """Writes LabelMe's file."""
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    from labelme import utils
    from labelme._label_file import write_label_file

    left, top, width, height = BOX
    rows, columns = np.nonzero(PIXELS)
    corner, end = (int(columns.min()), int(rows.min())), (int(columns.max()), int(rows.max()))
    part = PIXELS[corner[1] : end[1] + 1, corner[0] : end[0] + 1]
    drawn = {
        "polygon": [list(point) for point in OUTLINE],
        "rectangle": [[left, top], [left + width, top + height]],
        "mask": [list(map(float, corner)), list(map(float, end))],
        "circle": [[40.0, 25.0], [45.0, 25.0]],
        "line": [[5.5, 36.5], [50.5, 36.5]],
    }
    common = {"label": "crack", "group_id": None, "description": "", "flags": {}}
    masks = {"mask": utils.img_arr_to_b64(part.astype(np.uint8))}
    shapes = [{**common, "shape_type": kind, "points": at, "mask": masks.get(kind)} for kind, at in drawn.items()]
    write_label_file(
        str(folder / "a.json"), shapes=shapes, image_path="images/a.png", image_height=HEIGHT, image_width=WIDTH
    )
    size = (HEIGHT, WIDTH)
    return [PIXELS if kind == "mask" else utils.shape_to_mask(size, points, kind) for kind, points in drawn.items()]


def write_supervisely(folder: Path) -> list[np.ndarray]:
    """Writes the annotations of a dataset."""
    import supervisely as sly

    def place(x: float, y: float) -> "sly.PointLocation":
        return sly.PointLocation(round(y), round(x))

    left, top, width, height = map(int, BOX)
    hole = [place(8, 6), place(12, 6), place(12, 10), place(8, 10)]
    shapes = [
        sly.Polygon([place(3, 3), place(20, 3), place(20, 15), place(3, 15)], [hole]),
        sly.Polygon([place(*point) for point in OUTLINE], []),
        sly.Rectangle(top, left, top + height - 1, left + width - 1),
        sly.Bitmap(PIXELS),
        sly.Polyline([place(5, 36), place(50, 36)]),
    ]
    labels = [sly.Label(shape, sly.ObjClass(f"crack {type(shape).__name__}", type(shape))) for shape in shapes]
    (folder / "ann").mkdir()
    (folder / "ann/a.png.json").write_text(json.dumps(sly.Annotation((HEIGHT, WIDTH), labels).to_json()))
    drawn = []
    for shape in shapes:
        canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        shape.draw(canvas, [255, 255, 255])
        drawn.append(canvas.any(-1))
    return drawn


WRITERS: dict[str, Callable[[Path], list[np.ndarray]]] = {
    "datumaro": write_datumaro,
    "labelstudio": write_labelstudio,
    "labelme": write_labelme,
    "supervisely": write_supervisely,
}

if __name__ == "__main__":
    tool, place = sys.argv[1], Path(sys.argv[2])
    (place / "images").mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(place / "images/a.png")
    np.savez(place / "drawn.npz", *WRITERS[tool](place))
