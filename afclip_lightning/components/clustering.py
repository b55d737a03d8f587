"""Deterministic k-means over a whole batch, which can be traced into a graph and never synchronises with the device."""

import torch
from torch import Tensor

ROUNDS = 20  # rounds of assignment and new centres; the patches of an image usually converge in fewer


@torch.no_grad()
def k_means(points: Tensor, clusters: int, rounds: int = ROUNDS) -> Tensor:
    """Returns the cluster of each point, `[B, M]`, int64, counted from 0. It is deterministic.

    The first centre is the first point. Each further centre is the point farthest from the centres so far. A fixed
    number of Lloyd's iterations follows. A centre without points stays where it was.

    Args:
        points: `[B, M, C]`.
        clusters: Number of clusters, at most M.
        rounds: Number of Lloyd's iterations.
    """
    with torch.autocast(points.device.type, enabled=False):
        points = points.float()
        centres = points[:, :1]
        nearest = _squared_distances(points, centres)[..., 0]  # [B, M]
        for _ in range(clusters - 1):
            farthest = nearest.argmax(dim=1)[:, None, None].expand(-1, 1, points.shape[2])
            chosen = points.gather(1, farthest)
            centres = torch.cat([centres, chosen], dim=1)
            nearest = torch.minimum(nearest, _squared_distances(points, chosen)[..., 0])
        for _ in range(rounds):
            members = memberships(_squared_distances(points, centres).argmin(dim=-1), clusters)
            means = cluster_means(points, members)
            centres = torch.where(members.sum(1)[..., None] > 0, means, centres)
        return _squared_distances(points, centres).argmin(dim=-1)


def memberships(labels: Tensor, clusters: int) -> Tensor:
    """Returns the one-hot membership of labels `[B, M]`, `[B, M, clusters]`, float32."""
    return (labels[..., None] == torch.arange(clusters, device=labels.device)).float()


def cluster_means(points: Tensor, members: Tensor) -> Tensor:
    """Returns the mean of the points per cluster, `[B, clusters, C]`, float32, differentiable.

    An empty cluster has mean 0.

    Args:
        points: `[B, M, C]`.
        members: `[B, M, clusters]`, from `memberships`.
    """
    with torch.autocast(points.device.type, enabled=False):
        return members.mT @ points.float() / members.sum(1)[..., None].clamp(min=1)


def _squared_distances(points: Tensor, centres: Tensor) -> Tensor:
    """Returns squared Euclidean distances `[B, M, K]`. Rounding may make a distance of 0 slightly negative."""
    squares = points.square().sum(-1)[..., None] + centres.square().sum(-1)[:, None]
    return squares - 2 * points @ centres.mT
