"""What needs a GPU, real weights or the internet."""

import os
from pathlib import Path

import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.methods.afclip import AFCLIP
from tests.methods.test_afclip import LAYERS, batch_of, score

WEIGHTS = os.environ.get("AFCLIP_WEIGHTS", "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_gives_the_numbers_of_the_cpu() -> None:
    backbone = ClipBackbone("tiny-8-112", "random", image_size=None)
    model, batch = AFCLIP(backbone, layers=LAYERS), batch_of()
    cpu = score(model, batch)
    losses = model.loss(model.extract(batch), batch)
    device = torch.device("cuda")
    model, batch = model.to(device), batch.to(device)
    for a, b in zip(score(model, batch), cpu, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-3)
    torch.testing.assert_close(
        model.loss(model.extract(batch), batch)["total"].cpu(), losses["total"], rtol=1e-3, atol=0
    )
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype=dtype):
            mixed = score(model, batch)[0].cpu()
        torch.testing.assert_close(mixed, cpu[0], rtol=0, atol=0.05)


@pytest.mark.weights
@pytest.mark.skipif(not Path(WEIGHTS).is_file(), reason="AFCLIP_WEIGHTS names no file with ViT-L/14@336 of OpenAI")
def test_real_clip_tells_a_word_from_another() -> None:
    backbone = ClipBackbone("ViT-L-14-336", WEIGHTS, image_size=518)
    assert backbone.activation == "quick_gelu"
    text = torch.nn.functional.normalize(backbone.encode_text(["a photo of a dog.", "a dog.", "a tax form."]), dim=-1)
    assert text[0] @ text[1] > text[0] @ text[2]


@pytest.mark.network
@pytest.mark.skipif("AFCLIP_NETWORK" not in os.environ, reason="downloads 600 MB: set AFCLIP_NETWORK to run it")
def test_download_of_a_tag(tmp_path: Path) -> None:
    backbone = ClipBackbone("ViT-B-32", "openai", image_size=224, cache_dir=str(tmp_path))
    assert backbone.activation == "quick_gelu"
