"""Verification sets by quality and by group: what lies beside a ``.bin``, and RFW's four sets at one threshold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluate.breakdowns.pairs import PairGroups, Pairs, breakdown, pair_groups, reachable
from evaluate.protocols.discard import threshold_at
from evaluate.protocols.resampling import people
from evaluate.protocols.rfw import rfw_sets
from evaluate.protocols.side_lists import read_people, read_quality, unpacked
from evaluate.reporting.breakdowns import ByFmr
from pipelines.common.command import say
from pipelines.common.errors import UserError

QUALITIES = ("norm", "file")


@dataclass(frozen=True)
class Beside:
    """What is known of a set's 2P images.

    Attributes:
        names: of the people, or None.
        person: a number for each image's person, int64 (2P,).
        quality: (2P,), the higher the better, or None.
    """

    names: list[str] | None
    person: np.ndarray
    quality: np.ndarray | None


@dataclass(frozen=True)
class Judged:
    """A set's squared distances (P,), ``same`` bool (P,), and what is known of its images."""

    distances: np.ndarray
    same: np.ndarray
    beside: Beside


def read_beside(path: Path, same: np.ndarray, *, quality: bool, people: bool) -> Beside:
    """``lfw.people.txt`` beside ``lfw.bin`` with ``same`` bool (P,), and ``lfw.quality.npy`` if it is asked for.

    Where nobody is named, a genuine pair is a person of its own, and an impostor pair two; with ``people`` an error.
    """
    images = 2 * len(same)
    listed, qualities = (unpacked(path).with_suffix(suffix) for suffix in (".people.txt", ".quality.npy"))
    names, person = None, unnamed(same)
    if listed.exists():
        names = read_people(listed, images)
        _, person = np.unique(names, return_inverse=True)
        wrong = np.flatnonzero((person[::2] == person[1::2]) != same)
        if len(wrong):
            pair = int(wrong[0])
            kind = "genuine" if same[pair] else "impostor"
            raise UserError(f"{listed}: pair {pair} is {kind}, and shows {names[2 * pair]} and {names[2 * pair + 1]}")
    elif people:
        raise UserError(f"{path} names nobody: for --groups write {listed}, the person of each image, a line each")
    if quality and not qualities.exists():
        raise UserError(f"--quality file needs {qualities}, a number for each of the {images} images of {path}")
    return Beside(names, person, read_quality(qualities, images) if quality else None)


def unnamed(same: np.ndarray) -> np.ndarray:
    """The people of 2P images of whom only ``same`` (P,) is known: one of a genuine pair, two of an impostor pair."""
    genuine = 2 * np.flatnonzero(same)
    return people(genuine, genuine + 1, 2 * len(same))


def set_groups(name: str, same: np.ndarray, person: Sequence[str], groups: Mapping[str, str]) -> PairGroups | None:
    """The ``groups`` of people that pairs with ``same`` bool (P,) compare, whose 2P images show each a ``person``."""
    names = sorted(set(groups.values()))
    number_of = {one: names.index(group) for one, group in groups.items()}
    group = np.array([number_of.get(one, -1) for one in person])
    if (group < 0).any():
        say(f"{name}: {(group < 0).sum()} of {len(group)} images show people without a group")
    return pair_groups((group[::2], group[1::2]), names, same, name)


def set_breakdown(name: str, judged: Judged, norms: np.ndarray | None, groups: PairGroups | None) -> ByFmr | None:
    """A set's errors by the images' ``norms`` (2P,), by the quality beside it, and by ``groups``.

    None, and a line that tells so, where it has too few impostor pairs, or no genuine one.
    """
    given = {"norm": norms, "file": judged.beside.quality}
    qualities = {key: np.minimum(value[::2], value[1::2]) for key, value in given.items() if value is not None}
    return _breakdown(name, judged, qualities, groups)


def rfw_breakdown(sets: Mapping[str, Judged]) -> ByFmr | None:
    """The errors of RFW's four groups at one threshold, from ``sets`` by their names; None as of `set_breakdown`."""
    found = rfw_sets(sets)
    assert found is not None
    parts = [sets[name] for name in found.values()]
    starts = np.cumsum([0] + [part.beside.person.max() + 1 for part in parts])
    person = np.concatenate([part.beside.person + start for part, start in zip(parts, starts)])
    named = [part.beside.names is not None for part in parts]
    joined = Judged(
        np.concatenate([part.distances for part in parts]),
        np.concatenate([part.same for part in parts]),
        Beside([] if all(named) else None, person, None),
    )
    group = np.repeat(np.arange(len(parts)), [len(part.same) for part in parts])
    groups = pair_groups((group, group), list(found), joined.same, "RFW")
    return _breakdown("RFW", joined, {}, groups) if groups else None


def _breakdown(
    name: str, judged: Judged, qualities: Mapping[str, np.ndarray], groups: PairGroups | None
) -> ByFmr | None:
    scores, same, person = 1 - judged.distances / 2, judged.same, judged.beside.person
    thresholds = {fmr: threshold_at(scores[~same], fmr) for fmr in reachable(int((~same).sum()))}
    if not thresholds:
        say(f"{name}: {(~same).sum()} impostor pairs tell nothing of FMR 1e-2, so no figures by quality or group")
        return None
    if not same.any():
        say(f"{name}: without a genuine pair there is no FNMR, so no figures by quality or group")
        return None
    return breakdown(
        Pairs(
            scores=scores,
            same=same,
            people=(person[::2], person[1::2]),
            thresholds=thresholds,
            of="pairs" if judged.beside.names is None else "people",
            qualities=qualities,
            groups=groups,
        )
    )
