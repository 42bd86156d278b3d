"""Topological structure alignment (PTSA) of TopoFR (Dan et al., NeurIPS 2024, sec. 3.1).

The 0-dimensional persistence of a Vietoris-Rips filtration dies at the edges of the minimum spanning tree. The sorted
edge lengths of the batch's images and of its embeddings are pulled together.
"""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.common.transfers import HostCopy, to_device


class Cloud:
    """Points (n, …) and their minimum spanning tree, which is found on the host.

    It begins with the distances: their way to the host starts here, and only `tree` waits for it. What the device is
    given to do in between runs meanwhile.

    Attributes:
        points: (n, d) float32.
    """

    def __init__(self, points: Tensor) -> None:
        self.points = points.float().flatten(1)
        self._squared = HostCopy(_squared_distances(self.points.detach()))

    def tree(self) -> Tensor:
        """(n - 1, 2) int64 pairs on the points' device: the edges of the tree, shortest first.

        A distance that is not finite counts as 0, so that there is a tree; lengths along it are not finite.
        """
        from scipy.sparse.csgraph import minimum_spanning_tree  # takes a third of a second, for this recipe alone

        distances = self._squared.result().double().sqrt().nan_to_num_(nan=0.0, posinf=0.0).numpy()
        # The library takes 0 for "no edge", but duplicates are at distance 0: add one, which changes no tree.
        tree = minimum_spanning_tree(np.triu(distances + 1, 1)).tocoo()
        order = np.argsort(tree.data, kind="stable")
        edges = np.stack([tree.row, tree.col], 1)[order].astype(np.int64)
        return to_device(torch.from_numpy(edges), self.points.device)


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


def topological_loss(images: Cloud, embeddings: Cloud, replicated: bool = False) -> Tensor:
    """Mean over the batch of the squared differences between sorted edge lengths; the gradient reaches the embeddings.

    Args:
        images: in [-1, 1]; their distances are divided by the largest that such images can have.
        embeddings: not normalised.
        replicated: whether all ranks call with the same points. The first one's trees are everybody's then: where
            edges are equally long, rounding decides, and other processors round otherwise.
    """
    trees = torch.stack([images.tree(), embeddings.tree()])
    if replicated:
        dist.broadcast(trees, src=0)
    image_edges, edges = trees
    image_lengths = _lengths(images.points.detach(), image_edges) / (2 * images.points.shape[1] ** 0.5)
    return (_lengths(embeddings.points, edges) - image_lengths).square().sum() / len(embeddings.points)
