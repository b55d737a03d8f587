"""Maps, masks, scores and labels as from a test set."""

import torch


def stream(count=12, side=16, seed=0):
    """Returns anomaly_map, mask, pred_score and label of some images; every third is normal."""
    generator = torch.Generator().manual_seed(seed)
    label = (torch.arange(count) % 3 > 0).long()
    mask = (torch.rand(count, side, side, generator=generator) < 0.1).to(torch.uint8) * label[:, None, None].byte()
    # Scales far apart, so that the window of bins grows while the stream is read; some ties.
    maps = (torch.randn(count, side, side, generator=generator) + mask) * torch.logspace(-6, 3, count)[:, None, None]
    maps[:, ::2] = maps[:, ::2].round(decimals=2)
    return maps, mask, maps.amax((1, 2)), label
