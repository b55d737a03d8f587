"""Sets that a file lists: AnomalyCLIP's meta.json and AA-CLIP's JSON lines."""

import json
from pathlib import Path
from typing import Any

import pytest

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.datasets.listing import Listing
from afclip_runtime.errors import DatasetError
from tests.support.layouts import write_image, write_mask
from tests.support.layouts.listing import entries, write_json_lines, write_meta


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Train", "Test")])
def test_meta(train: str, test: str, tmp_path: Path) -> None:
    dataset = Listing(write_meta(tmp_path / "my_set", train, test), num_workers=0)
    dataset.check()
    dataset.connect(Preprocess(28))
    (batch,) = dataset.test_dataloader()
    assert batch.label.tolist() == [1, 1, 0, 1]
    assert (batch.mask.flatten(1).sum(1) > 0).tolist() == [True, True, False, True]
    assert [s.image_path.name for s in dataset.few_shot(2, 0)["my_set", "bolt"]] == ["000.png", "001.png"]


def test_json_lines(tmp_path: Path) -> None:
    root = write_json_lines(tmp_path / "set")
    dataset = Listing(root, "full-shot.jsonl", name="lines")
    dataset.check()
    samples = dataset.samples("test")
    assert [(s.dataset, s.category, s.label, s.mask_known) for s in samples] == [
        ("lines", "bolt", label, True) for label in (1, 1, 0, 1)
    ]
    assert [s.image_path for s in samples] == [s.image_path for s in Listing(write_meta(root)).samples("test")]
    assert not dataset.find_samples("bolt", "train")


@pytest.mark.parametrize("key", ["image_path", "mask_path"])
def test_json_lines_that_climb_out_of_the_root(key: str, tmp_path: Path) -> None:
    table = write_json_lines(tmp_path / "set") / "full-shot.jsonl"
    write_image(tmp_path / "outside.png")
    lines = [json.loads(line) for line in table.read_text().split("\n") if line]
    lines[2][key] = "../outside.png"
    table.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DatasetError, match=r"full-shot\.jsonl, line 3: '\.\./outside\.png' leads out of"):
        Listing(tmp_path / "set", "full-shot.jsonl").samples("test")


@pytest.mark.parametrize("mask", ["", None, "bolt"])
def test_no_mask_means_not_known(mask: str | None, tmp_path: Path) -> None:
    rewrite(write_meta(tmp_path), 1, mask_path=mask)
    samples = Listing(tmp_path).samples("test")
    assert [(s.label, s.mask_known) for s in samples] == [(1, False), (1, True), (0, True), (1, True)]


def rewrite(root: Path, index: int, **values: Any) -> None:
    """Changes one entry of the test split."""
    meta = json.loads((root / "meta.json").read_text())
    meta["test"]["bolt"][index].update(values)
    (root / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"img_path": "../outside.png"}, "leads out of"),
        ({"img_path": "bolt/../../outside.png"}, "leads out of"),
        ({"img_path": "/etc/hostname"}, "leads out of"),
        ({"mask_path": "../outside.png"}, "leads out of"),
        ({"img_path": "bolt/test/crack/009.png"}, "there is no file"),
        ({"img_path": "bolt/test/good/000.png"}, "already in an earlier entry"),
        ({"anomaly": 2}, "anomaly must be 0 or 1, got 2"),
        ({"mask_path": "bolt/ground_truth/crack/001_mask.png"}, "paired by position"),
    ],
)
def test_faulty_entry(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    root = write_meta(tmp_path / "set")
    write_image(tmp_path / "outside.png")
    rewrite(root, 1, **values)
    with pytest.raises(DatasetError, match=rf"meta\.json, test, bolt, entry 2: .*{message}"):
        Listing(root).samples("test")


def test_a_missing_image_shifts_the_masks_of_a_script(tmp_path: Path) -> None:
    root = write_meta(tmp_path)
    (root / "bolt/test/crack/000.png").unlink()
    (root / "meta.json").write_text(json.dumps({"test": {"bolt": entries(root)}}))
    with pytest.raises(DatasetError, match=r"001\.png is given the mask 000_mask\.png"):
        Listing(root).samples("test")


def test_absolute_paths_in_the_root(tmp_path: Path) -> None:
    root = write_meta(tmp_path)
    rewrite(root, 1, img_path=str(root / "bolt/test/crack/000.png"))
    assert len(Listing(root).samples("test")) == 4


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no file .*meta\.json"):
        Listing(tmp_path).check()
    for text, message in (
        ("{", "is not valid JSON"),
        ("[]", "must be an object"),
        ('{"test": []}', r"meta\.json, test: must"),
    ):
        (tmp_path / "meta.json").write_text(text)
        with pytest.raises(DatasetError, match=message):
            Listing(tmp_path).check()
    (tmp_path / "a.jsonl").write_text('\n{"image_path": "a.png", "label": 0}\n')
    with pytest.raises(DatasetError, match=r"a\.jsonl, line 2: has no class_name"):
        Listing(tmp_path, "a.jsonl").check()
    with pytest.raises(ValueError, match=r"got table\.csv"):
        Listing(tmp_path, "table.csv")


def test_masks_beside_their_images(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_image(tmp_path / f"{name}.png")
    for name in ("a_gt", "c-defects"):
        write_mask(tmp_path / f"{name}.png")
    entries = [
        {"img_path": "a.png", "mask_path": "a_gt.png", "anomaly": 1},
        {"img_path": "b.png", "mask_path": "", "anomaly": 0},
        {"img_path": "c.png", "mask_path": "c-defects.png", "anomaly": 1},
    ]
    meta = {"test": {"x": entries}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    samples = Listing(tmp_path).samples("test")
    assert [s.mask_path and s.mask_path.name for s in samples] == ["a_gt.png", None, "c-defects.png"]
    assert not Listing(tmp_path).notes()
    write_mask(tmp_path / "c_gt.png")
    entries[2]["mask_path"] = "a_gt.png"
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(DatasetError, match=r"c\.png is given the mask a_gt\.png, but .*c_gt\.png is there"):
        Listing(tmp_path).samples("test")
    entries[2]["mask_path"] = "b.png"
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(DatasetError, match=r"entry 3: 'b\.png' is named as a mask, and is listed as an image"):
        Listing(tmp_path).samples("test")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"img_path": "./bolt/test/good/000.png"}, "with another label: here 1, there 0"),
        ({"anomaly": True}, "anomaly must be 0 or 1, got True"),
        ({"anomaly": "1"}, "anomaly must be 0 or 1, got '1'"),
        ({"img_path": 3}, "img_path must be text, got '3'"),
        ({"img_path": ""}, "img_path is empty"),
        ({"mask_path": ["x"]}, "mask_path must be text"),
        ({"anomaly": 0}, "the image is normal, and a mask is named for it"),
    ],
)
def test_entries_are_read_strictly(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    rewrite(write_meta(tmp_path), 1, **values)
    with pytest.raises(DatasetError, match=rf"meta\.json, test, bolt, entry 2: .*{message}"):
        Listing(tmp_path).samples("test")


def test_splits_that_are_not_used_are_named(tmp_path: Path) -> None:
    table = write_json_lines(tmp_path / "set") / "full-shot.jsonl"
    lines = [json.loads(line) for line in table.read_text().split("\n") if line]
    splits = zip(lines, ("Test", "val", "test", "TRAIN"), strict=True)
    table.write_text("\n".join(json.dumps(line | {"split": split}) for line, split in splits))
    dataset = Listing(tmp_path / "set", "full-shot.jsonl")
    assert (len(dataset.samples("test")), len(dataset.find_samples("bolt", "train"))) == (2, 1)
    assert [item.reason for item in dataset.left_out("test")] == ["of a split that is neither train nor test (val)"]
