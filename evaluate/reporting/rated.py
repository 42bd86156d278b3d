"""Figures of several models that were resampled: as a table, in pairs against the first, and as bands of a chart."""

from collections.abc import Iterable, Mapping, Sequence

from evaluate.reporting import charts
from evaluate.reporting.page import Page
from evaluate.reporting.uncertainty import Uncertain, differences

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


def measured_unlike(parts: Iterable[Uncertain]) -> bool:
    """Whether some of these were surely measured on other people or pairs than the rest."""
    return len({part.resamples.key for part in parts if part.resamples}) > 1


def bands(models: Mapping[str, Uncertain], place: Mapping[str, float]) -> charts.Bands:
    """The intervals of each model's figures, at the ``place`` where a chart shows them."""
    return {name: {place[key]: pair for key, pair in part.bounds(place).items()} for name, part in models.items()}
