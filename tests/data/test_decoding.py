"""Image files of every kind, and files that are not images."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import SequentialSampler

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.data.dataloader import make_loader
from afclip_lightning.data.dataset import AnomalyDataset
from afclip_lightning.data.images import read_image, read_mask
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.types import Sample
from afclip_runtime.errors import DatasetError
from tests.support.layouts import HEIGHT, WIDTH, write_image, write_mask
from tests.support.layouts.mvtec import write_mvtec

RAMP = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)
RGB = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=-1)


def saved(image: Image.Image, path: Path) -> Path:
    image.save(path)
    return path


def test_colour_and_grey(tmp_path: Path) -> None:
    assert np.array_equal(read_image(saved(Image.fromarray(RGB), tmp_path / "a.png")), RGB)
    grey = read_image(saved(Image.fromarray(RAMP), tmp_path / "b.png"))
    assert np.array_equal(grey, np.stack([RAMP] * 3, axis=-1))
    assert grey.dtype == np.uint8


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif"):
        image = read_image(saved(Image.fromarray(RAMP.astype(np.uint16) * 257), tmp_path / name))
        assert np.array_equal(image, np.stack([RAMP] * 3, axis=-1))
    wide = read_image(saved(Image.fromarray(RAMP.astype(np.int32) * 257), tmp_path / "b.tif"))
    assert np.array_equal(wide[..., 0], RAMP)


@pytest.mark.parametrize("values", [RAMP.astype(np.float32) / 255, RAMP.astype(np.int32) * 1000])
def test_fractions_and_more_than_sixteen_bits_are_refused(values: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"a\.tif: holds (float32|int32) values.*Scale them to .*16 bits"):
        read_image(saved(Image.fromarray(values), tmp_path / "a.tif"))


def test_palette_and_alpha(tmp_path: Path) -> None:
    palette = Image.fromarray((RAMP > 100).astype(np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    image = read_image(saved(palette, tmp_path / "p.png"))
    assert image[0, 0].tolist() == [10, 20, 30]
    assert image[-1, -1].tolist() == [200, 100, 50]
    alpha = Image.fromarray(np.dstack([RGB, RAMP]))
    assert np.array_equal(read_image(saved(alpha, tmp_path / "rgba.png")), RGB)
    assert np.array_equal(read_image(saved(alpha.convert("LA"), tmp_path / "la.png")).shape, (HEIGHT, WIDTH, 3))
    cmyk = read_image(saved(Image.fromarray(RGB).convert("CMYK"), tmp_path / "cmyk.jpg"))
    assert np.abs(cmyk.mean(axis=(0, 1)) - RGB.mean(axis=(0, 1))).max() < 6


def test_exif_orientation_turns_the_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees, clockwise
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(RGB, -1))


MASK = np.zeros((HEIGHT, WIDTH), np.uint8)
MASK[2:6, 10:16] = 1


def as_palette(mask: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(mask).convert("P")
    image.putpalette(colours)
    return image


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(MASK * 255),
        Image.fromarray(MASK),
        Image.fromarray(MASK * 9),
        Image.fromarray(MASK * 255).convert("1"),
        Image.fromarray(MASK * 255).convert("RGB"),
        Image.fromarray(np.dstack([MASK * 0, MASK * 0, MASK * 40])),
        Image.fromarray(np.dstack([MASK * 255] * 3 + [MASK * 0 + 255])),
        Image.fromarray(np.dstack([MASK * 255, MASK * 0 + 255])),
        Image.fromarray(MASK.astype(np.uint16) * 256),
        as_palette(MASK, [0, 0, 0, 0, 0, 128]),
        as_palette(1 - MASK, [255, 255, 255, 0, 0, 0]),
    ],
    ids=["0/255", "0/1", "0/9", "bilevel", "rgb", "blue", "rgba", "la", "16bit", "palette", "palette_black_last"],
)
def test_any_value_that_is_not_zero_is_anomalous(image: Image.Image, tmp_path: Path) -> None:
    mask = read_mask(saved(image, tmp_path / "m.png"))
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, MASK)


def test_mask_threshold(tmp_path: Path) -> None:
    smooth = MASK * np.uint8(255)
    smooth[1, 10:16], smooth[6, 10:16] = 127, 128
    expected = MASK.copy()
    expected[6, 10:16] = 1
    path = saved(Image.fromarray(smooth).convert("RGB"), tmp_path / "m.png")
    assert np.array_equal(read_mask(path, threshold=127), expected)
    assert np.array_equal(read_mask(saved(Image.fromarray(MASK * 255).convert("1"), path), threshold=127), MASK)
    image = write_image(tmp_path / "i.png")
    sample = Sample("d", "c", "test", image, 1, saved(Image.fromarray(smooth), path), mask_threshold=127)
    _, pixels, _ = AnomalyDataset([sample], Preprocess(64))[0]
    _, wider, _ = AnomalyDataset([Sample("d", "c", "test", image, 1, path)], Preprocess(64))[0]
    assert 0 < pixels.sum() < wider.sum()


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.write_bytes({"truncated": data[: len(data) * 2 // 3], "empty": b"", "text": b"<html>404</html>"}[how])


@pytest.mark.parametrize("how", ["truncated", "empty", "text"])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif"])
def test_damaged_file_is_named(how: str, name: str, tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.repeat(np.repeat(RGB, 8, 0), 8, 1)), tmp_path / name)
    damage(path, how)
    for read in (read_image, read_mask):
        with pytest.raises(DatasetError, match=f"{name}: cannot be read as an image .*Replace"):
            read(path)


def test_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone\.png: cannot be read"):
        read_image(tmp_path / "gone.png")


def test_mask_of_another_size(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path, ["a"])
    mask = root / "a/ground_truth/crack/001_mask.png"
    Image.open(write_mask(mask)).transpose(Image.Transpose.ROTATE_90).save(mask)
    dataset = MVTecLayout(root, num_workers=0)
    dataset.connect(Preprocess(28))
    with pytest.raises(DatasetError, match=r"001_mask\.png: the mask is 14×20 pixels .*crack/001\.png is 20×14"):
        list(dataset.test_dataloader())


def test_an_empty_mask_of_an_anomalous_image_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "image.png")
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "mask.png")
    sample = Sample("d", "c", "test", tmp_path / "image.png", 1, tmp_path / "mask.png")
    with pytest.raises(DatasetError, match=r"mask\.png: the mask marks nothing.*image\.png is anomalous"):
        AnomalyDataset([sample], Preprocess(28))[0]


@pytest.mark.slow
def test_damaged_file_in_a_loader_process(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path, ["a"])
    damage(root / "a/test/crack/001.png", "truncated")
    dataset = MVTecLayout(root, num_workers=1)
    dataset.connect(Preprocess(28))
    batches = iter(dataset.test_dataloader())
    with pytest.raises(DatasetError, match=r"crack/001\.png: cannot be read"):
        next(batches)
    gc.collect()  # frees the error before `batches`: freed together, the end of its process takes 5 seconds


@pytest.mark.parametrize("regions", [False, True])
def test_loader_processes_give_the_same_batches(regions: bool, tmp_path: Path) -> None:
    samples = MVTecLayout(write_mvtec(tmp_path, ["a"])).samples("test")
    dataset = AnomalyDataset(sorted(samples, key=lambda s: -s.label), Preprocess(28))  # the last batch has no mask
    here, there = (make_loader(dataset, 3, n, SequentialSampler(dataset), training=not regions) for n in (0, 1))
    seen = 0
    for one, two in zip(here, there, strict=True):
        assert one.samples == two.samples
        assert torch.equal(one.region_area, two.region_area) if regions else two.region_area is None
        for batch in (one, two):
            for row, sample in enumerate(batch.samples):
                image, mask, expected = dataset[seen + row]
                assert sample == expected
                assert torch.equal(batch.image[row], image)
                assert torch.equal(batch.mask[row], mask)
        seen += len(two.samples)
    assert seen == 4
