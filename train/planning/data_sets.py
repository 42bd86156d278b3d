"""How many identities and images a run has: those of its data, or of a known set of that name."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.common.errors import UserError
from pipelines.loading.rates import Places
from pipelines.sources.collection import APART
from train.build import open_data
from train.config import Config
from train.sections.data import Data, TrainingSet


@dataclass(frozen=True)
class DataSize:
    """Of a training set. ``images`` is None where nobody knows."""

    identities: int
    images: int | None


# The published sets, by the name that their folder usually has.
KNOWN = {
    "hsface10k": DataSize(10_000, 500_000),
    "vface10k": DataSize(10_000, 500_000),
    "vface20k": DataSize(20_000, 1_000_000),
    "casia": DataSize(10_572, 490_623),
    "ms1mv2": DataSize(85_742, 5_822_653),
    "ms1mv3": DataSize(93_431, 5_179_510),
    "glint360k": DataSize(360_232, 17_091_657),
    "wf4m": DataSize(205_990, 4_235_242),
    "wf12m": DataSize(617_970, 12_720_066),
    "wf12m_conflict": DataSize(1_017_970, 12_720_066),
    "wf42m": DataSize(2_059_906, 42_474_557),
}


def data_size(config: Config, identities: int | None = None, images: int | None = None) -> DataSize:
    """The size of a config's training set; what is given goes before what is found.

    Raises:
        UserError: the data is not there, has no known name, and neither config nor caller says how many identities.
    """
    found = _found(config.data)
    wanted = identities or config.head.num_classes or (found.identities if found else None)
    if wanted is None:
        raise UserError(
            f"{config.data.paths_text} is not here and is none of {', '.join(KNOWN)}: "
            "say how many identities it has (--identities N, and --images N for the time of the run)"
        )
    return DataSize(wanted, images or (found.images if found else None))


def _found(data: Data) -> DataSize | None:
    """Of all sets together; ``images`` is how many come in an epoch."""
    try:
        found = open_data(data)
    except OSError:
        known = [_known(entry) for entry in data.train]
        sizes = [size for size in known if size is not None]
        if len(sizes) < len(known) or data.changes:
            return None
        images = Places([(size.images or 0, entry.weight) for size, entry in zip(sizes, data.train)]).size
        return DataSize(sum(size.identities for size in sizes), images)
    return DataSize(found.source.num_classes, Places(found.shares).size if found.shares else len(found.source))


def _known(entry: TrainingSet) -> DataSize | None:
    """The size of a published set of which all counts, and whose identities are nobody else's."""
    if entry.labels != APART or entry.images or entry.identities:
        return None
    for part in reversed(Path(entry.path).parts):
        if names := [name for name in KNOWN if part.startswith(name)]:
            return KNOWN[max(names, key=len)]
    return None
