"""Preprocessing equals torchvision's, which the papers' codes use."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as tv

from afclip_lightning.backbones.preprocess import CLIP_MEAN, CLIP_STD, Preprocess


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
