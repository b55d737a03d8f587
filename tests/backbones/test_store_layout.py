"""Paths of a feature store: few files per folder, files of earlier versions are found, memory stays small."""

import os
import stat
import time
import tracemalloc
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from afclip_lightning.backbones import store_files, store_layout
from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.store import FeatureStore
from afclip_lightning.backbones.store_files import SPEC_FILE, statement
from afclip_lightning.backbones.store_layout import feature_files, feature_path
from afclip_lightning.cli import features
from afclip_runtime.files import write_json
from tests.support.clips import small_config

SPEC = {"model": "m", "weights_hash": "0", "activation": "gelu", "image_size": 28, "pos_embed": "bilinear"}
SPEC |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "compute": "float32", "dtype": "float32"}
LARGEST, IMAGES = 10_000, 10**8
DIGESTS = [blake2b(str(number).encode(), digest_size=20).hexdigest() for number in range(20_000)]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    backbone = ClipBackbone(small_config(tmp_path), "random", image_size=None)
    store = FeatureStore(tmp_path / "store", backbone.spec((1, 3)), backbone.grid, dtype="float32")
    store.save(DIGESTS[:4], backbone.encode_image(torch.randn(4, 3, 28, 28), store.spec))
    return store


def as_before(store: FeatureStore) -> dict[Path, Path]:
    """Moves the files of a store to the paths of earlier versions. Returns these by the current paths."""
    moved = {path: path.parents[1] / path.name for path in feature_files(store.folder.parent)}
    for path, earlier in moved.items():
        path.rename(earlier)
        path.parent.rmdir()
    return moved


def test_no_folder_holds_more_than_ten_thousand_of_a_hundred_million() -> None:
    folder = Path("store/key")
    places = Counter()
    for digest in DIGESTS:
        path = feature_path(folder, "layer-01", digest)
        assert path == folder / "layer-01" / digest[:2] / digest[2:4] / f"{digest}.safetensors"
        places[path.parent] += 1
    # each level holds the 256 folders that two digits name; each of the 65,536 is as likely as another
    assert {path.parent.name for path in places} == {f"{number:02x}" for number in range(256)}
    assert max(places.values()) <= 7  # of 20,000; 65,536 equally likely folders give 5 on average
    crowded = np.random.default_rng(0).multinomial(IMAGES, np.full(65_536, 1 / 65_536))
    assert crowded.max() < LARGEST / 5
    assert np.random.default_rng(0).multinomial(IMAGES, np.full(256, 1 / 256)).max() > LARGEST  # the layout before


def test_files_of_earlier_versions_are_read_and_move_to_their_place(store: FeatureStore) -> None:
    contents = {path: path.read_bytes() for path in feature_files(store.folder.parent)}
    assert len(contents) == 8
    before = as_before(store)
    assert set(feature_files(store.folder.parent)) == set(before.values())
    assert store_files.verify(store.folder.parent) == []
    taps = store_files.info(store.folder.parent)[0]["taps"]
    assert {tap: entry["images"] for tap, entry in taps.items()} == {"layer-01": 4, "layer-03": 4}
    assert store.load(DIGESTS[0]) is not None
    here = {store.path(DIGESTS[0], tap) for tap in store.spec.taps}
    assert set(feature_files(store.folder.parent)) == here | {old for new, old in before.items() if new not in here}
    for digest in DIGESTS[1:4]:
        assert store.load(digest) is not None
    assert {path: path.read_bytes() for path in feature_files(store.folder.parent)} == contents


def test_features_of_earlier_versions_are_not_computed_again(store: FeatureStore, tmp_path: Path) -> None:
    as_before(store)
    made = ClipBackbone(small_config(tmp_path), "random", image_size=None)
    store.save(DIGESTS[:4], made.encode_image(torch.zeros(4, 3, 28, 28), store.spec))
    assert len(list(feature_files(store.folder.parent))) == 8
    assert store_files.verify(store.folder.parent) == []


def test_a_store_of_an_earlier_version_that_may_not_be_written_is_read(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = as_before(store)

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    assert store.load(DIGESTS[0]) is not None
    assert set(feature_files(store.folder.parent)) == set(before.values())


def test_a_file_that_another_process_moves_meanwhile_is_found(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_before(store)
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        rename(self, target)
        return rename(self, target)  # the other process was faster

    monkeypatch.setattr(Path, "rename", late)
    assert store.load(DIGESTS[0]) is not None


def test_a_file_in_a_folder_of_other_digests_is_damaged(store: FeatureStore) -> None:
    path = store.path(DIGESTS[0], "layer-01")
    other = path.parents[1] / "zz" / path.name
    other.parent.mkdir()
    path.rename(other)
    assert "belong to another image, layer or backbone" in store_files.verify(store.folder.parent)[0]
    assert store.load(DIGESTS[0]) is None
    assert store_files.prune(store.folder.parent, None, None, damaged=True)[0] == 1
    assert not other.exists()


@pytest.mark.parametrize("skew", [-7200, 7200, 3 * 86400])
def test_the_clock_of_another_machine_takes_nothing_that_is_new(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, skew: int
) -> None:
    path = store.path(DIGESTS[0], "layer-01")
    fresh, left = path.with_name(".fresh.tmp"), path.with_name(".left.tmp")
    fresh.touch()
    left.touch()
    now = time.time()
    os.utime(left, (now - 4000, now - 4000))
    monkeypatch.setattr(time, "time", lambda: now + skew)  # the times of files are the file server's
    assert store_files.prune(store.folder.parent, None, 1.0, damaged=False) == (1, 0)
    assert fresh.exists()


def crowd(root: Path, images: int) -> None:
    """Writes a store of tiny features."""
    (root / "key").mkdir(parents=True)
    write_json(root / "key" / SPEC_FILE, SPEC)
    row = {"layer-01": torch.ones(1, 2)}
    for digest in DIGESTS[:images]:
        path = feature_path(root / "key", "layer-01", digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(row, path, metadata=statement(path, row))


def test_looking_after_a_store_is_a_stream(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peaks = []
    for images in (200, 2000):
        root = tmp_path / str(images)
        crowd(root, images)
        tracemalloc.start()
        assert store_files.info(root)[0]["taps"]["layer-01"]["images"] == images
        assert sum(count for count, _ in store_files.check_files(root)) == images
        assert store_files.prune(root, None, 1.0, damaged=True) == (0, 0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
    assert features.main(["verify", str(tmp_path / "200")]) == 0
    assert capsys.readouterr().out == "200 files, 0 damaged.\n"
    victims = sorted(feature_files(tmp_path / "200"))[50:52]
    for victim in victims:
        victim.write_bytes(b"")
    assert features.main(["verify", str(tmp_path / "200")]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "200 files, 2 damaged."
    assert [line.split(":")[0] for line in said[:-1]] == list(map(str, victims))
    torn = victims[0].with_name(".torn.tmp")
    torn.touch()
    os.utime(torn, (0, 0))
    victims[1].with_name(".young.tmp").touch()
    assert features.main(["prune", str(tmp_path / "200"), "--damaged"]) == 0
    assert capsys.readouterr().out.startswith("Removed 3 files")
    assert not torn.exists()
    assert sum(1 for _ in feature_files(tmp_path / "200")) == 198
    assert features.main(["prune", str(tmp_path / "200"), "--key", "key"]) == 0
    assert not (tmp_path / "200/key").exists()


def test_a_hidden_folder_of_a_store_is_no_backbone(tmp_path: Path) -> None:
    crowd(tmp_path, 1)
    (tmp_path / ".build/a/b").mkdir(parents=True)
    (tmp_path / f".build/a/b/x{store_layout.SUFFIX}").touch()
    assert store_layout.keys(tmp_path) == ["key"]
    assert stat.S_ISREG(next(feature_files(tmp_path)).stat().st_mode)
    assert len(list(feature_files(tmp_path))) == 1
