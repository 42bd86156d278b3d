"""Topological structure alignment (PTSA) of TopoFR (Dan et al., NeurIPS 2024, sec. 3.1).

The 0-dimensional persistence of a Vietoris-Rips filtration dies at the edges of the minimum spanning tree. The sorted
edge lengths of the batch's images and of its embeddings are pulled together.
"""

import numpy as np
import torch
import torch.distributed as dist
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor


def spanning_edges(*clouds: Tensor) -> list[Tensor]:
    """For each (n, d) cloud of points, (n - 1, 2) int64 pairs: its minimum spanning tree, shortest edge first.

    The trees are found on the host, which waits for the distances of all clouds once. A distance that is not finite
    counts as 0, so that there is a tree; lengths along it are not finite.
    """
    distances = torch.stack([_squared_distances(points.detach().float()) for points in clouds]).cpu().double().sqrt()
    distances.nan_to_num_(nan=0.0, posinf=0.0)
    edges = []
    for lengths in distances.numpy():
        # The library takes 0 for "no edge", but duplicates are at distance 0: add one, which changes no tree.
        tree = minimum_spanning_tree(np.triu(lengths + 1, 1)).tocoo()
        order = np.argsort(tree.data, kind="stable")
        edges.append(torch.from_numpy(np.stack([tree.row, tree.col], 1)[order].astype(np.int64)))
    return list(torch.stack(edges).to(clouds[0].device))


def _squared_distances(points: Tensor) -> Tensor:
    points = points - points.mean(0)  # the products below keep more digits near the origin
    squares = points.square().sum(1)
    with torch.autocast(points.device.type, enabled=False):  # what is left of squares needs all their digits
        return (squares[:, None] + squares - 2 * points @ points.T).clamp_(min=0)


def _lengths(points: Tensor, edges: Tensor) -> Tensor:
    """(n - 1,) lengths of edges; differentiable, with gradient 0 where both ends are the same point."""
    squared = (points[edges[:, 0]] - points[edges[:, 1]]).square().sum(1)
    same = squared == 0
    return torch.where(same, 1.0, squared).sqrt().masked_fill(same, 0.0)


def topological_loss(images: Tensor, embeddings: Tensor, replicated: bool = False) -> Tensor:
    """Mean over the batch of the squared differences between sorted edge lengths; the gradient reaches the embeddings.

    Args:
        images: (n, …) in [-1, 1]; their distances are divided by the largest that such images can have.
        embeddings: (n, d), not normalised.
        replicated: whether all ranks call with the same points. The first one's trees are everybody's then: where
            edges are equally long, rounding decides, and other processors round otherwise.
    """
    flat, embeddings = images.detach().float().flatten(1), embeddings.float()
    trees = torch.stack(spanning_edges(flat, embeddings))
    if replicated:
        dist.broadcast(trees, src=0)
    image_edges, edges = trees
    image_lengths = _lengths(flat, image_edges) / (2 * flat.shape[1] ** 0.5)
    return (_lengths(embeddings, edges) - image_lengths).square().sum() / len(embeddings)
