"""The white level: from the file's bits, estimated from a set, or given; where it is recorded."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.backbones.store_files import image_digest
from afclip_lightning.data.doctor import examine
from afclip_lightning.data.loading_options import Loading
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_runtime.cli.options import white_of
from afclip_runtime.errors import UserError
from afclip_runtime.images.white import LOOKED_AT, white_from_text, white_value
from tests.support.layouts.mvtec import write_mvtec


def write_deep(path: Path, highest: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.linspace(0, highest, 400).astype(np.uint16).reshape(20, 20)
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize(
    ("white", "value"), [("bits", None), (12, 4095), (16, 65535), (8, 255), (4095, 4095), (3000, 3000)]
)
def test_levels_that_are_given(white: object, value: int | None) -> None:
    assert white_value(white, ()) == value  # type: ignore[arg-type]
    assert white_from_text(str(white)) == white


@pytest.mark.parametrize("white", ["12 bits", 0, -1, 65536, True, 1.5, None])
def test_invalid_levels(white: object) -> None:
    with pytest.raises(ValueError, match="white must be auto, bits, or a number"):
        Loading(white=white)  # type: ignore[arg-type]


@pytest.mark.parametrize(("highest", "value"), [(200, 255), (700, 1023), (4000, 4095), (4096, 8191), (65535, 65535)])
def test_auto_is_the_bits_that_a_set_uses(highest: int, value: int, tmp_path: Path) -> None:
    images = [write_deep(tmp_path / f"{n}.png", highest // (n + 1)) for n in range(3)]
    Image.new("L", (4, 4), 255).save(tmp_path / "byte.png")  # says nothing
    (tmp_path / "damaged.png").write_bytes(b"")
    everything = [*images, tmp_path / "byte.png", tmp_path / "damaged.png"]
    assert white_value("auto", everything) == white_value("auto", everything[::-1]) == value
    assert white_value("auto", [tmp_path / "byte.png"]) is None


def test_auto_looks_at_a_bounded_number_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from afclip_runtime.images import white

    seen: list[Path] = []
    real = white.read
    monkeypatch.setattr(white, "read", lambda path: seen.append(path) or real(path))
    image = write_deep(tmp_path / "a.png", 4000)
    white_value("auto", [image] * 1000)
    assert len(seen) <= LOOKED_AT


def test_a_set_has_one_level_in_every_loader(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path, ["a"])
    for path in root.rglob("a/t*/*/*.png"):
        write_deep(path, 900 if "train" in path.parts else 4000)
    for path in root.rglob("*_mask.png"):
        Image.fromarray(np.eye(20, dtype=np.uint8)).save(path)
    data = MVTecLayout(root, num_workers=0)
    brightest, preprocess = {}, Preprocess(28)
    for white in ("bits", "auto", 12, {"mvtec_layout": 12, data.name: 12}, {"another": 12}):
        (batch,) = data.connect(preprocess, Loading(white=white)).test_dataloader()  # type: ignore[arg-type]
        brightest[str(white)] = int(preprocess.to_pixels(batch.image[0]).max())
        shots = data.few_shot(1, 0)
        assert {s.white for shot in shots.values() for s in shot} == {s.white for s in data.samples("test")}
    assert brightest["bits"] == brightest["{'another': 12}"] < 20
    assert brightest["auto"] == brightest["12"] > 240


def test_features_are_kept_under_the_level(tmp_path: Path) -> None:
    image = write_deep(tmp_path / "a.png", 4000)
    assert len({image_digest(image), image_digest(image, 4095), image_digest(image, 65535)}) == 3


def test_what_the_commands_take(tmp_path: Path) -> None:
    image = write_deep(tmp_path / "a.png", 4000)
    taken = {"bits": "bits", "12": 4095, "auto": 4095, "4000": 4000, None: None}
    for text, level in taken.items():
        assert white_of(Namespace(white=text), [image]) == level
    for text, images in (("auto", []), ("12bit", [image]), ("0", [image])):
        with pytest.raises(UserError, match="white"):
            white_of(Namespace(white=text), images)


def test_check_tells_nearly_black_images(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path, ["a"])
    deep = write_deep(root / "a/test/good/000.png", 4000)
    data = MVTecLayout(root)
    notes = "\n".join(examine(data).notes)
    assert "1 image uses less than an eighth of its range" in notes
    data.loading = Loading(white="auto")
    assert "an eighth" not in "\n".join(examine(data).notes)
    assert deep.is_file()
