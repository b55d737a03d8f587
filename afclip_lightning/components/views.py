"""Images in several views: views are scored a few at a time, and their results are merged."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.types import MAIN_HEAD, AnomalyPrediction, Batch
from afclip_runtime.views.resizing import resize_map
from afclip_runtime.views.tiles import Layout

Predictions = Mapping[str, AnomalyPrediction]  # by head


def score_views(batch: Batch, preprocess: Preprocess, score: Callable[[Batch], AnomalyPrediction]) -> AnomalyPrediction:
    """Returns the prediction of a method for a batch, whose images may be in tiles. See `score_all_views`."""
    if batch.views is None:
        return score(batch)
    return score_all_views(batch, preprocess, lambda part: {MAIN_HEAD: score(part)})[MAIN_HEAD]


def score_all_views(batch: Batch, preprocess: Preprocess, score: Callable[[Batch], Predictions]) -> Predictions:
    """Returns the predictions of several heads for a batch, whose images may be in tiles.

    As in `inspect`, the tiling says how the score of an image follows from the scores of its views (by default the
    highest), and the map is the mean of the views' maps.

    Args:
        batch: The batch.
        preprocess: Preprocessing of the backbone.
        score: Function that returns the heads' predictions for a batch of whole images or views.
    """
    if batch.views is None:
        return score(batch)
    assert batch.masks is not None
    shapes = [facts.shape for facts in batch.masks]
    layouts = [
        Layout(*shape, batch.views.tiling, preprocess.frame, sample.roi)
        for shape, sample in zip(shapes, batch.samples, strict=True)
    ]
    owners = [(image, place) for image, layout in enumerate(layouts) for place in range(len(layout.views))]
    maps: dict[str, list[np.ndarray]] = {}
    scores: dict[str, list[list[torch.Tensor]]] = {}
    for start in range(0, len(owners), batch.views.at_once):
        part = owners[start : start + batch.views.at_once]
        pixels = [batch.views.pixels[image][place].numpy() for image, place in part]
        for head, prediction in score(_batch_of(batch, preprocess, pixels, [image for image, _ in part])).items():
            own = maps.setdefault(head, [np.zeros(shape, np.float32) for shape in shapes])
            found = scores.setdefault(head, [[] for _ in shapes])
            seen = prediction.anomaly_map.float().cpu().numpy()
            for row, (image, place) in enumerate(part):
                layouts[image].add(own[image], layouts[image].views[place], seen[row])
                found[image].append(prediction.pred_score[row])
    device, mean = batch.label.device, batch.views.tiling.view_score == "mean"
    return {
        head: AnomalyPrediction(
            torch.stack([torch.stack(found).mean() if mean else torch.stack(found).amax() for found in scores[head]]),
            torch.from_numpy(np.stack([resize_map(one, *preprocess.shape) for one in own])).to(device),
            [torch.from_numpy(one) for one in own],
        )
        for head, own in maps.items()
    }


def _batch_of(batch: Batch, preprocess: Preprocess, pixels: list[np.ndarray], owners: list[int]) -> Batch:
    """Returns views `[H, W, 3]`, uint8, as a batch without marked pixels."""
    at = torch.tensor(owners, device=batch.label.device)
    views = preprocess.to_tensors(pixels).to(batch.label.device)
    mask = torch.zeros(len(pixels), *views.shape[2:], dtype=torch.uint8, device=views.device)
    samples = [batch.samples[image] for image in owners]
    return Batch(views, mask, batch.label[at], batch.mask_known[at], samples)
