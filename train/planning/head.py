"""A step of the sharded classifier on tensors without data: one rank's centres, and the rows of the global batch.

What the ranks send each other is left to `train.planning.traffic`; buffers for it are as large as what arrives in them.
"""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from losses import PartialFC
from losses.head.collective import shard_range
from losses.head.partial_fc import Rows
from train.build import HALF, build_centre_optimizer
from train.config import Config
from train.planning.recording import Phase, Recorder, place
from train.planning.timing import OperatorTimer
from train.sections.auto import settled

# Of one rank, which has nobody to exchange anything with.
_ALONE = dist.ProcessGroup(0, 1)  # type: ignore[call-arg]  # this constructor is not in the stub


def trace_head(
    config: Config,
    rows: int,
    num_classes: int,
    *,
    gpu: bool,
    tile: int,
    ranks: int = 1,
    timer: OperatorTimer | None = None,
) -> Mapping[str, Phase]:
    """The phases ``build``, ``forward``, ``backward`` and ``update`` of a step.

    Memory is for centres, their optimiser, and the tiles of centres with all that is computed of them. A GPU's path is
    taken on the meta device, with torch's kernels: Triton's keep no (B, n) numbers in float32.

    Args:
        rows: of the global batch, B; 0 where the recipe does not call the head.
        tile: centres in a tile.
        ranks: the first of them is looked at, whose share of the centres is the largest.
        timer: for the seconds of operators, on a CPU.
    """
    head = _Shard(config, num_classes, ranks, tile, gpu)
    device, mode = ("meta", nullcontext()) if gpu else ("cpu", FakeTensorMode())
    with mode, Recorder(timer) as recorder:
        with recorder.phase("build", "centres"):
            place(head, device)
            recorder.use = "optimiser of the centres"
            centres = build_centre_optimizer(config, head)
            recorder.use = "embeddings"
            embeddings = torch.empty(rows, config.model.embedding_size, device=device, requires_grad=True)
            labels = torch.empty(rows, dtype=torch.int64, device=device)
            uniform = torch.empty(rows, device=device)
        with recorder.phase("forward", "tiles of centres", "head forward"):
            # ``forward`` would leave autocast, which the meta device does not have.
            loss = head._loss(embeddings, labels, None, uniform).loss if rows else None
        with recorder.phase("backward", "tiles of centres", "head backward"):
            if loss is not None:
                loss.backward()
            del loss
        with recorder.phase("update", "tiles of centres", "centres' update"):
            if rows:
                centres.step(torch.empty((), dtype=torch.bool, device=device) if gpu else None)
    return recorder.phases


class _Shard(PartialFC):
    """The classifier as the first of ``ranks`` ranks has it, without the others."""

    def __init__(self, config: Config, num_classes: int, ranks: int, tile: int, gpu: bool) -> None:
        self._held = shard_range(num_classes, 0, ranks)
        super().__init__(
            config.head.create_margin(),
            config.model.embedding_size,
            num_classes,
            sample_rate=config.head.highest_sample_rate,
            mode=config.head.mode,
            tile=tile,
            entropy=config.recipe.create().entropy,
            matmul_dtype=torch.bfloat16 if gpu and HALF[settled(config.precision)] is not None else torch.float32,
            device="meta",
            group=_ALONE,
        )

    @property
    def _range(self) -> tuple[int, int]:
        return self._held

    def _rows(self, labels: Tensor) -> Rows:
        """How many classes are drawn is known by numbers only; their expected count stands for it."""
        rows = super()._rows(labels)
        if rows.sampled is not None:
            of_labels = len(labels) * len(self.weight) // self.num_classes
            rows.sampled.counts = max(round(self.sample_rate * len(self.weight)), of_labels), of_labels
        return rows
