"""`make demo-real`, with a small model in place of the ready one."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import REPOSITORY
from tests.support.ready_model import use, write_ready

pytest.importorskip("skimage", reason="scikit-image is not installed: pip install 'afclip_lightning[real]'")

from experiments.real_demo import pictures, run


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_each_photo_comes_as_it_is_and_with_defects(tmp_path: Path) -> None:
    paths = pictures.write(tmp_path)
    assert len(paths) == sum(1 + len(kinds) for _, _, kinds in pictures.PICTURES)
    for name, _, kinds in pictures.PICTURES:
        clean = read(tmp_path / f"{name}.jpg")
        for kind in kinds:
            changed = np.abs(read(tmp_path / f"{name}_{kind}.jpg") - clean).max(axis=2) > 40
            assert 0.0003 < changed.mean() < 0.2


def test_the_picture_of_the_page_is_one_of_them(tmp_path: Path) -> None:
    pictures.write(tmp_path)
    sample = REPOSITORY / "afclip_runtime/serving/web/sample.jpg"
    assert np.abs(read(sample) - read(tmp_path / f"{pictures.SAMPLE}.jpg")).mean() < 1
    assert sample.stat().st_size < 200_000
    assert pictures.SAMPLE in sample.with_suffix(".md").read_text()


@pytest.mark.slow
def test_photos_are_judged_and_the_page_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(write_ready(tmp_path / "models", {}, "real").parent, monkeypatch)
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / "mine.png")
    monkeypatch.setattr(sys, "argv", ["run", "--out", str(tmp_path / "out"), "--photos", str(tmp_path / "mine.png")])
    assert run.main() == 0
    said = capsys.readouterr().out
    assert "of 4 photos as they are are called anomalous" in said
    assert "of 8 photos with a drawn defect are called anomalous" in said
    assert "of 1 photos of your own are called anomalous" in said
    page = (tmp_path / "out/report.html").read_text()
    assert "The threshold is the head's default, which does not depend on this product" in page
    assert len(list((tmp_path / "out/overlays").rglob("*.jpg"))) == 13
