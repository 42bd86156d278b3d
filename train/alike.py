"""Whether all ranks have the same config and the same data: where not, their replicas drift apart without a word."""

from collections.abc import Sequence
from typing import Any

from evaluate.features.ranks import World
from pipelines.common.errors import UserError
from train.distributed import agreed
from train.keys import flattened

# What may be another thing on another machine: where files lie (whether the data are the same, their fingerprint says),
# what its processors are used for, and what the main rank alone does.
_OF_A_MACHINE = (
    *("data.train", "data.changes", "data.landmarks", "verify.bins", "recipe.teacher", "recipe.cache", "output"),
    *("model.init_from", "head.init_from", "data.threads", "data.prefetch", "data.hw_decoder_load", "log."),
)


def check_alike(told: Sequence[dict[str, Any]]) -> None:
    """Raises ``UserError`` where what a rank tells of itself, such as its config, differs from what the first does."""
    first = flattened(told[0])
    for rank, other in enumerate(map(flattened, told)):
        for key in {**first, **other}:
            given, expected = other.get(key), first.get(key)
            if given != expected and not key.startswith(_OF_A_MACHINE):
                raise UserError(
                    f"{key} is {given} on rank {rank}, and {expected} on rank 0: start all ranks with the same config "
                    "and the same data"
                )


def expect_alike(told: dict[str, Any], world: World) -> None:
    """`check_alike` of what each rank tells of itself, on the main rank, with which the others end; all ranks call."""
    of_all = agreed(lambda: told)
    agreed(lambda: check_alike(of_all) if world.main else None)
