"""1:N figures of templates: a search for probes in galleries."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from evaluate.protocols.identification import (
    Search,
    joint,
    joint_top,
    mates,
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


def identification(templates: Templates, galleries: dict[str, TemplateList], probes: TemplateList) -> OneToMany:
    """1:N figures: the joint gallery, and each gallery as an open set."""
    probe = templates.vectors[templates.index(probes.template)]

    def vectors_and_mates(template: np.ndarray, subject: np.ndarray, names: str) -> tuple[np.ndarray, np.ndarray]:
        return templates.vectors[templates.index(template)], mates(probes.subject, subject, names)

    every = list(galleries.values())
    vectors, mate = vectors_and_mates(
        np.concatenate([g.template for g in every]), np.concatenate([g.subject for g in every]), "the galleries"
    )
    if (mate < 0).any():
        lost = np.flatnonzero(mate < 0)
        raise UserError(
            f"{len(lost)} probes have no mate in the galleries, the first is template {probes.template[lost[0]]}"
        )
    found = search(probe, vectors, mate, top=joint_top(len(probe)))
    searches: list[Search] = []
    for name, gallery in galleries.items():
        searches.append(search(probe, *vectors_and_mates(gallery.template, gallery.subject, f"gallery {name}")))
    _, subject = np.unique(probes.subject, return_inverse=True)
    signs = draw(subject.max() + 1)

    def with_intervals(figures: dict[str, Any], resampled: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return figures | uncertainty(figures | figures["tpir"], resampled, "subjects", subject, signs)

    return OneToMany(
        joint=Joint(**with_intervals(joint(found), resampled_joint(found, subject, signs))),
        open_set=OpenSet(
            **with_intervals(open_set(searches, list(galleries)), resampled_open_set(searches, subject, signs))
        ),
    )
