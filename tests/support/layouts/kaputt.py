"""Kaputt's tables and folders: three training images, one of them damaged, and six test images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.layouts import write_image, write_mask

# capture, defect, major_defect, defect_types; its item and material do not matter
Row = tuple[str, bool, bool, str | None]
ROWS: Mapping[str, Sequence[Row]] = {
    "train": [("a0", False, False, ""), ("a1", False, False, ""), ("a2", True, True, "spillage")],
    "test": [
        ("b0", False, False, ""),
        ("b1", True, False, "superficial"),
        ("b2", False, False, None),
        ("b3", True, True, "penetration,deformation"),
        ("b4", True, True, "deformation, penetration"),
        ("b5", True, False, "missing_unit"),
    ],
}


def write_table(path: Path, split: str, rows: Sequence[Row]) -> Path:
    """Writes the table of a split, with all columns of the set, and returns it."""
    import pyarrow
    from pyarrow import parquet

    inner = f"data/{split}/query-data"
    columns: dict[str, Any] = {
        "capture_id": [row[0] for row in rows],
        "item_identifier": [f"item-{row[0]}" for row in rows],
        "defect": [row[1] for row in rows],
        "major_defect": [row[2] for row in rows],
        "defect_types": pyarrow.array([row[3] for row in rows], pyarrow.string()),
        "item_material": ["cardboard" for _ in rows],
        "query_image": [f"{inner}/image/{row[0]}.jpg" for row in rows],
        "query_crop": [f"{inner}/crop/{row[0]}.jpg" for row in rows],
        "query_mask": [f"{inner}/mask/{row[0]}.png" for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)
    return path


def write_kaputt(
    root: Path, images: str = "query-{view}/data", tables: str = "datasets", views: Sequence[str] = ("crop",)
) -> Path:
    """Writes tables and images, and returns the root.

    Args:
        root: Folder of the set.
        images: Folder above those of the splits.
        tables: Folder of the tables.
        views: Kinds of images.
    """
    for split, rows in ROWS.items():
        write_table(root / tables / f"query-{split}.parquet", split, rows)
        for capture, *_ in rows:
            for view in views:
                write_image(root / images.format(view=view) / split / "query-data" / view / f"{capture}.jpg")
            # of the item, not of its damage
            write_mask(root / images.format(view="mask") / split / "query-data/mask" / f"{capture}.png")
    return root
