"""RFW: verification in four groups of people, and their spread (Wang et al., "Racial Faces in the Wild", 2019)."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

GROUPS = ("african", "asian", "caucasian", "indian")


@dataclass(frozen=True)
class Spread:
    """Mean accuracy of the groups, and the sample standard deviation (n - 1) between them, both fractions."""

    mean: float
    std: float


def rfw_groups(accuracies: Mapping[str, float | None]) -> Spread | None:
    """The spread over RFW's groups, among accuracies by set; None unless each group's is there once.

    A set is a group's if its file's name, whatever folder leads it, begins with the group's: ``African_test``.
    """
    found = {
        group: [accuracy for name, accuracy in accuracies.items() if name.split("/")[-1].lower().startswith(group)]
        for group in GROUPS
    }
    rates = [accuracy for given in found.values() for accuracy in given if accuracy is not None]
    if any(len(given) != 1 for given in found.values()) or len(rates) != len(GROUPS):
        return None
    return Spread(statistics.fmean(rates), statistics.stdev(rates))
