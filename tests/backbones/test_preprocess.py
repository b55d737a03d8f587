"""Preprocessing equals torchvision's, which the papers' codes use."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as tv

from afclip_lightning.backbones.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from afclip_runtime.types import ImageSize, height_and_width
from afclip_runtime.views.frame import Interpolation, Resize, place


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (28, 28), (301, 517)])
def test_equals_torchvision(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (*shape, 3), dtype=np.uint8)
    mask = (generator.random(shape) < 0.4).astype(np.uint8)
    size = (56, 56)
    bicubic = tv.Resize(size, tv.InterpolationMode.BICUBIC)
    reference = tv.Compose([bicubic, tv.ToTensor(), tv.Normalize(CLIP_MEAN, CLIP_STD)])(Image.fromarray(image))
    # a mask: resized as an image is, then cut at half
    reference_mask = (tv.ToTensor()(bicubic(Image.fromarray(mask * 255)))[0] > 0.5).to(torch.uint8)

    pixels, mask_pixels = Preprocess(56)(image, mask)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    torch.testing.assert_close(pixels, reference, rtol=0, atol=1e-6)
    assert mask_pixels.dtype == torch.uint8
    assert 0 < mask_pixels.sum() < 56 * 56
    assert torch.equal(mask_pixels, reference_mask)


def test_mean_and_std_are_those_given() -> None:
    image = np.full((8, 8, 3), 255, np.uint8)
    pixels, _ = Preprocess(8, mean=(0.5, 0.0, 0.25), std=(0.5, 2.0, 0.25))(image, np.zeros((8, 8), np.uint8))
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([1.0, 0.5, 3.0]))


def test_nothing_is_random() -> None:
    image = np.random.default_rng(1).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    mask = (image[..., 0] > 128).astype(np.uint8)
    kept_image, kept_mask = image.copy(), mask.copy()
    np.random.seed(0)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second = Preprocess(28)(image, mask), Preprocess(28)(image, mask)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.random() == np.random.RandomState(0).random()
    assert np.array_equal(image, kept_image)
    assert np.array_equal(mask, kept_mask)


def test_pixels_come_back_from_the_normalised_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    preprocess = Preprocess(28)
    np.testing.assert_array_equal(preprocess.to_pixels(preprocess(image, None)[0]), image)


SHAPES = [(40, 90), (90, 40), (28, 28), (301, 517), (517, 301), (57, 56), (1, 9)]
FILTERS: dict[Interpolation, tv.InterpolationMode] = {
    "bicubic": tv.InterpolationMode.BICUBIC,
    "bilinear": tv.InterpolationMode.BILINEAR,
}


def noise(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_squash_to_any_frame_equals_torchvision(shape: tuple[int, int], interpolation: Interpolation) -> None:
    resize = tv.Resize((28, 70), FILTERS[interpolation])
    expected = np.asarray(resize(Image.fromarray(noise(shape))))
    seen, _ = Preprocess((28, 70), interpolation=interpolation).resize(noise(shape), None)
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_crop_is_the_transform_of_clip(shape: tuple[int, int], interpolation: Interpolation) -> None:
    transform = tv.Compose([tv.Resize(56, FILTERS[interpolation]), tv.CenterCrop(56)])
    expected = np.asarray(transform(Image.fromarray(noise(shape))))
    seen, _ = Preprocess(56, rule="crop", interpolation=interpolation).resize(noise(shape), None)
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (301, 517), (50, 50)])
def test_trim_is_the_rule_of_anomalydino(shape: tuple[int, int]) -> None:
    """The shorter side at 56 px, then whole patches of 14 px: what the right and the bottom have beyond is cut off."""
    resized = np.asarray(tv.Resize(56, tv.InterpolationMode.BICUBIC)(Image.fromarray(noise(shape))))
    frame = resized.shape[0] // 14 * 14, resized.shape[1] // 14 * 14
    seen, _ = Preprocess(frame, rule="trim").resize(noise(shape), None)
    np.testing.assert_array_equal(seen, resized[: frame[0], : frame[1]])


@pytest.mark.parametrize("rule", get_args(Resize))
@pytest.mark.parametrize("frame", [56, (28, 70), (70, 28)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_is_seen_as_its_image_is(shape: tuple[int, int], frame: ImageSize, rule: Resize) -> None:
    mask = (noise(shape)[..., 0] > 100).astype(np.uint8)
    preprocess = Preprocess(frame, rule=rule)
    seen, seen_mask = preprocess.resize(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2), mask)
    assert seen.shape == (*height_and_width(frame), 3)
    assert seen_mask is not None
    np.testing.assert_array_equal(seen_mask, seen[..., 0] > 127)
    pixels, marked = preprocess(noise(shape), mask)
    assert pixels.shape[1:] == marked.shape == preprocess.shape


@pytest.mark.parametrize("rule", [*get_args(Resize), "pad"])
@pytest.mark.parametrize("frame", [(56, 56), (28, 70), (70, 28)])
@pytest.mark.parametrize("shape", SHAPES)
def test_place_against_its_definition(shape: tuple[int, int], frame: tuple[int, int], rule: Any) -> None:
    left, top, right, bottom = place(rule, *shape, frame)
    long, high = right - left, bottom - top
    if rule == "squash":
        assert (left, top, long, high) == (0, 0, frame[1], frame[0])
        return
    fits = (high == frame[0], long == frame[1])
    assert any(fits)
    assert high / shape[0] == pytest.approx(long / shape[1], rel=1 / min(high, long))  # sides are whole pixels
    covers, within = (left <= 0, top <= 0, right >= frame[1], bottom >= frame[0]), (left >= 0, top >= 0)
    if rule == "pad":
        assert all(within)
        assert (right <= frame[1], bottom <= frame[0]) == (True, True)
    else:
        assert all(covers)
    if rule == "trim":
        assert (left, top) == (0, 0)
    else:  # as much on one end as on the other
        assert abs((left + right) - frame[1]) <= 1
        assert abs((top + bottom) - frame[0]) <= 1
