"""The sections of a report on one's own people: thresholds, rates, curves, and the confusions as pictures."""

from collections.abc import Mapping
from pathlib import Path

from evaluate.protocols.intervals import LEAST_ABOVE
from evaluate.reporting.page import Page, rows_table
from evaluate.reporting.rated import cmc, det, rated, roc, scores
from evaluate.reporting.schema import OwnGallery, OwnPairs, Thresholds
from evaluate.reporting.words import rate_name, rates_of, search_names, told_of


def pairs(page: Page, models: Mapping[str, OwnPairs]) -> None:
    """1:1 over all pairs."""
    if not models:
        return
    counts = told_of(
        models,
        lambda part: (
            f"{part.images:,} images of {part.people:,} people, {part.genuine:,} genuine and "
            f"{part.impostor:,} impostor pairs{_left_out(part)}"
        ),
    )
    page.section(
        "Own people, 1:1",
        f"{counts}. A pair is accepted when its cosine exceeds the threshold. In brackets 95 % intervals by resampling "
        "people.",
    )
    _thresholds(page, "Threshold for a FAR of", models)
    fars = rates_of(part.tar for part in models.values())
    columns = {far: rate_name(far) for far in fars}
    rated(page, "TAR at FAR", columns, {model: (part.tar, part) for model, part in models.items()})
    drawn = scores("own", models, lambda part: min(part.threshold, key=float))
    page.figures({"own_roc": roc(page, models, fars), **drawn})
    _pictures(page, models)


def gallery(page: Page, models: Mapping[str, OwnGallery]) -> None:
    """1:N in a gallery."""
    if not models:
        return
    counts = told_of(
        models,
        lambda part: (
            f"{part.gallery:,} images of {part.people:,} people in the gallery, {part.probes:,} probes of them, "
            f"{part.unknown:,} of unknown people{_left_out(part)}"
        ),
    )
    page.section(
        "Own people, 1:N",
        f"{counts}. A probe is given the most similar image's name when its cosine exceeds the threshold; FPIR is the "
        "share of unknown probes that get a name, TPIR that of the others that get the right one. At rank k the right "
        "one is among the k most similar images. In brackets 95 % intervals by resampling people.",
    )
    _thresholds(page, "Threshold for an FPIR of", models)
    columns = search_names(rates_of(part.tpir for part in models.values()))
    rated(page, "Rates", columns, {model: (part.rates, part) for model, part in models.items()})
    drawn = {"own_cmc": cmc(page, "CMC", models)}
    if any(part.det for part in models.values()):
        drawn["own_det"] = det(page, "DET", models)
    page.figures(drawn)
    _pictures(page, models)


def _left_out(part: Thresholds) -> str:
    why = "in which no face is found, or none of their person in the gallery"
    return f"; {part.left_out:,} photographs are left out, {why}" if part.left_out else ""


def _thresholds(page: Page, heading: str, models: Mapping[str, Thresholds]) -> None:
    """Cosines, which unlike all other figures of a page are not percentages."""
    columns = rates_of(part.threshold for part in models.values())
    if not columns:
        return

    def cell(part: Thresholds, rate: str) -> str:
        if rate not in part.threshold:
            return "<td>–</td>"
        pair = part.threshold_interval[rate]
        told = f"[{pair[0]:.3f}, {pair[1]:.3f}]" if pair else "too few strangers"
        return f"<td>{part.threshold[rate]:.3f} <span class='ci'>{told}</span></td>"

    rows = [page.row(model, (cell(part, rate) for rate in columns)) for model, part in models.items()]
    page.parts.append(rows_table(heading, map(rate_name, columns), rows))
    if any(pair is None for part in models.values() for pair in part.threshold_interval.values()):
        page.parts.append(
            f'<p class="lead">Too few strangers: fewer than {LEAST_ABOVE} scores exceed the threshold, so it has no '
            "interval, and may be far too low.</p>"
        )


def _pictures(page: Page, models: Mapping[str, Thresholds]) -> None:
    for model, part in models.items():
        if part.worst:
            page.picture(Path(part.worst).read_bytes(), f"Own people: confusions of {model}, and cosines")
