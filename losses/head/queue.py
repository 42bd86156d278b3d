"""BroadFace's queue of past embeddings (Kim et al., ECCV 2020)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.head.rows_torch import inverse_norm


class EmbeddingQueue(nn.Module):
    """The last Q embeddings of the global batches, the same on every rank.

    When the centre w of an embedding's class has become w', the embedding is taken to have moved along with it,
    x + (‖x‖/‖w‖)·(w' - w) (BroadFace, eq. 5 and 6). Only its direction matters, x/‖x‖ + (w' - w)/‖w‖, of which
    x/‖x‖ - w/‖w‖ and 1/‖w‖ are kept.
    """

    offset: Tensor
    inv_norm: Tensor
    labels: Tensor
    oldest: Tensor

    def __init__(self, size: int, embedding_size: int, device: torch.device | str) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(size, embedding_size, device=device))
        self.register_buffer("inv_norm", torch.zeros(size, 1, device=device))
        self.register_buffer("labels", torch.full((size,), -1, device=device))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64, device=device))

    def __len__(self) -> int:
        """Places in the queue; those not filled yet have the label -1."""
        return len(self.labels)

    @torch.no_grad()
    def exchange(self, x: Tensor, labels: Tensor, centres_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Take out all past embeddings as they would be now, and put the batch in the place of the oldest.

        Args:
            x: (B, d) unit embeddings.
            labels: (B,) int64.
            centres_of: (n,) labels → (n, d) their centres, not normalised.

        Returns:
            (Q, d) unit embeddings, (Q,) labels.
        """
        size = len(self)
        x, labels = x[-size:], labels[-size:]
        past_labels = self.labels.clone()
        of_past, of_batch = centres_of(torch.cat([past_labels, labels])).split([size, len(x)])
        past = F.normalize(self.offset + self.inv_norm * of_past)

        # One without a direction, not finite (of a step that will be skipped) or 0, would stay for many steps.
        unit = x.square().sum(1) > 0.5
        inv_norm = inverse_norm(of_batch)[:, None]
        place = (self.oldest + torch.arange(len(x), device=x.device)) % size
        self.offset[place] = torch.where(unit[:, None], x, 0.0) - of_batch * inv_norm
        self.inv_norm[place] = inv_norm
        self.labels[place] = torch.where(unit, labels, -1)
        self.oldest.copy_((self.oldest + len(x)) % size)
        return past, past_labels
