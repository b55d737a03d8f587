"""Simulated trees of large sets: the number of files and the layouts of the real ones, with pictures of 32 x 32 pixels.

Every picture differs from all others. One in three test images is anomalous and, but for Kaputt, has a mask.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from afclip_lightning.datasets.real_iad import RealIAD

SIDE = 32
VIEWS = 5  # of each object of Real-IAD
CATEGORIES = 15  # in MVTec AD's layout


class Painter:
    """Writes different pictures, and the same mask repeatedly.

    Args:
        seed: Seed of the pictures; trees of two seeds share none.
    """

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[8:16, 8:20] = 255
        self.mask = cv2.imencode(".png", mask)[1].tobytes()
        self.folders: set[str] = set()

    def picture(self, path: str) -> None:
        """Writes another picture, in the format of the path's suffix."""
        coarse = self.generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        smooth = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        self._write(path, cv2.imencode(path[path.rindex(".") :], smooth)[1].tobytes())

    def marked(self, path: str) -> None:
        """Writes a mask."""
        self._write(path, self.mask)

    def _write(self, path: str, data: bytes) -> None:
        folder = path.rpartition("/")[0]
        if folder not in self.folders:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.folders.add(folder)
        with open(path, "wb") as file:
            file.write(data)


def parts_of(images: int) -> Iterator[tuple[str, bool]]:
    """Yields the split of each image and whether it is anomalous: of six, three are tested, one of them anomalous."""
    for number in range(images):
        yield ("train", False) if number % 2 else ("test", number % 6 == 0)


def write_mvtec(root: Path, images: int, seed: int = 0, categories: int = CATEGORIES) -> None:
    """Writes MVTec AD's layout, in folders from `category_00` on."""
    painter = Painter(seed)
    for category in range(categories):
        folder = f"{root}/category_{category:02}"
        for number, (split, anomalous) in enumerate(parts_of(images // categories)):
            kind = ("scratch", "dent")[number % 4 // 2] if anomalous else "good"
            painter.picture(f"{folder}/{split}/{kind}/{number:06}.png")
            if anomalous:
                painter.marked(f"{folder}/ground_truth/{kind}/{number:06}_mask.png")


def write_one_category(root: Path, images: int, seed: int = 0) -> None:
    """Writes MVTec AD's layout with all images in one category: three folders that hold nearly all of them."""
    write_mvtec(root, images, seed, categories=1)


def write_real_iad(root: Path, images: int, seed: int = 0) -> None:
    """Writes Real-IAD's lists and folders: all 30 categories, five views of each object in its own folder."""
    painter = Painter(seed)
    for category in RealIAD.published:
        lists: dict[str, list[dict[str, str | None]]] = {"train": [], "test": []}
        for number, (split, anomalous) in enumerate(parts_of(images // len(RealIAD.published) // VIEWS)):
            kind, inner = ("NG_HS", "NG/HS") if anomalous else ("OK", "OK")
            for view in range(1, VIEWS + 1):
                stem = f"{inner}/S{number:04}/{category}_{number:04}_{kind}_C{view}_20231023092610"
                place = f"{root}/realiad_1024/{category}/{stem}"
                painter.picture(f"{place}.jpg")
                if anomalous:
                    painter.marked(f"{place}.png")
                lists[split].append(
                    {
                        "category": category,
                        "anomaly_class": "HS" if anomalous else "OK",
                        "image_path": f"{stem}.jpg",
                        "mask_path": f"{stem}.png" if anomalous else None,
                    }
                )
        path = root / "realiad_jsons" / f"{category}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"meta": {"prefix": f"{category}/", "normal_class": "OK"}, **lists}))


def write_kaputt(root: Path, images: int, seed: int = 0) -> None:
    """Writes Kaputt's tables and folders: one category, two folders that hold all images, no masks."""
    import pyarrow
    from pyarrow import parquet

    painter = Painter(seed)
    rows: dict[str, list[tuple[str, bool]]] = {"train": [], "test": []}
    for number, (split, anomalous) in enumerate(parts_of(images)):
        rows[split].append((f"{number:08}", anomalous))
        painter.picture(f"{root}/query-crop/data/{split}/query-data/crop/{number:08}.jpg")
    for split, part in rows.items():
        table = pyarrow.table(
            {
                "capture_id": [name for name, _ in part],
                "defect": [damaged for _, damaged in part],
                "major_defect": [damaged for _, damaged in part],
                "defect_types": ["deformation" if damaged else "" for _, damaged in part],
            }
        )
        (root / "datasets").mkdir(exist_ok=True)
        parquet.write_table(table, root / "datasets" / f"query-{split}.parquet")


LAYOUTS: dict[str, Callable[[Path, int, int], None]] = {
    "mvtec": write_mvtec,
    "one_category": write_one_category,
    "real_iad": write_real_iad,
    "kaputt": write_kaputt,
}
