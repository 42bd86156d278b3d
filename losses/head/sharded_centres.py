"""Class centres split over all ranks: where they start, which rank holds which, and how they are saved.

``torch.distributed.tensor`` takes a second to import, so only what needs it does: a config knows the head without it.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from losses.head.collective import Group, rank, reshard, shard_range, sum_ranks, world_size
from losses.head.rows_torch import inverse_norm
from pipelines.common.errors import UserError

_INIT_BLOCK = 4096
_INIT_STD = 0.01


class ShardedCentres(nn.Module):
    """C class centres (C, d), of which rank r holds [start, stop).

    Args:
        num_classes: C, over all ranks.
        seed: of the initial centres.
        group: the ranks that share the centres; None for all.

    Attributes:
        weight: (C_r, d) this rank's centres; rows are split as DTensor splits them. In the state dict they are a
            DTensor of all C rows, so that ``torch.distributed.checkpoint`` loads them on any number of ranks.
    """

    def __init__(
        self, embedding_size: int, num_classes: int, *, seed: int, device: torch.device | str, group: Group
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise UserError(f"a classifier needs at least one class, not {num_classes}")
        self.num_classes, self.seed, self.group = num_classes, seed, group
        self.weight = nn.Parameter(self._initial(*self._range, embedding_size, torch.device(device)))

    @property
    def _range(self) -> tuple[int, int]:
        return shard_range(self.num_classes, rank(self.group), world_size(self.group))

    @property
    def start(self) -> int:
        """First class of this rank."""
        return self._range[0]

    @property
    def stop(self) -> int:
        """One past the last class of this rank."""
        return self._range[1]

    def own_centres(self, labels: Tensor) -> Tensor:
        """(n, d) centres of the classes, each from the rank that holds it, without gradient; 0 for the label -1."""
        own, here = self._own_rows(labels, self.weight.detach())
        return sum_ranks(own * here[:, None], self.group)

    def own_cosine(self, x: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        """(n,) cosines of unit vectors (n, d) to the centres of their classes, of any rank; 0 where the label is -1.

        ``weight`` is this rank's, with a gradient or without.
        """
        own, here = self._own_rows(labels, weight)
        return sum_ranks((x * own).sum(1) * inverse_norm(own) * here, self.group)

    def _own_rows(self, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(n, d) the classes' rows of this rank's ``weight``, any for classes of other ranks; (n,) which it holds."""
        here = (labels >= self.start) & (labels < self.stop)
        if not len(weight):
            return weight.new_zeros(len(labels), weight.shape[1]), here
        return weight[(labels - self.start).clamp(0, len(weight) - 1)], here

    def _initial(self, start: int, stop: int, embedding_size: int, device: torch.device) -> Tensor:
        """Normal numbers in blocks with seeds of their own, so that they do not depend on the number of ranks."""
        weight = torch.empty(stop - start, embedding_size, device=device)
        if device.type == "meta":
            return weight
        generator = torch.Generator(device)
        for block in range(start // _INIT_BLOCK, -(-stop // _INIT_BLOCK)):
            first = block * _INIT_BLOCK
            generator.manual_seed((self.seed * 1_000_003 + block) % 2**63)
            values = torch.randn(_INIT_BLOCK, embedding_size, generator=generator, device=device) * _INIT_STD
            inside = slice(max(start, first), min(stop, first + _INIT_BLOCK))
            weight[inside.start - start : inside.stop - start] = values[inside.start - first : inside.stop - first]
        return weight

    def extend_classes(self, count: int) -> None:
        """Add ``count`` classes behind the others, with random centres; all ranks call, after loading a checkpoint.

        The shards change with it, so create the optimiser of the centres afterwards.
        """
        if count < 1:
            raise UserError(f"the number of classes to add must be positive, not {count}")
        old, self.num_classes = self.num_classes, self.num_classes + count
        kept = reshard(self.weight.detach(), old, self.num_classes, self.group)
        fresh = self._initial(max(self.start, old), max(self.stop, old), kept.shape[1], kept.device)
        self.weight = nn.Parameter(torch.cat([kept, fresh]))

    def shard(self, local: Tensor) -> Tensor:
        """A tensor with a row for each centre of this rank as a DTensor of all C rows; itself without ranks."""
        if world_size(self.group) == 1:
            return local
        from torch.distributed.tensor import DTensor, Shard

        group = self.group or dist.group.WORLD
        assert group is not None  # there are other ranks
        mesh = DeviceMesh.from_group(group, local.device.type)
        shape = (self.num_classes, *local.shape[1:])
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=torch.Size(shape), stride=stride)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.shard(self.weight if keep_vars else self.weight.detach())

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        """The centres may be a DTensor sharded like these, or a plain tensor of all C rows."""
        from torch.distributed.tensor import DTensor

        weight = state_dict.get(prefix + "weight")
        if isinstance(weight, DTensor):
            weight = weight.to_local()
        elif weight is not None:
            if len(weight) != self.num_classes:
                raise UserError(f"the file has centres of {len(weight)} classes, the head has {self.num_classes}")
            weight = weight[self.start : self.stop]
        if weight is not None:
            state_dict = {**state_dict, prefix + "weight": weight}
        super()._load_from_state_dict(state_dict, prefix, *args)
