"""The compiled pass over images gives the results of the uncompiled pass."""

import shutil
from pathlib import Path

import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from tests.support.clips import small_config

pytestmark = pytest.mark.slow


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compile_mode must be one of no, default, reduce-overhead, got 'fast'"):
        ClipBackbone(small_config(tmp_path), "random", image_size=None, compile_mode="fast")  # type: ignore[arg-type]


@pytest.mark.skipif(not shutil.which("g++"), reason="compiling for a CPU needs a C++ compiler")
def test_compiled_features_are_the_plain_ones(tmp_path: Path) -> None:
    plain = ClipBackbone(small_config(tmp_path), "random", image_size=None)
    compiled = ClipBackbone(plain.model, "random", image_size=None, compile_mode="default")
    spec = plain.spec((2,), image_embedding=True)
    assert compiled.spec((2,), image_embedding=True) == spec
    for count in (2, 2, 3):  # plain, compiled, plain again for the last batch
        image = torch.randn(count, 3, 28, 28)
        expected, found = plain.encode_image(image, spec), compiled.encode_image(image, spec)
        for name in ("class_token", "image_embedding"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.tokens, expected.tokens, rtol=1e-4, atol=1e-5)
    assert "_compiled_tap" in vars(compiled)
    assert compiled.sizes == {2, 3}
