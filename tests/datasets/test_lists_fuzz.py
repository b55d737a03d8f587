"""Lists of images with any content: a result, or one error that names the file."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.datasets.elpv import ELPV
from afclip_lightning.datasets.headct import HeadCT
from afclip_lightning.datasets.listing import Listing
from afclip_lightning.datasets.table import Table
from afclip_lightning.datasets.visa import VisA
from afclip_runtime.errors import DatasetError
from tests.support.layouts import write_image
from tests.support.layouts.listing import write_json_lines, write_meta
from tests.support.layouts.tables import write_elpv, write_headct
from tests.support.layouts.visa import write_visa


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, bytes, AnomalyDataModule]]:
    """Each kind of list: the file, its content, and the dataset that reads it."""
    root = tmp_path_factory.mktemp("lists")
    write_image(root / "table/0.png")
    (root / "table/images.csv").write_text('image,label,category\n0.png,0,"a, b"\n./0.png,0,c\n')
    (root / "table/images.jsonl").write_text('{"image": "0.png", "label": 0}\n')
    meta, lines, visa = (
        write_meta(root / "meta"),
        write_json_lines(root / "lines"),
        write_visa(root / "visa", ["candle"]),
    )
    elpv, headct = write_elpv(root / "elpv"), write_headct(root / "headct")
    found: list[tuple[Path, AnomalyDataModule]] = [
        (root / "table/images.csv", Table(root / "table")),
        (root / "table/images.jsonl", Table(root / "table", "images.jsonl")),
        (meta / "meta.json", Listing(meta)),
        (lines / "full-shot.jsonl", Listing(lines, "full-shot.jsonl")),
        (visa / "split_csv/1cls.csv", VisA(visa, categories=["candle"])),
        (elpv / "labels.csv", ELPV(elpv)),
        (headct / "labels.csv", HeadCT(headct)),
    ]
    return {f"{type(data).__name__} {file.name}": (file, file.read_bytes(), data) for file, data in found}


NAMES = (
    "Table images.csv",
    "Table images.jsonl",
    "Listing meta.json",
    "Listing full-shot.jsonl",
    "VisA 1cls.csv",
    "ELPV labels.csv",
    "HeadCT labels.csv",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_content_gives_samples_or_one_error(
    name: str, data: st.DataObject, sets: dict[str, tuple[Path, bytes, AnomalyDataModule]]
) -> None:
    file, content, dataset = sets[name]
    at = data.draw(st.integers(0, len(content)))
    until = data.draw(st.integers(at, len(content)))
    put = data.draw(
        st.one_of(st.binary(max_size=8), st.sampled_from([b'"', b",", b"{", b"[[", b"NaN", b"\0", b"1e999"]))
    )
    file.write_bytes(content[:at] + put + content[until if data.draw(st.booleans()) else at :])
    try:
        with contextlib.suppress(DatasetError):
            dataset.check("test")
            dataset.samples("test")
            dataset.left_out("test")
            dataset.notes()
    finally:
        file.write_bytes(content)
