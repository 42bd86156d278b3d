"""1:N among one's own people: probes search a gallery, and so do people who are not in it."""

from collections.abc import Sequence

import numpy as np

from evaluate.own_people.confusions import confused_searches
from evaluate.own_people.faces import Faces
from evaluate.protocols.identification import (
    best_mates,
    cmc,
    limit_at,
    rank_rates,
    resampled_limits,
    resampled_open_set,
    resampled_ranks,
    search,
    tpir_at,
)
from evaluate.protocols.intervals import threshold_intervals
from evaluate.protocols.resampling import draw
from evaluate.protocols.roc import allowed
from evaluate.reporting.schema import OwnGallery
from evaluate.reporting.uncertainty import uncertainty
from pipelines.common.errors import UserError, brief

FPIRS = (0.0001, 0.001, 0.01, 0.1)


def own_gallery(gallery: Faces, probes: Faces, unknown: Faces | None, fpirs: Sequence[float] = FPIRS) -> OwnGallery:
    """1:N figures. Of a person's images in the gallery the most similar counts; TPIR needs ``unknown`` people."""
    others = unknown or Faces([], [], np.empty((0, gallery.vectors.shape[1])))
    # Nobody unknown is somebody of the gallery, whatever a folder's name is.
    names = [*probes.names, *(f"unknown/{name}" for name in others.names)]
    _, subject = np.unique(names, return_inverse=True)
    _, person = np.unique([*gallery.names, *probes.names], return_inverse=True)
    person, whose = np.split(person, [len(gallery.names)])
    if not np.isin(whose, person).all():
        lost = sorted(set(probes.names) - set(gallery.names))
        raise UserError(f"{len(lost)} people of probe/ are not in gallery/: {brief(lost)}; unknown/ is for such")
    mate = np.concatenate([best_mates(probes.vectors, gallery.vectors, whose, person), np.full(len(others.names), -1)])
    found = search(np.concatenate([probes.vectors, others.vectors]), gallery.vectors, mate)
    told = [fpir for fpir in fpirs if allowed(fpir, len(others.names)) >= 1]
    mated = found.rank[found.mated]
    tpir = {f"{fpir:g}": tpir_at(found, fpir) for fpir in told}
    threshold = {f"{fpir:g}": limit_at(found, fpir) for fpir in told}
    signs = draw(subject.max() + 1)
    if told:
        resampled = resampled_open_set([found], subject, signs, told)
        limits = resampled_limits(found, subject, signs, told)
        axis = np.geomspace(1 / len(others.names), 1, 81)
        det = {"fpir": axis.tolist(), "fnir": [1 - tpir_at(found, fpir) for fpir in axis]}
    else:
        resampled, limits, det = resampled_ranks(mated, subject[found.mated], signs), np.empty((len(signs), 0)), None
    ranks = rank_rates(mated)
    return OwnGallery(
        gallery=len(gallery.names),
        people=len(set(gallery.names)),
        probes=len(probes.names),
        unknown=len(others.names),
        **ranks,
        tpir=tpir,
        threshold=threshold,
        threshold_interval=threshold_intervals(threshold, limits),
        cmc=cmc(mated),
        det=det,
        confusions=confused_searches(gallery, probes, others, found, person, whose),
        **uncertainty(ranks | tpir, resampled, "people", subject, signs),
    )
