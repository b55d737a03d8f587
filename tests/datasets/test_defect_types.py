"""Defect types of anomalous images: from folder names, a column of a table, a field of a listing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.datasets.listing import Listing
from afclip_lightning.datasets.mvtec_ad_2 import MVTecAD2
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.datasets.table import Table
from afclip_lightning.datasets.visa import VisA
from afclip_runtime.errors import DatasetError
from tests.support.layouts import write_image
from tests.support.layouts.listing import entries, write_meta
from tests.support.layouts.mvtec import write_mvtec
from tests.support.layouts.mvtec_ad_2 import write_mvtec_ad_2
from tests.support.layouts.visa import write_visa

KINDS = {"good": "", "crack": "crack", "stain": "stain"}


def table_of(root: Path, lines: list[str]) -> Table:
    (root / "images.csv").write_text("\n".join(["image,label,mask,defect_type", *lines, ""]))
    return Table(root)


def written_table(root: Path) -> Table:
    write_mvtec(root, ["bolt"])
    lines = [f"{e['img_path']},{e['anomaly']},{e['mask_path']},{KINDS[e['specie_name']]}" for e in entries(root)]
    return table_of(root, lines)


def written_lines(root: Path) -> Listing:
    write_mvtec(root, ["bolt"])
    keys = {"img_path": "image_path", "mask_path": "mask_path", "anomaly": "label", "cls_name": "class_name"}
    lines = [{new: e[old] for old, new in keys.items()} | {"defect_type": e["specie_name"]} for e in entries(root)]
    (root / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return Listing(root, "list.jsonl")


@pytest.mark.parametrize(
    "make",
    [
        lambda root: MVTecLayout(write_mvtec(root, ["bolt"])),
        lambda root: Listing(write_meta(root)),
        written_lines,
        written_table,
    ],
    ids=["folders", "meta.json", "json lines", "table"],
)
def test_types_are_those_of_the_set(make: Callable[[Path], AnomalyDataModule], tmp_path: Path) -> None:
    samples = make(tmp_path / "set").samples("test")
    assert {(s.image_path.parent.name, s.defect_type) for s in samples} == set(KINDS.items())


def test_a_folder_below_a_defect_type_is_not_a_type(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path, ["bolt"])
    write_image(root / "bolt/test/stain/camera_2/9.png")
    (root / "bolt/ground_truth").rename(root / "masks")
    found = {s.image_path.name: s.defect_type for s in MVTecLayout(root).samples("test") if s.label}
    assert found["9.png"] == "stain"


def test_one_type_alone_tells_nothing(tmp_path: Path) -> None:
    for data in (MVTecAD2(write_mvtec_ad_2(tmp_path / "2")), VisA(write_visa(tmp_path / "visa", VisA.published))):
        assert {s.defect_type for s in data.samples("test")} == {""}


def test_a_normal_image_has_no_type(tmp_path: Path) -> None:
    for name in "ab":
        write_image(tmp_path / f"{name}.png")
    data = table_of(tmp_path, ["a.png,normal,,scratch", "b.png,anomalous,,"])
    with pytest.raises(DatasetError, match="line 2: the image is normal, and has a defect type: 'scratch'"):
        data.samples("test")
