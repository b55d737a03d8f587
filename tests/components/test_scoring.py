"""Maps against SciPy and torch's own functions."""

import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from afclip_lightning.components.scoring import similarity_logits, upsample_and_smooth
from afclip_runtime.errors import UserError
from tests.support.rounding import UNIT


@pytest.mark.parametrize(("grid", "size", "sigma"), [((5, 5), 70, 4.0), ((14, 14), 112, 4.0), ((3, 4), 28, 10.0)])
def test_upsampling_and_smoothing_equal_interpolate_then_scipy(grid: tuple[int, int], size: int, sigma: float) -> None:
    maps = torch.rand(2, *grid, generator=torch.Generator().manual_seed(0))
    upsampled = F.interpolate(maps[:, None].double(), size=size, mode="bilinear", align_corners=False)[:, 0]
    expected = torch.stack([torch.from_numpy(gaussian_filter(m.numpy(), sigma=sigma)) for m in upsampled])
    # two products with rows that sum to 1 round each of their terms once, and so do the values of these rows
    limit = (2 * max(grid) + 4) * UNIT
    torch.testing.assert_close(upsample_and_smooth(maps, size, sigma).double(), expected, rtol=0, atol=limit)


def test_no_smoothing() -> None:
    maps = torch.rand(1, 4, 4)
    expected = F.interpolate(maps[:, None], size=16, mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(upsample_and_smooth(maps, 16, 0.0), expected)


@pytest.mark.parametrize("sigma", [-1.0, 1e9, float("nan")])
def test_a_filter_wider_than_any_image_is_refused(sigma: float) -> None:
    with pytest.raises(UserError, match=r"from 0 to 8192 px, got .*: set map_sigma"):
        upsample_and_smooth(torch.rand(1, 4, 4), 28, sigma)


def test_maps_leave_in_float32() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert upsample_and_smooth(torch.rand(1, 4, 4).bfloat16(), 16, 2.0).dtype == torch.float32


def test_logits_are_cosines_over_temperature() -> None:
    tokens, text = F.normalize(torch.randn(2, 3, 8), dim=-1), F.normalize(torch.randn(2, 8), dim=-1)
    expected = F.cosine_similarity(tokens[:, :, None], text[None, None], dim=-1) / 0.07
    torch.testing.assert_close(similarity_logits(tokens, text, 0.07), expected)


def test_logits_are_float32_under_autocast() -> None:
    """A sum of twelve sets exceeds 100, where the steps of bfloat16 are 0.5."""
    tokens, text = F.normalize(torch.randn(2, 3, 8), dim=-1), F.normalize(torch.randn(2, 8), dim=-1)
    exact = similarity_logits(tokens, text, 0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(similarity_logits(tokens, text, 0.07), exact, rtol=0, atol=0)


def test_tensors_cached_in_inference_are_used_in_training() -> None:
    with torch.inference_mode():
        upsample_and_smooth(torch.rand(1, 3, 3), 21, 1.5)
    maps = torch.rand(1, 3, 3, requires_grad=True)
    upsample_and_smooth(maps, 21, 1.5).sum().backward()
    assert maps.grad is not None
