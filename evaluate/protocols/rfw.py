"""RFW: verification in four groups of people, and their spread (Wang et al., "Racial Faces in the Wild", 2019)."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

GROUPS = ("african", "asian", "caucasian", "indian")


@dataclass(frozen=True)
class Spread:
    """Mean accuracy of the groups, the sample standard deviation (n - 1) between them, and the worst; fractions."""

    mean: float
    std: float
    worst: float


def rfw_sets(names: Iterable[str]) -> dict[str, str] | None:
    """The names of RFW's sets by group; None unless each group's is there once.

    A set is a group's if its file's name, whatever folder leads it, begins with the group's: ``African_test``.
    """
    found = {group: [name for name in names if name.split("/")[-1].lower().startswith(group)] for group in GROUPS}
    return {group: given[0] for group, given in found.items()} if all(len(x) == 1 for x in found.values()) else None


def rfw_groups(accuracies: Mapping[str, float | None]) -> Spread | None:
    """The spread over RFW's groups, among accuracies by set; None unless each group's is there once."""
    sets = rfw_sets(accuracies)
    rates = [rate for name in (sets or {}).values() if (rate := accuracies[name]) is not None]
    if len(rates) != len(GROUPS):
        return None
    return Spread(statistics.fmean(rates), statistics.stdev(rates), min(rates))
