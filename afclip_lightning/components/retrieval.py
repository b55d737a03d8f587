"""Retrieval from a memory of labelled keys: exact, in bounded memory."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from afclip_lightning.components.mutual_scoring import aggregate

KEYS_AT_ONCE = 4096  # keys that queries are compared with at once; the memories of MVTec AD and VisA have fewer
SIMILARITIES_AT_ONCE = 2**24  # similarities held at once while the hidden keys of queries are determined


def retrieve(
    queries: Tensor,
    normal: Tensor,
    anomalous: Tensor,
    hidden: Tensor | None = None,
    neighbours: int | None = None,
) -> Tensor:
    """Returns the label that a softmax over the keys gives to each query, `[...]`, in [0, 1].

    With two labels, it is a sigmoid of the difference of two log-sum-exps, one per label. Both accumulate over blocks
    of keys, so that at most `KEYS_AT_ONCE` similarities per query exist at a time, also in the backward pass.

    Args:
        queries: `[..., D]`.
        normal: Keys with label 0, `[K, D]`.
        anomalous: Keys with label 1, `[M, D]`. Without any key the result is 0.
        hidden: Keys that a query does not see, `[..., K + M]`, bool.
        neighbours: Number of most similar keys that a query sees. `None` means all.

    Reference: MRAD, the official code: a temperature of 1.
    """
    if not len(normal) + len(anomalous):
        return queries.new_zeros(queries.shape[:-1])
    with torch.autocast(queries.device.type, enabled=False):
        if neighbours is not None and neighbours < len(normal) + len(anomalous):
            keys = torch.cat([normal, anomalous])
            similarity, index = nearest(queries, keys, neighbours, hidden)
            is_anomalous = index >= len(normal)
            of_normal, of_anomalous = (
                similarity.masked_fill(kind, -torch.inf).logsumexp(dim=-1) for kind in (is_anomalous, ~is_anomalous)
            )
        else:
            parts = (None, None) if hidden is None else hidden.split([len(normal), len(anomalous)], dim=-1)
            of_normal, of_anomalous = (
                _log_sum(queries, keys, part) for keys, part in zip((normal, anomalous), parts, strict=True)
            )
        return (of_anomalous - of_normal).sigmoid()


def nearest(queries: Tensor, keys: Tensor, count: int, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns the largest similarities `[..., count]` of queries to keys, and the indices of these keys. It is exact.

    Keys are compared block by block with the best ones so far.

    Args:
        queries: `[..., D]`.
        keys: `[K, D]`, K at least `count`.
        count: Number of keys.
        hidden: Keys that a query does not see, `[..., K]`, bool. Their similarity is minus infinity.
    """
    best = queries.new_empty(*queries.shape[:-1], 0)
    index = torch.empty(best.shape, dtype=torch.long, device=queries.device)
    for start in range(0, len(keys), KEYS_AT_ONCE):
        similarity = _similarity(queries, keys, hidden, start)
        numbers = torch.arange(start, start + similarity.shape[-1], device=queries.device).expand(similarity.shape)
        best, index = torch.cat([best, similarity], dim=-1), torch.cat([index, numbers], dim=-1)
        best, chosen = best.topk(min(count, best.shape[-1]), dim=-1)
        index = index.gather(-1, chosen)
    return best, index


@torch.no_grad()
def most_alike(queries: Tensor, keys: Tensor, share: float) -> Tensor:
    """Returns the keys that are among the most similar `share` of all keys of a query, `[R, K]`, bool.

    The limit is the quantile `1 - share` of the similarities of a query, linearly interpolated. A key counts if its
    similarity is above it, which is the case if it is above the lower of the two values that the limit lies between.

    Args:
        queries: `[R, D]`.
        keys: `[K, D]`.
        share: Share in [0, 1).
    """
    if not len(keys):
        return queries.new_zeros(len(queries), 0, dtype=torch.bool)
    with torch.autocast(queries.device.type, enabled=False):
        lower = int((1 - share) * (len(keys) - 1) + 1e-6)  # 0.8 * 5 is below 4 in some precisions
        found = []
        for some in queries.split(max(1, SIMILARITIES_AT_ONCE // len(keys))):
            similarity = some @ keys.T
            found.append(similarity > similarity.kthvalue(lower + 1, dim=-1, keepdim=True).values)
        return torch.cat(found)


def neighbourhood_mean(patches: Tensor, grid: tuple[int, int], scales: tuple[int, ...] = (1, 3, 5)) -> Tensor:
    """Returns the patches averaged over windows of several sizes, then over the sizes, `[B, N, C]`, zero-padded.

    Args:
        patches: `[B, N, C]`.
        grid: Patch grid `(h, w)`.
        scales: Sides of the windows in patches, odd.

    Reference: MRAD, the official code.
    """
    return torch.stack([aggregate(patches, grid, scale) for scale in scales]).mean(dim=0)


def region_means(patches: Tensor, mask: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Returns the mean of the normal and of the anomalous patches, `[B, 2, C]`, and whether there are any, `[B, 2]`.

    Patches whose centre lies on the edge of a mask belong to neither.

    Args:
        patches: `[B, N, C]`, float32.
        mask: `[B, H, W]`, in {0, 1}.
        grid: Patch grid `(h, w)`.

    Reference: MRAD, the official code.
    """
    coverage = F.interpolate(mask[:, None].float(), size=grid, mode="bilinear", align_corners=False).flatten(1)
    kinds = torch.stack([coverage == 0, coverage == 1], dim=1).float()  # [B, 2, N]
    counts = kinds.sum(dim=-1)
    return kinds @ patches / counts.clamp(min=1)[..., None], counts > 0


def sampled(normal: Tensor, anomalous: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """Returns a sample of the keys of both labels, with a fixed seed. Each label keeps its share.

    Args:
        normal: `[K, D]`.
        anomalous: `[M, D]`.
        most: Maximum number of keys in all. `None` keeps all.
    """
    total = len(normal) + len(anomalous)
    if most is None or total <= most:
        return normal, anomalous
    generator = torch.Generator().manual_seed(0)
    kept = min(max(1, round(most * len(anomalous) / total)), most - 1) if len(anomalous) and len(normal) else 0
    counts = (most - kept, kept) if len(normal) else (0, most)
    chosen = []
    for keys, count in zip((normal, anomalous), counts, strict=True):
        rows = torch.randperm(len(keys), generator=generator)[:count].sort().values
        chosen.append(keys[rows.to(keys.device)])
    return chosen[0], chosen[1]


def _log_sum(queries: Tensor, keys: Tensor, hidden: Tensor | None) -> Tensor:
    """Returns the log-sum-exp of queries' similarities to keys, `[...]`; minus infinity without keys."""
    if len(keys) <= KEYS_AT_ONCE:
        return _similarity(queries, keys, hidden, 0).logsumexp(dim=-1)

    def block(queries: Tensor, keys: Tensor, start: int) -> Tensor:
        return _similarity(queries, keys, hidden, start).logsumexp(dim=-1)

    sums = []
    for start in range(0, len(keys), KEYS_AT_ONCE):
        if torch.is_grad_enabled():  # the backward pass recomputes the similarities of a block
            sums.append(checkpoint(block, queries, keys, start, use_reentrant=False))
        else:
            sums.append(block(queries, keys, start))
    return torch.stack(sums).logsumexp(dim=0)


def _similarity(queries: Tensor, keys: Tensor, hidden: Tensor | None, start: int) -> Tensor:
    """Returns the similarities of queries to a block of keys, `[..., k]`."""
    similarity = queries @ keys[start : start + KEYS_AT_ONCE].T
    if hidden is not None:
        similarity = similarity.masked_fill(hidden[..., start : start + KEYS_AT_ONCE], -torch.inf)
    return similarity
