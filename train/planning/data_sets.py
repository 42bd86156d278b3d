"""How many identities and images a run has: those of its data, or of a known set of that name."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.common.errors import UserError
from pipelines.sources import open_source
from train.config import Config


@dataclass(frozen=True)
class DataSize:
    """Of a training set. ``images`` is None where nobody knows."""

    identities: int
    images: int | None


# The published sets, by the name that their folder usually has.
KNOWN = {
    "casia": DataSize(10_572, 490_623),
    "ms1mv2": DataSize(85_742, 5_822_653),
    "ms1mv3": DataSize(93_431, 5_179_510),
    "glint360k": DataSize(360_232, 17_091_657),
    "wf4m": DataSize(205_990, 4_235_242),
    "wf12m": DataSize(617_970, 12_720_066),
    "wf42m": DataSize(2_059_906, 42_474_557),
}


def data_size(config: Config, identities: int | None = None, images: int | None = None) -> DataSize:
    """The size of a config's training set; what is given goes before what is found.

    Raises:
        UserError: the data is not there, has no known name, and neither config nor caller says how many identities.
    """
    found = _found(config.data.train)
    wanted = identities or config.head.num_classes or (found.identities if found else None)
    if wanted is None:
        raise UserError(
            f"{config.data.train} is not here and is none of {', '.join(KNOWN)}: "
            "say how many identities it has (--identities N, and --images N for the time of the run)"
        )
    return DataSize(wanted, images or (found.images if found else None))


def _found(path: str) -> DataSize | None:
    try:
        source = open_source(path)
    except OSError:
        return next((size for part in Path(path).parts for name, size in KNOWN.items() if part.startswith(name)), None)
    return DataSize(source.num_classes, len(source))
