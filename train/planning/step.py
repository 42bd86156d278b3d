"""A whole training step of one rank on tensors without data: its memory by part, and its work."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from losses.head.collective import shard_range
from losses.head.tile_size import tile_size
from train.config import Config
from train.planning.decoding import batches_ahead, decoding_threads
from train.planning.head import trace_head
from train.planning.network import NetworkTrace, trace_network
from train.planning.recording import Phase
from train.planning.timing import OperatorTimer
from train.planning.work import Precision, Work

MIB = 2**20
# What no trace shows, from what is usually seen, and taken for the same on all GPUs: CUDA's context with cuBLAS and
# cuDNN and their workspaces; NCCL's buffers; what nvImageCodec keeps for each decoding thread.
_LIBRARIES, _NCCL, _DECODER_THREAD = 1024 * MIB, 384 * MIB, 16 * MIB
_CORES = 16  # of a rank, where ``auto`` decides by them
USABLE = 0.95  # of a device's memory: the rest is lost between blocks of the allocator


@dataclass(frozen=True)
class Setting:
    """What a step depends on beside its config.

    Attributes:
        gpu: whether it runs on a GPU.
        memory: bytes that a rank may use.
        ranks: of the run.
        identities: classes of the head.
        precision: the fastest that the device computes in by itself.
    """

    gpu: bool
    memory: int
    ranks: int
    identities: int
    precision: Precision = "bf16"


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank at the moment of a step when they are most.

    Attributes:
        moment: ``forward``, ``head``, ``backward``, ``update`` or ``centres' update``.
        parts: by what they are for.
    """

    moment: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class StepTrace:
    """A step of one batch; see `trace_step`. ``fixed`` is memory that is there all the time and that no trace shows."""

    network: NetworkTrace
    head: Mapping[str, Phase]
    fixed: Mapping[str, int]

    @property
    def work(self) -> list[Work]:
        """Of all phases, as the loop goes through them."""
        network, head = self.network.phases, self.head
        order = (
            network["forward"],
            head["forward"],
            head["backward"],
            network["backward"],
            network["update"],
            head["update"],
        )
        return [work for phase in order for work in phase.work]

    @property
    def memory(self) -> Memory:
        """At the moment when it is most."""
        moments = self._moments()
        moment = max(moments, key=lambda name: sum(moments[name].values()))
        return Memory(moment, {**moments[moment], **self.fixed})

    def _moments(self) -> dict[str, Mapping[str, int]]:
        """Each phase's peak in one of the two, with what the other holds meanwhile."""
        network, head = self.network.phases, self.head
        return {
            "forward": _sum(network["forward"].peak, head["build"].left),
            "head": _sum(network["forward"].left, max(head["forward"].peak, head["backward"].peak, key=_total)),
            "backward": _sum(network["backward"].peak, head["backward"].left),
            "update": _sum(network["update"].peak, head["backward"].left),
            "centres' update": _sum(network["update"].left, head["update"].peak),
        }


def trace_step(
    config: Config,
    setting: Setting,
    checkpoint_activations: bool | None = None,
    timer: OperatorTimer | None = None,
) -> StepTrace:
    """Trace the step of a config, which may be made on any machine and needs no data.

    Args:
        checkpoint_activations: what to take instead of the config's.
        timer: for the seconds of operators, on a CPU.
    """
    network = trace_network(
        config,
        config.data.batch_size,
        gpu=setting.gpu,
        keep_gradients=setting.ranks > 1 or config.optim.accumulate > 1,
        checkpoint_activations=checkpoint_activations,
        timer=timer,
    )
    return StepTrace(network, trace_classifier(config, setting, timer), fixed_memory(config, setting))


def trace_classifier(config: Config, setting: Setting, timer: OperatorTimer | None = None) -> Mapping[str, Phase]:
    """Trace the head's part of the step."""
    return trace_head(
        config,
        head_rows(config, setting.ranks),
        setting.identities,
        gpu=setting.gpu,
        tile=chosen_tile(config, setting),
        ranks=setting.ranks,
        timer=timer,
    )


def head_rows(config: Config, ranks: int) -> int:
    """Rows of the global batch in the head, at the end of the run."""
    recipe = config.recipe.create()
    return config.data.batch_size * ranks * recipe.views(config.schedule.epochs)


def chosen_tile(config: Config, setting: Setting) -> int:
    """The config's tile, or what ``auto`` means there."""
    if isinstance(config.head.tile, int):
        return config.head.tile
    margin = config.head.create_margin()
    first, last = shard_range(setting.identities, 0, setting.ranks)
    rows = head_rows(config, setting.ranks) + margin.queue_size
    return tile_size(rows, last - first, config.model.embedding_size, setting.memory if setting.gpu else None)


def fixed_memory(config: Config, setting: Setting) -> dict[str, int]:
    """Bytes of decoded batches, of the ranks' exchange, and of the libraries."""
    recipe = config.recipe.create()
    data = config.data
    pixels = data.batch_size * 3 * config.model.input_size**2 * (2 if recipe.clean_view else 1)
    # As many are in the decoder, in bytes, as lie ready, in float32; one more waits for its place among those.
    ahead = batches_ahead(data.prefetch, data.batch_size)
    parts = {"decoded batches": pixels * (ahead + 4 * (ahead + 1))}
    if setting.gpu:
        threads = decoding_threads(data.threads, _CORES, gpu=True)
        parts["decoder"] = threads * _DECODER_THREAD if data.decode == "gpu" else 0
        parts["libraries"] = _LIBRARIES
        parts["communication"] = _NCCL if setting.ranks > 1 else 0
    return parts


def _sum(*parts: Mapping[str, int]) -> dict[str, int]:
    return dict(sum((Counter(part) for part in parts), Counter()))


def _total(phase: Mapping[str, int]) -> int:
    return sum(phase.values())
