"""Verification by quality of the images and by group of people, for the commands that verify pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evaluate.protocols.discard import discard_curve, resampled_discard
from evaluate.protocols.groups import MEASURES, by_chance, group_rates, resampled_group_rates
from evaluate.protocols.intervals import interval
from evaluate.protocols.resampling import draw, impostor_limits
from evaluate.protocols.roc import allowed
from evaluate.reporting.breakdowns import ByFmr, Discard, DiscardSteps, GroupErrors, Groups
from evaluate.reporting.uncertainty import uncertainty
from pipelines.common.command import say

FMRS = (1e-2, 1e-3, 1e-4)
SHARES = np.linspace(0, 0.5, 101)  # where a curve is kept for a report
REPORTED = (0.0, 0.1, 0.2)
PAUC_LIMIT = 0.2


@dataclass(frozen=True)
class PairGroups:
    """Groups of people that are compared.

    Attributes:
        names: of the groups.
        group: of each of P pairs, whose two people are both in it, int64 (P,); -1 for the others.
    """

    names: tuple[str, ...]
    group: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """P pairs with cosines.

    Attributes:
        scores: (P,), exact where a threshold is near.
        same: bool (P,).
        people: whom each pair shows, (P,) and (P,), numbered from 0; the same twice in genuine pairs.
        thresholds: by FMR; a pair at or above is accepted.
        of: what is resampled, in the plural.
        qualities: of the pairs, (P,), by name; the higher the better.
        groups: of their people, which are compared.
    """

    scores: np.ndarray
    same: np.ndarray
    people: tuple[np.ndarray, np.ndarray]
    thresholds: Mapping[float, float]
    of: str
    qualities: Mapping[str, np.ndarray] = field(default_factory=dict)
    groups: PairGroups | None = None


def reachable(impostors: int) -> list[float]:
    """The two least of FMRS that so many impostor pairs can tell: those that allow one false match or more."""
    return [fmr for fmr in FMRS if allowed(fmr, impostors) >= 1][-2:]


def breakdown(pairs: Pairs) -> ByFmr:
    """Error versus discard by each quality, and the groups' errors, at each threshold."""
    result = ByFmr(quality={name: {} for name in pairs.qualities}, groups={})  # both set: what is unset is not written
    first, second = pairs.people
    signs = draw(max(first.max(), second.max()) + 1)
    # A pair may be listed as genuine and as impostor: two images of one person are no strangers.
    impostor = np.flatnonzero(~pairs.same & (first != second))
    fmrs = list(pairs.thresholds)
    limits = impostor_limits(pairs.scores[impostor], first[impostor], second[impostor], fmrs, signs)
    for fmr, limit in zip(fmrs, limits.T):
        for name, quality in pairs.qualities.items():
            result.quality[name][f"{fmr:g}"] = _discard(pairs, quality, pairs.thresholds[fmr], limit, signs)
        if pairs.groups:
            result.groups[f"{fmr:g}"] = _groups(pairs, pairs.groups, pairs.thresholds[fmr], limit, signs)
    return result


def _discard(pairs: Pairs, quality: np.ndarray, threshold: float, limits: np.ndarray, signs: np.ndarray) -> Discard:
    scores, unit = pairs.scores[pairs.same], pairs.people[0][pairs.same]
    curve = discard_curve(scores < threshold, quality[pairs.same])
    curves, areas = resampled_discard(scores, quality[pairs.same], unit, limits, signs, SHARES, PAUC_LIMIT)
    units = len(np.unique(unit))
    # Of those whose pairs are left out nothing is known any more.
    bands = [
        interval(rate, values, max(round(units * (1 - share)), 2)) or (0.0, 1.0)
        for rate, values, share in zip(curve.at(SHARES).tolist(), curves.T, SHARES)
    ]
    rates = {f"{share:g}": float(curve.at(np.array([share]))[0]) for share in REPORTED}
    rates["pauc"] = curve.area(PAUC_LIMIT) / PAUC_LIMIT
    resampled = {f"{share:g}": curves[:, np.abs(SHARES - share).argmin()] for share in REPORTED}
    resampled["pauc"] = areas / PAUC_LIMIT
    return Discard(
        threshold=threshold,
        genuine=len(scores),
        refused=int((scores < threshold).sum()),
        rates=rates,
        steps=DiscardSteps(
            discarded=SHARES.tolist(),
            fnmr=curve.at(SHARES).tolist(),
            low=[low for low, _ in bands],
            high=[high for _, high in bands],
        ),
        **uncertainty(rates, resampled, pairs.of, unit, signs),
    )


def _groups(pairs: Pairs, groups: PairGroups, threshold: float, limits: np.ndarray, signs: np.ndarray) -> Groups:
    group, count = groups.group, len(groups.names)
    rates = group_rates(pairs.scores, pairs.same, group, count, threshold)
    resampled = resampled_group_rates(pairs.scores, pairs.same, group, count, pairs.people, limits, signs)
    members = [[group == number, (group == number) & pairs.same] for number in range(count)]
    shares, units, found = np.empty((2, count), np.int64), np.empty((2, count), np.int64), {}
    for number, name in enumerate(groups.names):
        inside, genuine = members[number]
        for kind, chosen in enumerate((inside & ~genuine, genuine)):
            people = np.unique(np.concatenate([side[chosen] for side in pairs.people]))
            shares[kind, number], units[kind, number] = chosen.sum(), min(len(people), chosen.sum())
        fmr, fnmr = (float(rate[number]) for rate in rates)
        known = {
            key: interval(rate, anew[:, number], int(units[kind, number]))
            for kind, (key, rate, anew) in enumerate(zip(("fmr", "fnmr"), (fmr, fnmr), resampled))
        }
        found[name] = GroupErrors(
            impostor=int(shares[0, number]),
            genuine=int(shares[1, number]),
            people=len(np.unique(np.concatenate([side[inside] for side in pairs.people]))),
            fmr=fmr,
            fnmr=fnmr,
            interval={key: pair and list(pair) for key, pair in known.items()},
        )
    measures = {name: float(measure(*rates)) for name, measure in MEASURES.items()}
    anew = {name: MEASURES[name](*resampled) for name in ("fdr", "garbe", "worst_accuracy")}
    everybody = np.concatenate([side[group >= 0] for side in pairs.people])
    return Groups(
        threshold=threshold,
        groups=found,
        measures=measures,
        chance=by_chance(rates, resampled, (units[0], units[1]), (shares[0], shares[1])),
        **uncertainty(measures, anew, pairs.of, everybody, signs),
    )


def pair_groups(
    sides: tuple[np.ndarray, np.ndarray], names: Sequence[str], same: np.ndarray, source: str
) -> PairGroups | None:
    """Those groups that have two pairs of each kind or more; None where they are fewer than two.

    ``sides`` are the groups of a pair's two images, (P,) and (P,): numbers of ``names``, or -1. A pair whose two differ
    is in none. What is left out is told; ``source`` says whose it is.
    """
    group = np.where(sides[0] == sides[1], sides[0], -1)
    counts = np.bincount(2 * group[group >= 0] + same[group >= 0], minlength=2 * len(names)).reshape(-1, 2)
    enough = (counts >= 2).all(axis=1)
    for number in np.flatnonzero(~enough):
        impostor, genuine = counts[number]
        say(f"{source}: group {names[number]} is left out, with {genuine} genuine and {impostor} impostor pairs")
    if enough.sum() < 2:
        say(f"{source}: groups are not compared, for {enough.sum()} of {len(names)} have two pairs of each kind")
        return None
    new = np.append(np.where(enough, np.cumsum(enough) - 1, -1), -1)  # the last for those in none
    return PairGroups(tuple(name for name, kept in zip(names, enough) if kept), new[group])
