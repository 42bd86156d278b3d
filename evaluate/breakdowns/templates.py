"""IJB's templates by quality and by group, at the thresholds of its 1:1 protocol."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluate.breakdowns.pairs import PairGroups, Pairs, breakdown, pair_groups, reachable
from evaluate.protocols.ijb_lists import Images, TemplateList
from evaluate.protocols.resampling import people
from evaluate.protocols.side_lists import read_quality
from evaluate.protocols.template_pairs import TemplatePairs
from evaluate.protocols.templates import rows_of, template_means
from evaluate.reporting.breakdowns import ByFmr
from pipelines.common.command import say
from pipelines.common.errors import UserError


def given_qualities(names: Sequence[str], images: Images) -> dict[str, np.ndarray]:
    """The images' qualities (n,) that are there beforehand, by name: the ``detector``'s score, and those of files.

    The ``norm`` of the features is not among them. A name that is given twice counts once.
    """
    found: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(names):
        if name == "norm":
            continue
        title = name if name == "detector" else Path(name).stem
        if title in found or title == "norm":
            raise UserError(f"--quality {name}: there is another quality of the name {title}; rename the file")
        scores = images.detector if name == "detector" else read_quality(Path(name), len(images.names))
        found[title] = scores.astype(np.float64)
    return found


def template_groups(
    images: Images,
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    groups: Mapping[str, str],
    galleries: Mapping[str, TemplateList],
    probes: TemplateList,
) -> PairGroups | None:
    """The ``groups`` of subjects that pairs of template ids (P,), (P,) and ``same`` (P,) compare; see `pair_groups`.

    Which subject a template shows is told by the lists of ``galleries`` and ``probes``. Raises ``UserError`` where none
    of these has a group.
    """
    names = sorted(set(groups.values()))
    ids = np.unique(images.template)
    of_template = np.full(len(ids), -1, np.int64)
    for given in (*galleries.values(), probes):
        numbers = [names.index(groups[key]) if (key := str(subject)) in groups else -1 for subject in given.subject]
        of_template[rows_of(given.template, ids)] = numbers
    if not (of_template >= 0).any():
        raise UserError("none of the subjects in the lists of galleries and probes has a group")
    first, second = rows_of(pairs[0], ids), rows_of(pairs[1], ids)
    used = np.zeros(len(ids), bool)
    used[first] = used[second] = True
    if lost := int((of_template[used] < 0).sum()):
        say(f"{lost} of {used.sum()} templates show subjects without a group, or none of the 1:N lists names them")
    return pair_groups((of_template[first], of_template[second]), names, pairs[2], "the groups")


def template_breakdown(
    pairs: TemplatePairs, images: Images, qualities: Mapping[str, np.ndarray], groups: PairGroups | None
) -> ByFmr | None:
    """Errors of ``pairs`` by the images' ``qualities`` (n,) and by group.

    A template's quality is the mean over its media of their images' mean. None, and a line that tells so, where there
    are too few impostor pairs.
    """
    first, second, same = pairs.first, pairs.second, pairs.same
    impostors = len(pairs.roc.impostor)
    thresholds = {fmr: pairs.roc.at(fmr, "at_most").threshold for fmr in reachable(impostors)}
    if not thresholds:
        say(f"{impostors} impostor pairs tell nothing of FMR 1e-2, so no figures by quality or group")
        return None
    scores = pairs.scores.astype(np.float64)
    for threshold in thresholds.values():
        near = np.flatnonzero(np.abs(scores - threshold) <= pairs.error)
        scores[near] = pairs.exact(near)
    of_template = {name: template_means(values, images.template, images.media) for name, values in qualities.items()}
    person = people(first[same], second[same], len(pairs.templates.ids))
    return breakdown(
        Pairs(
            scores=scores,
            same=same,
            people=(person[first], person[second]),
            thresholds=thresholds,
            of="subjects",
            qualities={name: np.minimum(of[first], of[second]) for name, of in of_template.items()},
            groups=groups,
        )
    )
