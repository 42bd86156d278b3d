"""Topological structure alignment (PTSA) of TopoFR (Dan et al., NeurIPS 2024, sec. 3.1).

The 0-dimensional persistence of a Vietoris-Rips filtration dies at the edges of the minimum spanning tree. The sorted
edge lengths of the batch's images and of its embeddings are pulled together.
"""

import numpy as np
import torch
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor


def spanning_edges(points: Tensor) -> Tensor:
    """(n, d) points → (n - 1, 2) int64 pairs of the minimum spanning tree of their distances, shortest first."""
    points = points - points.mean(0)  # the products below keep more digits near the origin
    squares = points.square().sum(1)
    squared = (squares[:, None] + squares - 2 * points @ points.T).clamp_(min=0).cpu().double().numpy()
    # The library takes 0 for "no edge", but duplicates are at distance 0: lengths grow by one, which changes no tree.
    tree = minimum_spanning_tree(np.triu(np.sqrt(squared) + 1, 1)).tocoo()
    order = np.argsort(tree.data, kind="stable")
    return torch.from_numpy(np.stack([tree.row, tree.col], 1)[order].astype(np.int64))


def _lengths(points: Tensor, edges: Tensor) -> Tensor:
    """(n - 1,) lengths of edges; differentiable, with gradient 0 where both ends are the same point."""
    edges = edges.to(points.device)
    squared = (points[edges[:, 0]] - points[edges[:, 1]]).square().sum(1)
    return torch.where(squared > 0, squared, 1.0).sqrt() * (squared > 0)


def topological_loss(images: Tensor, embeddings: Tensor) -> Tensor:
    """Mean over the batch of the squared differences between sorted edge lengths; the gradient reaches the embeddings.

    Args:
        images: (n, …) in [-1, 1]; their distances are divided by the largest that such images can have.
        embeddings: (n, d), not normalised.
    """
    with torch.no_grad():
        flat = images.float().flatten(1)
        image_lengths = _lengths(flat, spanning_edges(flat)) / (2 * flat.shape[1] ** 0.5)
    embeddings = embeddings.float()
    lengths = _lengths(embeddings, spanning_edges(embeddings.detach()))
    return (lengths - image_lengths).square().sum() / len(embeddings)
