"""Maps on a GPU are counted there: the same bits, and nothing of the size of a map is copied to the host."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from afclip_lightning.metrics import AnomalyMetrics, region_areas


class Fetched(TorchDispatchMode):
    """Records the number of elements that every operation copies from the device to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given, returned = (
            [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)] for tree in ((args, kwargs), result)
        )
        if any(x.is_cuda for x in given):
            self.elements += [x.numel() for x in returned if not x.is_cuda]
        return result


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("finest", [0.0, 1e-12])
def test_the_bits_of_the_cpu_without_a_copy_of_the_maps(exact: bool, finest: float) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(8, 96, 96, dtype=torch.uint8)
    masks[2:, 10:40, 20:60] = 1
    maps = torch.randn(masks.shape, generator=generator) + masks
    maps[3:5] *= 1e3  # the bins are merged while the maps are counted
    if finest:
        maps = maps.double() * (1 + finest)
    areas = torch.from_numpy(np.stack([region_areas(mask) for mask in masks.numpy()]))
    scores, label = maps.amax((1, 2)), masks.flatten(1).any(1).long()
    here, there = AnomalyMetrics(exact=exact), AnomalyMetrics(exact=exact).cuda()
    for batch in torch.arange(8).split(3):
        here.update(maps[batch], masks[batch], scores[batch], label[batch])
        on_gpu = [x[batch].cuda() for x in (maps, masks, scores, label)]
        with Fetched() as fetched:
            there.update(*on_gpu, region_area=areas[batch].cuda())
        assert fetched.elements
        assert max(fetched.elements) <= len(batch)
    assert there.result() == here.result()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_maps_on_another_device_are_refused() -> None:
    maps = torch.zeros(1, 4, 4)
    with pytest.raises(ValueError, match="the maps are on cuda:0 and this metric is on cpu"):
        AnomalyMetrics().update(maps.cuda(), maps)
