"""Trains a zero-shot head further for one product, on pseudo-anomalies drawn onto its normal images."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from afclip_lightning.backbones.spec import FeatureSpec
from afclip_lightning.backbones.store import from_rows, named
from afclip_lightning.components.synthesis import DraemSynthesis, ReferenceTextures, generator_of
from afclip_lightning.inspection.predictor import DATASET, Progress
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.types import Batch, Sample
from afclip_runtime.errors import UserError

DRAWN = 8  # pseudo-anomalies per view of an image, where there is room
MOST = 384  # pictures whose features are kept, with or without anomalies: 1 GB for a ViT-B at 518 px
STEPS = 30
BATCH = 16  # half of them normal


@dataclass(frozen=True)
class Drawn:
    """Features of normal images with and without pseudo-anomalies, ready for the head.

    Attributes:
        rows: Features of R pictures by tap, float16, on the CPU.
        spec: Kind of the features.
        grid: Patch grid `(h, w)`.
        mask: `[R, H, W]`, uint8, 1 = anomalous. It is all zero for pictures without pseudo-anomalies.
        owner: `[R]`, number of the normal image that a picture was made from.
        samples: Samples of the pictures.
    """

    rows: list[dict[str, Tensor]]
    spec: FeatureSpec
    grid: tuple[int, int]
    mask: Tensor
    owner: Tensor
    samples: list[Sample]

    @property
    def marked(self) -> Tensor:
        """Returns which of the pictures have a pseudo-anomaly, `[R]`, bool."""
        return self.mask.flatten(1).any(dim=1)

    def batch(self, rows: Tensor, device: torch.device) -> Batch:
        """Returns some of the pictures as a training batch."""
        mask = self.mask[rows]
        return Batch(
            image=torch.empty(0),
            mask=mask,
            label=mask.flatten(1).amax(dim=1).long(),
            mask_known=torch.ones(len(rows), dtype=torch.bool),
            samples=[self.samples[row] for row in rows.tolist()],
            features=from_rows([self.rows[row] for row in rows.tolist()], self.spec, self.grid),
        ).to(device)


def check(head: AnomalyMethod | None) -> AnomalyMethod:
    """Returns the head beside a memory if it can be trained further on stored features.

    Raises:
        UserError: There is no head, or it cannot be trained.
    """
    if head is None or not head.trainable_names():
        raise UserError(
            "--fit_head trains a zero-shot head further, and this model has none that trains: name one that comes "
            "ready (--model) or a trained head (--checkpoint), or leave --fit_head out."
        )
    if head.needs_pixels:
        raise UserError(f"--fit_head trains on stored features, and {type(head).__name__} needs images: leave it out.")
    return head


@torch.no_grad()
def draw(
    head: AnomalyMethod,
    images: Sequence[tuple[Path, Sequence[np.ndarray]]],
    category: str,
    seed: int,
    progress: Progress,
) -> Drawn:
    """Returns features of normal images and of copies with pseudo-anomalies.

    The anomalies are DRAEM's, half of them with the image's own texture. Of more than `MOST` / 2 views, at
    most `MOST` / 2 evenly spaced ones are used.

    Args:
        head: Head on its device.
        images: Path and views of each image; a view is `[H, W, 3]`, uint8, at the backbone's size.
        category: Name of the product in prompts.
        seed: Seed of the drawing. The anomalies of an image depend only on it and on the names of the image and its
            folder.
        progress: Wraps a loop, given its items and their number.
    """
    preprocess, patch = head.preprocess, head.preprocess.shape[0] // head.backbone.grid[0]
    kinds = DraemSynthesis(), DraemSynthesis(ReferenceTextures())
    every = [(owner, path, view) for owner, (path, views) in enumerate(images) for view in views]
    every = every[:: -(-2 * len(every) // MOST)]
    number = min(DRAWN, MOST // len(every) - 1)
    rows: list[dict[str, Tensor]] = []
    masks: list[Tensor] = []
    owners: list[int] = []
    samples: list[Sample] = []
    streams: dict[int, np.random.Generator] = {}
    for owner, path, view in progress(every, len(every)):
        sample = Sample(DATASET, category, "train", path, 0, class_name=category)
        rng = streams.setdefault(owner, generator_of(sample, seed))
        (image,) = preprocess.to_tensors([view])
        pairs = [kinds[i % 2].synthesise(image, rng, patch, preprocess, image) for i in range(number)]
        pictures = torch.stack([image, *(picture for picture, _ in pairs)])
        encoded = head.backbone.encode_image(pictures.to(head.device), head.spec)
        taps = named(encoded.map(lambda tensor: tensor.half().cpu()), head.spec).values()
        rows += [{name: one[i] for tap in taps for name, one in tap.items()} for i in range(len(pictures))]
        masks += [torch.zeros_like(pairs[0][1]), *(mask for _, mask in pairs)]
        owners += [owner] * len(pictures)
        samples += [sample] * len(pictures)
    return Drawn(rows, head.spec, head.backbone.grid, torch.stack(masks).byte(), torch.tensor(owners), samples)


def fit(head: AnomalyMethod, drawn: Drawn, images: Collection[int], seed: int) -> None:
    """Trains a head further, in place, with its own loss and optimiser, on some of the pictures.

    Args:
        head: Head on its device. It is in eval mode afterwards.
        drawn: Result of `draw`.
        images: Numbers of the normal images to train on. Pictures of other images are not used.
        seed: Seed of the batches. The same seed gives the same head.
    """
    used = torch.isin(drawn.owner, torch.tensor(sorted(images)))
    kinds = [torch.nonzero(used & (drawn.marked == kind))[:, 0] for kind in (False, True)]
    generator = torch.Generator().manual_seed(seed)
    optimizer = head.configure_optimizers()
    assert optimizer is not None  # `check` ensures that it trains
    head.train()
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        for _ in range(STEPS):
            rows = [kind[torch.randint(len(kind), (BATCH // 2,), generator=generator)] for kind in kinds]
            batch = drawn.batch(torch.cat(rows), head.device)
            loss = head.loss(head.extract(batch), batch)["total"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    head.eval()
