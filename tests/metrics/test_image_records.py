"""The file of image records: read back as written, and rejected in one message if it is damaged."""

import json
import zipfile

import numpy as np
import pytest
import torch

from afclip_lightning.metrics.image_counts import ImageCounts, ImageRecord
from afclip_lightning.metrics.image_records import RECORDS_FILE, read_records, write_records
from afclip_runtime.errors import UserError
from tests.support.image_records import categories, records_of, regions


def all_records():
    maps, masks, labels, scores = categories()
    bottle = records_of(maps, masks, labels, scores, names=[f"a/b\udcff {i:02}.png" for i in range(12)])
    wide = ImageCounts.of(torch.from_numpy(maps[0]).double() * (1 + 1e-12), regions(masks[0]))
    cable = [ImageRecord("x", 1, None, None), ImageRecord("y", 0, 2.0**60 + 2**20, wide)]
    return {("mvtec", "bottle"): bottle, ("mvtec", "cable"): cable, ("visa", "empty"): []}


def same(one, other):
    assert (one.name, one.label, one.score) == (other.name, other.label, other.score)
    assert (one.counts is None) == (other.counts is None)
    for a, b in zip(one.counts or (), other.counts or (), strict=True):
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None)
        np.testing.assert_array_equal(a, b)


def test_what_is_written_is_read_back(tmp_path):
    records = all_records()
    write_records(tmp_path / RECORDS_FILE, records)
    found = read_records(tmp_path / RECORDS_FILE)
    assert list(found) == list(records)
    for key, part in records.items():
        assert len(found[key]) == len(part)
        for one, other in zip(found[key], part, strict=True):
            same(one, other)


def test_equal_records_are_equal_bytes_in_any_order(tmp_path):
    records = all_records()
    write_records(tmp_path / "a.npz", records)
    write_records(tmp_path / "b.npz", {key: part[::-1] for key, part in records.items()})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def refused(path, match):
    with pytest.raises(UserError, match=match) as caught:
        read_records(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / RECORDS_FILE
    refused(path, "does not exist")
    path.write_bytes(b"no archive")
    refused(path, "holds no counts of images")
    np.savez(path, other=np.zeros(3))
    refused(path, "holds no counts of images")
    np.savez(path, head=np.array([{"a": 1}], object), allow_pickle=True)
    refused(path, "holds no counts of images")
    write_records(path, all_records())
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    refused(path, "holds no counts of images")
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    refused(path, "holds no counts of images")


def changed(path, **arrays):
    """Writes a file with some arrays replaced; `None` leaves an array out."""
    write_records(path, all_records())
    with np.load(path) as found:
        parts = {**found, **arrays}
    np.savez(path, **{name: part for name, part in parts.items() if part is not None})


def head(**values):
    images = [["mvtec", "bottle", [f"{i}" for i in range(12)]], ["mvtec", "cable", ["x", "y"]]]
    return np.frombuffer(json.dumps({"format": 1, "images": images, **values}).encode(), np.uint8)


def test_parts_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / RECORDS_FILE
    changed(path, head=head())
    assert len(read_records(path)["mvtec", "bottle"]) == 12  # the change alone is no fault
    for match, arrays in {
        "its format is 2": {"head": head(format=2)},
        "it holds a category twice": {"head": head(images=[["a", "b", []], ["a", "b", []]])},
        "its parts do not fit each other": {"head": head(images=[["a", "b", []]])},
        "images": {"head": head(images=3)},
        "score is float32": {"score": np.zeros(14, np.float32)},
        "label is int8": {"label": np.zeros((14, 1), np.int8)},
    }.items():
        changed(path, **arrays)
        refused(path, match)
    changed(path, pixels=None)
    refused(path, "pixels")
    changed(path, label=np.full(14, 2, np.int8))
    refused(path, "do not fit")


def test_bins_of_other_scores_are_refused(tmp_path):
    path = tmp_path / RECORDS_FILE
    with np.load(_written(path)) as found:
        parts = dict(found)
    for name, value in (
        ("lowest", parts["lowest"] - 2**40),
        ("highest", parts["lowest"] - 1),
        ("highest", parts["lowest"]),
        ("bins", parts["bins"][::-1]),
        ("bins", parts["bins"] + np.uint16(2**14)),
        ("marked", parts["marked"][::-1]),
        ("anomalous", parts["anomalous"] + np.uint32(2**30)),
        ("region_weight", -parts["region_weight"]),
    ):
        changed(path, **{name: value})
        refused(path, "its bins are not those of its scores")


def _written(path):
    write_records(path, all_records())
    return path


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    path = _written(tmp_path / RECORDS_FILE)
    size = sum(part.file_size for part in zipfile.ZipFile(path).infolist())
    monkeypatch.setattr("afclip_runtime.files.arrays.TABLE_LIMIT", size - 1)
    assert read_records(path)  # what many images need is read, however much it is
    monkeypatch.setattr("afclip_runtime.files.arrays.PACKING", 1)
    refused(path, "bytes unpacked")
