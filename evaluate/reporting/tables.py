"""Tables of figures for the terminal."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluate.reporting.breakdowns import MEASURE_NAMES, ByFmr, discard_names
from evaluate.reporting.schema import SetFigures
from pipelines.common.errors import escaped

Intervals = Mapping[str, Sequence[float] | None] | None  # (low, high) by the figure's name


def accuracy_table(sets: Mapping[str, SetFigures]) -> Table:
    """The figures of each verification set in percent.

    The FAR met is that of the held-out folds, which may be far from the FAR that is asked for.
    """
    table = Table("set", "pairs", "accuracy %", "TAR % at FAR 1e-3", "FAR % met", "threshold")
    for name, figures in sets.items():
        table.add_row(
            Text(escaped(name)),  # as it is: a str would be read as markup
            f"{figures.pairs}",
            _percent(figures.accuracy, figures.std) + bounds(figures.interval, "accuracy"),
            _percent(figures.val, figures.val_std) + bounds(figures.interval, "val"),
            _percent(figures.far),
            f"{figures.threshold:.2f}",
        )
    return table


def _percent(rate: float | None, std: float | None = None, digits: str = ".2f") -> str:
    if rate is None:
        return "–"
    return f"{100 * rate:{digits}}" + (f" ± {100 * std:{digits}}" if std is not None else "")


def bounds(intervals: Intervals, name: str) -> str:
    """The 95 % interval of a figure in percent, led by a blank; nothing where there is none."""
    pair = (intervals or {}).get(name)
    return f" [{100 * pair[0]:.2f}, {100 * pair[1]:.2f}]" if pair else ""


def print_rates(
    title: str,
    rates: Mapping[str, float | None],
    intervals: Intervals = None,
    *,
    met: Mapping[str, float | None] | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Print percentages with their 95 % intervals, under their ``names`` if they have others than their keys.

    For TARs at wanted FARs, the FARs really ``met`` stand below them.
    """
    table = Table(title=title, title_justify="left")
    if met:
        table.add_column()
    for name in rates:
        table.add_column(names.get(name, name), justify="right")
    cells = [Text(_percent(rate) + bounds(intervals, name)) for name, rate in rates.items()]
    table.add_row(*["TAR %"] * bool(met), *cells)
    if met:
        table.add_row("FAR % met", *(_percent(met[name], digits=".2g") for name in rates))
    Console().print(table)


def print_breakdown(title: str, found: ByFmr | None) -> None:
    """Print figures by quality and by group, if there are any."""
    if found is None:
        return
    for quality, by_fmr in found.quality.items():
        for fmr, part in by_fmr.items():
            heading = f"{title}: FNMR % at FMR {fmr} without the pairs of least quality, {quality}"
            print_rates(heading, part.rates, part.interval, names=discard_names(part.rates))
    for fmr, groups in found.groups.items():
        table = Table("group", "people", "genuine", "impostor", "FMR %", "FNMR %", title_justify="left")
        table.title = f"{title}: groups at the threshold of FMR {fmr}"
        for name, errors in groups.groups.items():
            rates = {"fmr": errors.fmr, "fnmr": errors.fnmr}
            cells = [_percent(rate, digits=".3g") + bounds(errors.interval, key) for key, rate in rates.items()]
            table.add_row(Text(escaped(name)), f"{errors.people}", f"{errors.genuine}", f"{errors.impostor}", *cells)
        Console().print(table)
        measures = Table("how far apart", "", show_header=False, box=None)
        for key, label in MEASURE_NAMES.items():
            measures.add_row(label, groups.told(key))
        Console().print(measures)


def print_thresholds(title: str, thresholds: Mapping[str, float], intervals: Mapping[str, Sequence[float]]) -> None:
    """Print cosines by the wanted rate of false accepts, with their 95 % intervals."""
    table = Table(title=title, title_justify="left")
    for rate in thresholds:
        table.add_column(rate, justify="right")
    table.add_row(
        *(Text("{:.3f} [{:.3f}, {:.3f}]".format(value, *intervals[rate])) for rate, value in thresholds.items())
    )
    Console().print(table)
