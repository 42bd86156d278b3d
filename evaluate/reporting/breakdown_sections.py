"""The parts of a report on errors by quality and by group of people."""

from collections.abc import Mapping

from evaluate.reporting import charts
from evaluate.reporting.breakdowns import MEASURE_NAMES, ByFmr, Discard, Groups, discard_names
from evaluate.reporting.page import Page
from evaluate.reporting.rated import rated
from evaluate.reporting.uncertainty import measured_unlike
from evaluate.reporting.words import rate_name, told_of


def breakdowns(page: Page, name: str, models: Mapping[str, ByFmr | None]) -> None:
    """Everything that any of the models has of the set ``name``."""
    given = {model: by for model, by in models.items() if by}
    for quality in dict.fromkeys(quality for by in given.values() for quality in by.quality):
        for fmr in dict.fromkeys(fmr for by in given.values() for fmr in by.quality.get(quality, {})):
            having = {
                model: by.quality[quality][fmr] for model, by in given.items() if fmr in by.quality.get(quality, {})
            }
            _discard(page, name, quality, fmr, having)
    for fmr in dict.fromkeys(fmr for by in given.values() for fmr in by.groups):
        _groups(page, name, fmr, {model: by.groups[fmr] for model, by in given.items() if fmr in by.groups})


def _discard(page: Page, name: str, quality: str, fmr: str, models: Mapping[str, Discard]) -> None:
    counts = told_of(models, lambda part: f"{part.genuine:,} genuine pairs, of which {part.refused:,} are refused")
    page.section(
        f"{name}: errors by quality ({quality}) at FMR {rate_name(fmr)}",
        f"{counts}. False non-match rate in percent, without those of the lowest quality; the threshold is chosen on "
        "all pairs and stays. A quality that tells nothing leaves the line level. In brackets, and shaded, 95 % "
        "intervals by resampling people, or pairs where nobody is named.",
    )
    drawn = charts.discard("Error versus discard", {model: part.steps for model, part in models.items()}, page.colours)
    page.figures({f"{name}_discard_{quality}_{fmr}": drawn})
    columns = discard_names(dict.fromkeys(key for part in models.values() for key in part.rates))
    rated(page, "FNMR", columns, {model: (part.rates, part) for model, part in models.items()}, least=True)


def _groups(page: Page, name: str, fmr: str, models: Mapping[str, Groups]) -> None:
    page.section(
        f"{name}: groups at one threshold, FMR {rate_name(fmr)} of all",
        "False match and non-match rates in percent; the pairs of a group are those whose two people are in it. Beside "
        "each measure of how far apart the groups lie stands what 19 in 20 sets of equal groups of this size keep to: "
        "within that, a difference between groups is not shown. In brackets 95 % intervals by resampling people, or "
        "pairs where nobody is named.",
    )
    names = list(dict.fromkeys(group for part in models.values() for group in part.groups))
    titles = {"fmr": "False match rate", "fnmr": "False non-match rate"}
    rates = {
        key: {
            model: {group: getattr(errors, key) for group, errors in part.groups.items()}
            for model, part in models.items()
        }
        for key in titles
    }
    intervals = {
        key: {
            model: {group: pair for group, errors in part.groups.items() for pair in errors.bounds([key]).values()}
            for model, part in models.items()
        }
        for key in titles
    }
    page.figures(
        {
            f"{name}_groups_{key}_{fmr}": charts.groups(f"{title} by group", rates[key], intervals[key], page.colours)
            for key, title in titles.items()
        }
    )
    columns = {group: group for group in names}
    unlike = names if measured_unlike(models.values()) else ()
    for key in titles:
        page.table(key.upper(), columns, rates[key], intervals=intervals[key], least=True, unlike=unlike)
    page.texts(
        "How far apart",
        MEASURE_NAMES,
        {model: {key: part.told(key) for key in MEASURE_NAMES} for model, part in models.items()},
    )
