"""`features build --images`: sources of all kinds fill the store that datasets read."""

import os
import tarfile
from pathlib import Path

import pytest

from afclip_lightning.backbones import store_files
from afclip_lightning.backbones.store_files import image_digest
from afclip_lightning.backbones.store_layout import feature_files
from afclip_lightning.cli import features
from tests.support.clips import small_config
from tests.support.feature_files import calls, images
from tests.support.table_runs import options, write_set

CACHE = ["--features.cache=store", "--features.dtype=float32"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    small_config(tmp_path)
    write_set(tmp_path / "train", 0, {("a", 0): 3, ("a", 1): 3})
    write_set(tmp_path / "test", 1, {("a", 0): 3, ("a", 1): 4})
    return tmp_path


def pictures(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.png")) if not path.name.startswith("mask")]


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(os.urandom(1000))
    for white, roi in ((None, ""), (4095, "abc")):
        assert image_digest(path, white, roi) == image_digest(path.read_bytes(), white, roi)


@pytest.mark.slow
def test_a_dataset_finds_the_features_of_sources_with_the_same_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    first, *rest = pictures(folder / "test")
    with tarfile.open("shard-000.tar", "w") as archive:
        for path in rest[:3]:
            archive.add(path, path.name)
    table = pyarrow.table({"image": [path.read_bytes() for path in rest[3:]]})
    parquet.write_table(table, "images.parquet")
    alone = folder / "alone"
    alone.mkdir()
    first.rename(alone / first.name)
    sources = ["--images", "train/a*.png", f"file://{alone}", "shard-{000..000}.tar", "images.parquet"]
    (alone / "torn.png").write_bytes(first.name.encode())
    passes = calls(monkeypatch)
    assert features.main(["build", *options("AFCLIP"), *CACHE, *sources]) == 2
    said = capsys.readouterr().err
    assert "torn.png" in said
    assert "The same command tries these again." in said
    assert sum(passes) == len(images(folder / "store")) == 13
    (alone / "torn.png").unlink()
    passes.clear()
    again = ["--images", *sources[1:]]
    assert features.main(["build", *options("AFCLIP"), *CACHE, *again]) == 2  # what was listed is still named
    (alone / "torn.png").write_bytes((alone / first.name).read_bytes())
    assert features.main(["build", *options("AFCLIP"), *CACHE, *again]) == 0
    assert not passes
    (alone / first.name).rename(first)
    assert features.main(["build", *options("AFCLIP"), *CACHE]) == 0
    assert features.main(["build", *options("AFCLIP"), *CACHE, "--launcher=local"]) == 0
    assert not passes  # the dataset's images are those of the sources
    assert len(list(feature_files(folder / "store"))) == 2 * 13
    assert store_files.verify(folder / "store") == []


@pytest.mark.slow
def test_a_batch_that_was_cut_off_is_computed_as_a_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = calls(monkeypatch)
    command = ["build", *options("AFCLIP"), *CACHE, "--images", "test/a*.png", "--batch_size=4"]
    assert features.main(command) == 0
    whole = {path: path.read_bytes() for path in feature_files(folder / "store")}
    assert passes == [4, 3]
    passes.clear()
    first = image_digest(folder / "test/a00.png")
    for path in (path for path in whole if path.stem == first):
        path.unlink()
    assert features.main(command) == 0
    assert passes == [4]  # features of one image alone might have other last bits
    assert {path: path.read_bytes() for path in feature_files(folder / "store")} == whole


@pytest.mark.slow
def test_options_without_effect_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        features.main(["build", *options("AFCLIP"), *CACHE, "--images", "test", "--loading.roi=a.png"])
    assert "--loading.roi" in capsys.readouterr().err
    assert features.main(["build", *options("AFCLIP"), *CACHE, "--images", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
