"""1:N among one's own people: probes search a gallery, and so do people who are not in it."""

from collections.abc import Sequence

import numpy as np

from evaluate.own_people.confusions import confused_searches
from evaluate.own_people.faces import Faces, Photographs
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
from pipelines.common.command import say
from pipelines.common.errors import UserError, brief

FPIRS = (0.0001, 0.001, 0.01, 0.1)


def check_enrolled(gallery: Sequence[str], probes: Sequence[str]) -> None:
    """Raise ``UserError`` where not all people of the probes are in the gallery, or that is too small to search."""
    if len(gallery) < 2:
        raise UserError(f"gallery/ needs two images at least, it has {len(gallery)}")
    if lost := sorted(set(probes) - set(gallery)):
        raise UserError(f"{len(lost)} people of probe/ are not in gallery/: {brief(lost)}; unknown/ is for such")


def searchable(probes: Photographs, gallery: Photographs) -> Photographs:
    """The probes of people whose faces were found in the gallery; a line tells who else was there.

    Raises ``UserError`` where none are left.
    """
    enrolled = set(gallery.names)
    rows = np.array([row for row, name in enumerate(probes.names) if name in enrolled], np.int64)
    lost = sorted(set(probes.names) - enrolled)
    if not len(rows):
        raise UserError("in gallery/ no face is found of anybody who is in probe/")
    if lost:
        count = len(probes.names) - len(rows)
        say(f"{count} photographs in probe/ are left out, of people without a face in gallery/: {brief(lost)}")
    return probes.only(rows) if lost else probes


def own_gallery(gallery: Faces, probes: Faces, unknown: Faces | None, fpirs: Sequence[float] = FPIRS) -> OwnGallery:
    """1:N figures. Of a person's images in the gallery the most similar counts; TPIR needs ``unknown`` people."""
    check_enrolled(gallery.names, probes.names)
    others = unknown or Faces([], [], np.empty((0, gallery.vectors.shape[1])))
    # Nobody unknown is somebody of the gallery, whatever a folder's name is.
    names = [*probes.names, *(f"unknown/{name}" for name in others.names)]
    _, subject = np.unique(names, return_inverse=True)
    _, person = np.unique([*gallery.names, *probes.names], return_inverse=True)
    person, whose = np.split(person, [len(gallery.names)])
    mate = np.concatenate([best_mates(probes.vectors, gallery.vectors, whose, person), np.full(len(others.names), -1)])
    found = search(np.concatenate([probes.vectors, others.vectors]), gallery.vectors, mate)
    told = [fpir for fpir in fpirs if allowed(fpir, len(others.names)) >= 1]
    mated = found.rank[found.mated]
    tpir = {f"{fpir:g}": tpir_at(found, fpir) for fpir in told}
    threshold = {f"{fpir:g}": limit_at(found, fpir) for fpir in told}
    strangers = found.best_other[~found.mated]
    above = {fpir: int((strangers > limit).sum()) for fpir, limit in threshold.items()}
    signs = draw(subject.max() + 1)
    if told:
        resampled = resampled_open_set([found], subject, signs, told)
        limits = resampled_limits(found, subject, signs, told)
        axis = np.geomspace(1 / len(others.names), 1, 81)
        det = {"fpir": axis.tolist(), "fnir": [1 - tpir_at(found, fpir) for fpir in axis]}
    else:
        resampled, limits, det = resampled_ranks(mated, subject[found.mated], signs), np.empty((len(signs), 0)), None
    ranks = rank_rates(mated)
    known, who = len(np.unique(subject[found.mated])), [*gallery.names, *names]
    return OwnGallery(
        gallery=len(gallery.names),
        people=len(set(gallery.names)),
        probes=len(probes.names),
        unknown=len(others.names),
        left_out=gallery.left_out + probes.left_out + others.left_out,
        **ranks,
        tpir=tpir,
        threshold=threshold,
        threshold_interval=threshold_intervals(threshold, limits, above),
        cmc=cmc(mated),
        det=det,
        confusions=confused_searches(gallery, probes, others, found, person, whose),
        **uncertainty(ranks | tpir, resampled, "people", subject, signs, dict.fromkeys(resampled, known), who),
    )
