"""Counts of images in a temporary file: read back unchanged, with little memory."""

import pickle

import numpy as np
import pytest

from afclip_lightning.metrics import kept_counts
from afclip_lightning.metrics.image_counts import CategoryCounts, ImageRecord
from afclip_lightning.metrics.image_records import write_records
from afclip_lightning.metrics.kept_counts import CountsFile, KeptCounts
from afclip_lightning.metrics.spro import saturated
from afclip_runtime.errors import WriteError
from tests.support.image_records import categories, records_of


def equal(one: CategoryCounts, other: CategoryCounts) -> None:
    assert one.names == other.names
    for name in ("labels", "scores", "masked", "lowest", "normal", "anomalous", "region_weight", "tied"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.above.keys() == other.above.keys()
    for level, counts in one.above.items():
        np.testing.assert_array_equal(counts, other.above[level])


@pytest.mark.parametrize("in_memory", [0, kept_counts.IN_MEMORY])
def test_counts_are_read_back_as_they_were(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(kept_counts, "IN_MEMORY", in_memory or 1)
    records = [*records_of(*categories()), ImageRecord("without a mask", 1, None, None)]
    file = CountsFile(tmp_path / "run")
    kept = [file.keep(record) for record in records]
    for one, other in zip(records, kept, strict=True):
        assert (one.name, one.label, one.score) == (other.name, other.label, other.score)
        assert (one.counts is None) == (other.counts is None)
        for a, b in zip(one.pixels() or (), other.pixels() or (), strict=True):
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None)
            np.testing.assert_array_equal(a, b)
    assert isinstance(kept[0].counts, KeptCounts)
    sent = pickle.loads(pickle.dumps(kept[0])).counts
    np.testing.assert_array_equal(sent.pixels, records[0].counts.pixels)
    thresholds = {"image": 0.5, "pixel": 0.5}
    equal(CategoryCounts.of(kept[:-1], thresholds), CategoryCounts.of(records[:-1], thresholds))
    assert saturated(kept) is None
    for name, part in (("a", records), ("b", kept)):
        write_records(tmp_path / f"{name}.npz", {("d", "c"): part})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_weights_of_spro_are_kept_too():
    records = records_of(*categories())
    weighed = [
        ImageRecord(r.name, r.label, r.score, r.counts._replace(saturated_weight=r.counts.region_weight // 2))
        for r in records
    ]
    file = CountsFile()
    found = saturated([file.keep(record) for record in weighed])
    assert found is not None
    expected = saturated(weighed)
    assert expected is not None
    equal(found, expected)
    assert (found.region_weight < CategoryCounts.of(records).region_weight).any()


def test_a_record_takes_as_much_memory_whatever_its_counts_are():
    file = CountsFile()
    sizes = {len(pickle.dumps(file.keep(r).counts._replace(file=None)[1:])) for r in records_of(*categories())}
    assert max(sizes) < 200  # bytes
    assert all(record.counts.nbytes > 2000 for record in records_of(*categories()))


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_counts, "IN_MEMORY", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"file.*cannot be written there.*test without intervals"):
        CountsFile(tmp_path / "file").keep(records_of(*categories())[0])
