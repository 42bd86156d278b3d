"""Figures of several models that were resampled: as a table, in pairs against the first, and in charts with bands."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from matplotlib.figure import Figure

from evaluate.reporting import charts
from evaluate.reporting.page import Page
from evaluate.reporting.schema import Joint, OneToOne, OpenSet, OwnGallery, OwnPairs
from evaluate.reporting.uncertainty import Uncertain, differences, measured_unlike
from evaluate.reporting.words import RANKS, rate_name

Verified = TypeVar("Verified", OneToOne, OwnPairs)
Figures = Mapping[str, float | None]  # by their names or keys


def rated(
    page: Page,
    heading: str,
    columns: Mapping[str, str],
    models: Mapping[str, tuple[Figures, Uncertain]],
    published: Sequence[tuple[dict, Mapping[str, float]]] = (),
    *,
    least: bool = False,
) -> None:
    """Every model's figures with their intervals, and by how much they exceed the first one's, in pairs.

    ``columns`` maps keys to titles; of those that all were measured by alike the best stands out: the largest, or the
    ``least`` of errors.
    """
    parts = {model: part for model, (_, part) in models.items()}
    page.table(
        heading,
        columns,
        {model: figures for model, (figures, _) in models.items()},
        published,
        intervals={model: part.bounds(columns) for model, part in parts.items()},
        least=least,
        unlike=columns if measured_unlike(parts.values()) else (),
    )
    compare(page, columns, models)


def compare(page: Page, columns: Mapping[str, str], models: Mapping[str, tuple[Figures, Uncertain]]) -> None:
    """Every model's figures against the first one's, in pairs, where both were resampled alike."""
    (name, first), *others = models.items()
    rows = {f"{other} − {name}": differences(part, first) for other, part in others}
    page.differences("Difference in points, paired", columns, rows)


def bands(models: Mapping[str, Uncertain], place: Mapping[str, float]) -> charts.Bands:
    """The intervals of each model's figures, at the ``place`` where a chart shows them."""
    return {name: {place[key]: pair for key, pair in part.bounds(place).items()} for name, part in models.items()}


def roc(page: Page, models: Mapping[str, OneToOne | OwnPairs], fars: Iterable[str]) -> Figure:
    """The ROCs, with the intervals of TAR at ``fars``."""
    curves = {model: (part.roc.far, part.roc.tar) for model, part in models.items()}
    marks = {far: float(far) for far in fars}
    return charts.roc("ROC", curves, page.colours, list(marks.values()), bands(models, marks))


def scores(kind: str, models: Mapping[str, Verified], far: Callable[[Verified], str]) -> dict[str, Figure]:
    """Histograms of the pairs' scores, a chart a model, with its threshold at the ``far`` that it is asked for."""
    drawn = {}
    for model, part in models.items():
        title = ("Scores" if len(models) == 1 else f"Scores · {model}") + f" (threshold at FAR {rate_name(far(part))})"
        drawn[f"{kind}_scores_{model}"] = charts.histogram(title, "cosine", part.histogram, part.threshold[far(part)])
    return drawn


def cmc(page: Page, title: str, models: Mapping[str, Joint | OwnGallery]) -> Figure:
    """The cumulative match characteristics."""
    curves = {model: (range(1, len(part.cmc) + 1), part.cmc) for model, part in models.items()}
    return charts.cmc(title, curves, page.colours, bands(models, {f"rank{k}": k for k in RANKS}))


def det(page: Page, title: str, models: Mapping[str, OpenSet | OwnGallery]) -> Figure:
    """The detection error trade-offs of those that have one, with the intervals of FNIR, which is 1 - TPIR."""
    curves = {model: (part.det.fpir, part.det.fnir) for model, part in models.items() if part.det}
    found = bands(models, {fpir: float(fpir) for part in models.values() for fpir in part.tpir})
    missed = {model: {x: (1 - high, 1 - low) for x, (low, high) in points.items()} for model, points in found.items()}
    return charts.det(title, curves, page.colours, missed)
