"""Memory does not grow with the number of images."""

import ctypes
import gc
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.engine.callbacks.evaluation import Evaluation
from afclip_lightning.methods.afclip import AFCLIP
from tests.support.layouts.mvtec import write_mvtec
from tests.support.methods import trainer_of

pytestmark = pytest.mark.slow

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def used_mb() -> float:
    """Returns the memory that the process uses, without free memory of its allocator."""
    gc.collect()
    LIBC.malloc_trim(0)  # type: ignore[union-attr]
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


class Watch(Callback):
    """Records the memory in use after some batches."""

    def __init__(self, *batches: int) -> None:
        self.batches = batches
        self.used: list[float] = []

    def on_test_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int, loader: int = 0
    ) -> None:
        if index + 1 in self.batches:
            self.used.append(used_mb())


@pytest.mark.skipif(not hasattr(LIBC, "malloc_trim"), reason="only glibc gives back what it keeps")
def test_ten_times_the_images_take_no_more_memory(
    tmp_path: Path, tiny: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AFCLIP(tiny, layers=(2, 4, 6, 8))
    data = MVTecLayout(write_mvtec(tmp_path / "set", ["cap", "nut"]), name="set", batch_size=4, num_workers=0)
    data.connect(model.preprocess)
    again_and_again = 25 * data.samples("test")
    monkeypatch.setattr(data, "samples", lambda split: again_and_again)
    watch = Watch(5, 50)  # 20 images, 200 images
    trainer_of(tmp_path, callbacks=[Evaluation(), watch]).test(model, data, verbose=False)
    few, many = watch.used
    maps = 180 * 112 * 112 * 4 / 2**20  # of the images in between, if they were kept
    assert many - few < maps / 3, f"20 images took {few:.1f} MB and 200 took {many:.1f} MB"
