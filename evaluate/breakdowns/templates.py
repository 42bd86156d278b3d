"""IJB's templates by quality and by group, at the thresholds of its 1:1 protocol."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluate.breakdowns.pairs import Pairs, breakdown, pair_groups, reachable
from evaluate.protocols.ijb_lists import Images, TemplateList
from evaluate.protocols.resampling import people
from evaluate.protocols.roc import Roc
from evaluate.protocols.scores import error_bound, exact, pair_scores
from evaluate.protocols.side_lists import read_quality
from evaluate.protocols.templates import Templates, template_means
from evaluate.reporting.breakdowns import ByFmr
from pipelines.common.command import say
from pipelines.common.errors import UserError


def given_qualities(names: Sequence[str], images: Images) -> dict[str, np.ndarray]:
    """The images' qualities (n,) that are there beforehand, by name: the ``detector``'s score, and those of files.

    The ``norm`` of the features is not among them.
    """
    found: dict[str, np.ndarray] = {}
    for name in names:
        if name == "norm":
            continue
        title = name if name == "detector" else Path(name).stem
        if title in found or title == "norm":
            raise UserError(f"--quality {name}: there is another quality of the name {title}; rename the file")
        scores = images.detector if name == "detector" else read_quality(Path(name), len(images.names))
        found[title] = scores.astype(np.float64)
    return found


def template_breakdown(
    templates: Templates,
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    images: Images,
    qualities: Mapping[str, np.ndarray],
    groups: Mapping[str, str],
    subjects: Sequence[TemplateList],
) -> ByFmr | None:
    """Errors of template id pairs (P,), (P,) and ``same`` (P,), by the images' ``qualities`` (n,) and by group.

    A template's quality is the mean over its media of their images' mean. ``groups`` are of subjects, whose templates
    the lists of ``subjects`` name. None, and a line that tells so, where there are too few impostor pairs.
    """
    first, second, same = templates.index(pairs[0]), templates.index(pairs[1]), pairs[2]
    vectors, error = templates.vectors, error_bound(templates.vectors.shape[1])
    scores = pair_scores(vectors, first, second)
    roc = Roc(scores, same, lambda i: exact(vectors, vectors, first[i], second[i]), error)
    thresholds = {fmr: roc.at(fmr, "at_most").threshold for fmr in reachable(len(roc.impostor))}
    if not thresholds:
        say(f"{len(roc.impostor)} impostor pairs tell nothing of FMR 1e-2, so no figures by quality or group")
        return None
    scores = scores.astype(np.float64)
    for threshold in thresholds.values():
        near = np.flatnonzero(np.abs(scores - threshold) <= error)
        scores[near] = exact(vectors, vectors, first[near], second[near])
    names, group = ((), None) if not groups else _groups(templates, first, second, same, groups, subjects)
    of_template = {name: template_means(values, images.template, images.media) for name, values in qualities.items()}
    person = people(first[same], second[same], len(templates.ids))
    return breakdown(
        Pairs(
            scores=scores,
            same=same,
            people=(person[first], person[second]),
            thresholds=thresholds,
            of="subjects",
            qualities={name: np.minimum(of[first], of[second]) for name, of in of_template.items()},
            groups=names,
            group=group,
        )
    )


def _groups(
    templates: Templates,
    first: np.ndarray,
    second: np.ndarray,
    same: np.ndarray,
    groups: Mapping[str, str],
    subjects: Sequence[TemplateList],
) -> tuple[tuple[str, ...], np.ndarray]:
    names = sorted(set(groups.values()))
    of_template = np.full(len(templates.ids), -1, np.int64)
    for given in subjects:
        numbers = [names.index(groups[key]) if (key := str(subject)) in groups else -1 for subject in given.subject]
        of_template[templates.index(given.template)] = numbers
    if not (of_template >= 0).any():
        raise UserError("none of the subjects in the lists of galleries and probes has a group")
    used = np.unique(np.concatenate([first, second]))
    lost = int((of_template[used] < 0).sum())
    if lost:
        say(f"{lost} of {len(used)} templates show subjects without a group, or none of the 1:N lists names them")
    return pair_groups((of_template[first], of_template[second]), names, same, "the groups")
