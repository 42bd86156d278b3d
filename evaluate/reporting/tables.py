"""Tables of figures for the terminal; 80 columns are enough, and no interval is broken over lines."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluate.reporting.breakdowns import MEASURE_NAMES, ByFmr, discard_names
from evaluate.reporting.schema import SetFigures
from evaluate.reporting.words import bracket, percent, rate_name
from pipelines.common.errors import escaped

Intervals = Mapping[str, Sequence[float] | None] | None  # (low, high) by the figure's name


def accuracy_table(sets: Mapping[str, SetFigures]) -> Table:
    """The figures of each verification set in percent, their intervals below them.

    The FAR met is that of the held-out folds, which may be far from the FAR that is asked for.
    """
    table = _table("set", "pairs", "accuracy %", "TAR % at FAR 1e-3", "FAR % met", "threshold")
    for name, figures in sets.items():
        table.add_row(
            Text(escaped(name)),  # as it is: a str would be read as markup
            f"{figures.pairs}",
            Text(percent(figures.accuracy, figures.std) + _below(figures.interval, "accuracy")),
            Text(percent(figures.val, figures.val_std) + _below(figures.interval, "val")),
            percent(figures.far),
            f"{figures.threshold:.2f}",
        )
    return table


def print_rates(
    title: str,
    rates: Mapping[str, float | None],
    intervals: Intervals,
    *,
    met: Mapping[str, float | None] | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Print percentages with their 95 % intervals, a line each, under their ``names`` if they have others than keys.

    Beside TARs at wanted FARs stand the FARs really ``met``.
    """
    table = _table("", "%", *["95 % interval"] * bool(intervals), *["FAR % met"] * bool(met))
    for key, rate in rates.items():
        pair = (intervals or {}).get(key)
        known = [Text(bracket(pair) if pair else "–")] * bool(intervals)
        table.add_row(names.get(key, key), percent(rate), *known, *([percent(met[key], digits=".2g")] if met else []))
    _print(title, table)


def print_breakdown(title: str, found: ByFmr | None) -> None:
    """Print figures by quality and by group, if there are any."""
    if found is None:
        return
    for quality, by_fmr in found.quality.items():
        for fmr, part in by_fmr.items():
            heading = f"{title}: FNMR at FMR {rate_name(fmr)} without the pairs of least quality, {quality}"
            print_rates(heading, part.rates, part.interval, names=discard_names(part.rates))
    for fmr, groups in found.groups.items():
        table = _table("group", "people", "genuine", "impostor", "FMR %", "FNMR %")
        for name, errors in groups.groups.items():
            rates = {"fmr": errors.fmr, "fnmr": errors.fnmr}
            cells = [
                Text(percent(rate, digits=".3g") + _below(errors.interval, key, ".3g")) for key, rate in rates.items()
            ]
            table.add_row(Text(escaped(name)), f"{errors.people}", f"{errors.genuine}", f"{errors.impostor}", *cells)
        _print(f"{title}: groups at the threshold of FMR {rate_name(fmr)}", table)
        measures = _table("how far apart", "", "95 % interval")
        measures.add_column("beside equal groups")
        for key, label in MEASURE_NAMES.items():
            measures.add_row(label, *map(Text, groups.told(key)))
        Console().print(measures)


def print_thresholds(
    title: str, kind: str, thresholds: Mapping[str, float], intervals: Mapping[str, Sequence[float] | None]
) -> None:
    """Print cosines by the wanted rate of false accepts, of a ``kind`` such as FAR, with 95 % intervals, if any."""
    table = _table("", "cosine", "95 % interval")
    for rate, value in thresholds.items():
        pair = intervals[rate]
        known = Text(f"[{pair[0]:.3f}, {pair[1]:.3f}]" if pair else "–")
        table.add_row(f"{kind} {rate_name(rate)}", f"{value:.3f}", known)
    _print(title, table)


def _print(title: str, table: Table) -> None:
    """A table below its title, which may be the wider one."""
    Console().print(Text(title, "bold"), table)


def _table(first: str, *others: str) -> Table:
    """Names on the left, which may be folded; figures on the right, which may not."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _below(intervals: Intervals, name: str, digits: str = ".2f") -> str:
    """The 95 % interval of a figure on a line of its own; nothing where there is none."""
    pair = (intervals or {}).get(name)
    return f"\n{bracket(pair, digits)}" if pair else ""
