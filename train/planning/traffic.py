"""What the ranks send each other: the collectives of a step.

Each is what the code hands to ``torch.distributed``, number by number: tests count it on real ranks. What a rank sends
of it follows from the algorithm. NCCL and gloo send large messages around a ring, in which each rank passes pieces on
to its neighbour (Patarasuk and Yuan, 2009). Of n bytes, each of R ranks sends (R - 1)/R·n to gather them or to reduce
and scatter them, and twice that to reduce them for all. It receives as much.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from losses.head.tile_torch import shifted
from train.config import Config
from train.planning.devices import Links
from train.recipes import ContraFace, Distill, Recipe, TopoFR, TransFace

Collective = Literal["all_reduce", "all_gather", "reduce_scatter", "broadcast"]

_FLOAT, _LONG = 4, 8  # bytes
_BUCKET = 25 * 2**20  # bytes of gradients that DistributedDataParallel sums at a time; the first bucket is smaller
_VOTES = 3  # train.trainer: a signal, the clock, a checkpoint that failed


@dataclass(frozen=True)
class Exchange:
    """A collective, or several of a kind.

    Attributes:
        name: what for.
        bytes: of the whole message, all calls together: what is summed, or what all ranks' rows make.
        calls: how many collectives.
        overlapped: whether the step goes on meanwhile: gradients leave during the backward pass, votes on the host.
    """

    name: str
    collective: Collective
    bytes: int
    calls: int = 1
    overlapped: bool = False

    def sent(self, ranks: int) -> float:
        """Bytes that each rank sends; it receives as many."""
        return self._rounds * (ranks - 1) / ranks * self.bytes

    def seconds(self, ranks: int, links: Links) -> float:
        """How long it takes on links that carry nothing else.

        A short sum goes up and down a binary tree, as NCCL does it; all else goes round the ring.
        """
        if ranks == 1:
            return 0.0
        ring = self.sent(ranks) / links.rate(ranks) + self.calls * self._rounds * links.latency(ranks)
        if self.collective != "all_reduce":
            return ring
        tree = 2 * self.bytes / links.rate(ranks) + self.calls * 2 * links.tree_latency(ranks)
        return min(ring, tree)

    @property
    def _rounds(self) -> int:
        """Of the ring: a sum goes round once to be made and once to be told."""
        return 2 if self.collective == "all_reduce" else 1


def step_exchanges(config: Config, ranks: int, *, parameters: int, batch_norms: Sequence[int] = ()) -> list[Exchange]:
    """The collectives of one training step, in their order; none on one rank. Recipes with phases are in their last.

    Args:
        parameters: numbers that are trained.
        batch_norms: channels of each batch norm, which ``model.sync_batchnorm`` makes to normalise over all ranks.
    """
    if ranks == 1:
        return []
    batches = config.optim.accumulate
    recipe = config.recipe.create()
    of_a_batch = [
        *(_batch_norm_exchanges(batch_norms, ranks) if config.model.sync_batchnorm else []),
        *_head_exchanges(config, recipe, ranks),
        *_recipe_exchanges(config, recipe, ranks),
    ]
    exchanges = [
        Exchange(each.name, each.collective, batches * each.bytes, batches * each.calls) for each in of_a_batch
    ]
    gradients = parameters * (_FLOAT if config.optim.compress == "none" else 2)
    exchanges.append(Exchange("gradients", "all_reduce", gradients, -(-gradients // _BUCKET), overlapped=True))
    exchanges.append(Exchange("whether the step is taken", "all_reduce", _FLOAT))
    exchanges.append(Exchange("votes, by the host", "all_reduce", _VOTES * _LONG, overlapped=True))
    return exchanges


def _head_exchanges(config: Config, recipe: Recipe, ranks: int) -> list[Exchange]:
    """``losses.head.partial_fc``: all ranks see the rows of the global batch, and share sums over their centres."""
    margin = config.head.create_margin()
    size = config.model.embedding_size
    rows = recipe.views(config.schedule.epochs) * ranks * config.data.batch_size
    if not rows:
        return []
    exchanges = [
        Exchange("embeddings", "all_gather", _FLOAT * rows * size),
        Exchange("norms", "all_gather", _FLOAT * rows),
        Exchange("labels", "all_gather", _LONG * rows),
    ]
    if margin.draws:
        exchanges.append(Exchange("random numbers", "all_gather", _FLOAT * rows))
    if isinstance(recipe, TransFace):
        exchanges.append(Exchange("weights", "all_gather", _FLOAT * rows))
    seen = rows + margin.queue_size
    if margin.queue_size:
        centres = margin.queue_size + min(rows, margin.queue_size)
        exchanges.append(Exchange("centres of past embeddings", "all_reduce", _FLOAT * centres * size))
    exchanges.append(Exchange("cosines to the own centres", "all_reduce", _FLOAT * seen))
    if margin.competitive:
        softplus, dense = margin.reduction == "softplus", config.head.mode == "dense"
        if shifted(margin, recipe.entropy) or (dense and not softplus):
            exchanges.append(Exchange("largest logits", "all_reduce", _FLOAT * seen))
        sums = 2 if recipe.entropy or softplus else 1
        exchanges.append(Exchange("sums over the classes", "all_reduce", _FLOAT * sums * seen, sums if dense else 1))
    exchanges.append(Exchange("gradients of embeddings", "reduce_scatter", _FLOAT * rows * size))
    return exchanges


def _recipe_exchanges(config: Config, recipe: Recipe, ranks: int) -> list[Exchange]:
    """What the recipes of ``train.recipes`` exchange beside the head; one of the user's own is taken for silent."""
    images = ranks * config.data.batch_size
    embeddings = _FLOAT * images * config.model.embedding_size
    exchanges = []
    if isinstance(recipe, TopoFR) and recipe.gather:
        pixels = 3 * config.model.input_size**2
        exchanges.append(Exchange("clean images", "all_gather", _FLOAT * images * pixels))
        exchanges.append(Exchange("embeddings, as they are", "all_gather", embeddings))
        exchanges.append(Exchange("spanning trees", "broadcast", _LONG * 2 * (images - 1) * 2))
    if isinstance(recipe, ContraFace):
        if recipe.gather:
            exchanges.append(Exchange("embeddings, as they are", "all_gather", 2 * embeddings, calls=2))
            exchanges.append(Exchange("labels of the contrast", "all_gather", _LONG * images))
        exchanges.append(Exchange("gap to the hardest negative", "all_reduce", _FLOAT))
    if isinstance(recipe, Distill):  # the teacher is not read: its embeddings are taken to be of the student's size
        exchanges.append(Exchange("embeddings, as they are", "all_gather", embeddings))
        exchanges.append(Exchange("embeddings of the teacher", "all_gather", embeddings))
    return exchanges


def _batch_norm_exchanges(channels: Sequence[int], ranks: int) -> list[Exchange]:
    """``torch.nn.SyncBatchNorm``: mean, deviation and count of each rank's maps; two sums for their gradient."""
    numbers, layers = sum(channels), len(channels)
    return [
        Exchange("batch statistics", "all_gather", _FLOAT * ranks * (2 * numbers + layers), layers),
        Exchange("gradients of batch statistics", "all_reduce", _FLOAT * 2 * numbers, layers),
    ]
