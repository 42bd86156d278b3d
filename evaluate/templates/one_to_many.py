"""1:N figures of templates: a search for probes in galleries."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from evaluate.protocols.identification import (
    joint,
    joint_top,
    mates,
    open_mates,
    open_set,
    resampled_joint,
    resampled_open_set,
    search,
)
from evaluate.protocols.ijb_lists import TemplateList
from evaluate.protocols.resampling import draw
from evaluate.protocols.templates import Templates
from evaluate.reporting.schema import Joint, OneToMany, OpenSet
from evaluate.reporting.uncertainty import uncertainty
from pipelines.common.errors import UserError


def find_mates(galleries: dict[str, TemplateList], probes: TemplateList) -> tuple[np.ndarray, list[np.ndarray]]:
    """The place of each probe's mate, int64 (Q,), in all galleries one behind the other, and in each; -1 for none.

    Raises ``UserError`` where there can be no figures of these lists.
    """
    joint = mates(probes.subject, np.concatenate([each.subject for each in galleries.values()]), "the galleries")
    if len(lost := np.flatnonzero(joint < 0)):
        raise UserError(
            f"{len(lost)} probes have no mate in the galleries, the first is template {probes.template[lost[0]]}"
        )
    return joint, [open_mates(probes.subject, each.subject, f"gallery {name}") for name, each in galleries.items()]


def identification(templates: Templates, galleries: dict[str, TemplateList], probes: TemplateList) -> OneToMany:
    """1:N figures: the joint gallery, and each gallery as an open set."""
    mate, mate_in_each = find_mates(galleries, probes)
    probe, *each = (templates.vectors[templates.index(listed.template)] for listed in (probes, *galleries.values()))
    found = search(probe, np.concatenate(each), mate, top=joint_top(len(probe)))
    searches = [search(probe, vectors, own) for vectors, own in zip(each, mate_in_each)]
    _, subject = np.unique(probes.subject, return_inverse=True)
    signs = draw(subject.max() + 1)

    def with_intervals(figures: dict[str, Any], resampled: Mapping[str, np.ndarray]) -> dict[str, Any]:
        who = probes.subject.tolist()
        return figures | uncertainty(figures | figures["tpir"], resampled, "subjects", subject, signs, who=who)

    return OneToMany(
        joint=Joint(**with_intervals(joint(found), resampled_joint(found, subject, signs))),
        open_set=OpenSet(
            **with_intervals(open_set(searches, list(galleries)), resampled_open_set(searches, subject, signs))
        ),
    )
