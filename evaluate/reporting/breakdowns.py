"""What ``results.json`` holds of pairs by quality and by group of people."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, model_validator

from evaluate.reporting.fields import Count, Curve, Lengths, Number, Rate, RateKey, number_of
from evaluate.reporting.uncertainty import Uncertain

MEASURE_NAMES = {
    "fmr_max_over_geometric_mean": "FMR: max / geometric mean",
    "fnmr_max_over_geometric_mean": "FNMR: max / geometric mean",
    "fdr": "FDR",
    "garbe": "GARBE",
    "sged": "SGED",
    "worst_accuracy": "worst accuracy",
}
SMALLER_IS_WORSE = ("fdr", "worst_accuracy")


def _share(key: str) -> str:
    if key != "pauc" and not 0 <= number_of(key) <= 1:
        raise ValueError(f"{key!r} is no share of the pairs, and not pauc")
    return key


def discard_names(rates: Iterable[str]) -> dict[str, str]:
    """What the rates of `Discard` are called in a table."""
    return {key: "mean, 0–20 % left out" if key == "pauc" else f"{100 * float(key):g} % left out" for key in rates}


class DiscardSteps(Lengths):
    """FNMR by the share of pairs that are left out, and its 95 % interval."""

    discarded: Annotated[Curve, Field(min_length=2)]
    fnmr: Curve
    low: Curve
    high: Curve


class Discard(Uncertain):
    """Error versus discard by one quality at one threshold; see `evaluate.protocols.discard`.

    Attributes:
        genuine, refused: how many pairs there are, and how many lie below the threshold.
        rates: FNMR where a share of the pairs, the key, is left out; ``pauc``: the mean FNMR from none to a fifth, the
            area below the curve over its width. There are intervals of all.
    """

    threshold: Number
    genuine: Count
    refused: Count
    rates: dict[Annotated[str, AfterValidator(_share)], Rate]
    steps: DiscardSteps


class GroupErrors(Uncertain):
    """Errors of a group at one threshold; there are intervals of ``fmr`` and ``fnmr``."""

    genuine: Count
    impostor: Count
    people: Count
    fmr: Rate
    fnmr: Rate


class Groups(Uncertain):
    """Groups of people at one threshold; see `evaluate.protocols.groups`.

    Attributes:
        threshold: for all.
        groups: by name.
        measures: how far apart they lie, by the names of ``MEASURES``; there are intervals of ``fdr``, ``garbe`` and
            ``worst_accuracy``.
        chance: what 1 in 20 sets of equal groups would exceed, or fall below; null where it cannot be told.
    """

    threshold: Number
    groups: dict[str, GroupErrors] = Field(min_length=2)
    measures: dict[str, Number]
    chance: dict[str, Number]

    @model_validator(mode="after")
    def _known(self) -> "Groups":
        if lost := sorted(self.measures.keys() - self.chance.keys()):
            raise ValueError(f"chance lacks {', '.join(lost)}")
        return self

    def told(self, name: str) -> tuple[str, str, str]:
        """A measure, its interval if it has one, and whether equal groups would be as far apart by chance."""
        if name not in self.measures:  # as in files from before there was this one
            return "–", "", ""
        value, chance = self.measures[name], self.chance[name]
        if value is None:
            return "–", "", "a group without errors"
        interval = "".join(f"[{low:.3g}, {high:.3g}]" for low, high in self.bounds([name]).values())
        if chance is None:
            return f"{value:.4g}", interval, "equal groups may have it"
        smaller = name in SMALLER_IS_WORSE
        worse = value < chance if smaller else value > chance
        remark = f"equal groups {'≥' if smaller else '≤'} {chance:.4g}" + ("" if worse else ": within noise")
        return f"{value:.4g}", interval, remark


class ByFmr(BaseModel):
    """Figures at thresholds that are chosen on all pairs, by their FMR."""

    quality: dict[str, dict[RateKey, Discard]] = {}  # by the quality's name, by FMR
    groups: dict[RateKey, Groups] = {}  # by FMR
