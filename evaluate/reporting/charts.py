"""The charts of a report: one function a chart, from plain numbers to a matplotlib figure."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator, PercentFormatter

from evaluate.reporting.breakdowns import DiscardSteps
from evaluate.reporting.schema import Histogram
from evaluate.reporting.words import rate_name

# Okabe and Ito's colours, told apart by everyone; the light ones last.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#999999")
_HEADROOM = 1.12  # of a histogram's axis over its densities
GENUINE, IMPOSTOR = "#009e73", "#d55e00"
STYLE: dict[Any, Any] = {  # the type of the keys differs between versions of matplotlib
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa3ad",
    "axes.labelcolor": "#3b4650",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e4e8ec",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#5b6670",
    "ytick.color": "#5b6670",
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    "svg.hashsalt": "facemill",
}
Numbers = Sequence[float] | np.ndarray
Curves = Mapping[str, tuple[Numbers, Numbers]]  # by model: x, y
Bands = Mapping[str, Mapping[float, tuple[float, float]]]  # by model: the 95 % interval (low, high) at some x
NO_BANDS: Bands = MappingProxyType({})


def colour(place: int) -> str:
    """The colour of the model at this place in a report."""
    return COLOURS[place % len(COLOURS)]


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    with rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.set(title=_as_it_is(title), xlabel=x, ylabel=y)
    return figure, axes


def _as_it_is(name: str) -> str:
    """matplotlib reads $...$ as a formula, and leaves what begins with _ out of a legend."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def _lines(axes: Axes, curves: Curves, colours: Mapping[str, str], marker: str | None = None) -> None:
    for name, (x, y) in curves.items():
        axes.plot(x, y, color=colours[name], label=_as_it_is(name), marker=marker, markersize=4.5, linewidth=2)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8.5)


def _band(axes: Axes, bands: Bands, colours: Mapping[str, str]) -> None:
    """Shade 95 % intervals: rates between which they are known lie on a straight line."""
    for name, points in bands.items():
        if points:
            x, low, high = zip(*((x, *pair) for x, pair in sorted(points.items())))
            axes.fill_between(x, low, high, color=colours[name], alpha=0.16, linewidth=0, zorder=0)
            axes.vlines(x, low, high, color=colours[name], linewidth=1, alpha=0.6)


def _zoom(axes: Axes, curves: Curves, bands: Bands) -> None:
    """Show the part of a rate's axis where the curves and their intervals lie, up to one."""
    lows = [min(y) for _, y in curves.values() if len(y)]
    least = min([*lows, *(low for points in bands.values() for low, _ in points.values())], default=0)
    bottom = max(0, least - 0.08 * (1 - least) - 0.002)
    axes.set_ylim(bottom, 1 + 0.03 * (1 - bottom))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))


def _name_powers(axis: Axis, name: Callable[[float], str]) -> None:
    """Let ``name`` say what stands at the powers of ten of a logarithmic axis."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: name(value)))
    axis.set_minor_formatter(NullFormatter())


def roc(
    title: str, curves: Curves, colours: Mapping[str, str], marks: Sequence[float] = (), bands: Bands = NO_BANDS
) -> Figure:
    """TAR over FAR, the latter logarithmic; ``marks`` are FARs of interest."""
    figure, axes = _axes(title, "false accept rate", "true accept rate")
    axes.set_xscale("log")
    _name_powers(axes.xaxis, rate_name)
    least = min(marks, default=min((x for far, _ in curves.values() for x in far if x > 0), default=1e-6))
    shown: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, (far, tar) in curves.items():
        above = np.asarray(far) >= least
        shown[name] = np.asarray(far)[above], np.asarray(tar)[above]
    _lines(axes, shown, colours)
    _band(axes, bands, colours)
    axes.set_xlim(min(least, 0.1), 1)  # where no curve has a point before FAR 1, too
    for mark in marks:
        axes.axvline(mark, color="#c9d0d6", linewidth=0.8, zorder=0)
    inside = {name: {far: pair for far, pair in points.items() if far >= least} for name, points in bands.items()}
    _zoom(axes, shown, inside)
    return figure


def cmc(title: str, curves: Curves, colours: Mapping[str, str], bands: Bands = NO_BANDS) -> Figure:
    """Share of probes whose mate is among the first k entries, over k."""
    figure, axes = _axes(title, "rank", "identification rate")
    _lines(axes, curves, colours)
    _band(axes, bands, colours)
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.set_xlim(1, 50)
    _zoom(axes, curves, bands)
    return figure


def det(title: str, curves: Curves, colours: Mapping[str, str], bands: Bands = NO_BANDS) -> Figure:
    """Detection error trade-off: misses (FNIR) over false alarms (FPIR), both logarithmic.

    Misses from 0 where no model has any, for which a logarithmic axis has no place.
    """
    figure, axes = _axes(title, "false positive identification rate", "false negative identification rate")
    _lines(axes, curves, colours)
    _band(axes, bands, colours)
    axes.set_xscale("log")
    _name_powers(axes.xaxis, rate_name)
    axes.set_xlim(1e-4, 1)
    if any(max(fnir, default=0) > 0 for _, fnir in curves.values()):
        axes.set_yscale("log")
        _name_powers(axes.yaxis, lambda fnir: f"{100 * fnir:g}%")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    return figure


def distractors(title: str, curves: Curves, colours: Mapping[str, str], bands: Bands = NO_BANDS) -> Figure:
    """Rank-1 over the number of distractors."""
    figure, axes = _axes(title, "distractors", "rank-1 identification rate")
    _lines(axes, curves, colours, marker="o")
    _band(axes, bands, colours)
    axes.set_xscale("log")
    _name_powers(axes.xaxis, lambda count: f"{count:,.0f}")
    _zoom(axes, curves, bands)
    return figure


def histogram(title: str, score: str, counts: Histogram, threshold: float | None) -> Figure:
    """Densities of genuine and impostor scores; ``counts`` has edges (k + 1), genuine (k) and impostor (k)."""
    figure, axes = _axes(title, score, "density")
    edges = np.asarray(counts.edges)
    occupied = np.flatnonzero(np.asarray(counts.genuine) + np.asarray(counts.impostor))
    for kind, numbers, fill in (("impostor", counts.impostor, IMPOSTOR), ("genuine", counts.genuine, GENUINE)):
        values = np.asarray(numbers, float)
        density = values / max(values.sum(), 1) / np.diff(edges)
        axes.stairs(density, edges, fill=True, color=fill, alpha=0.35)
        axes.stairs(density, edges, color=fill, linewidth=1.4, label=kind)
    if len(occupied):
        axes.set_xlim(edges[occupied[0]], edges[occupied[-1] + 1])
    if threshold is not None:
        label, dashes = f"threshold {threshold:.2f}", (0, (4, 3))
        axes.axvline(threshold, ymax=1 / _HEADROOM, label=label, color="#3b4650", linewidth=1, linestyle=dashes)
    axes.set_yticks([])
    axes.legend(loc="upper center", ncols=3, fontsize=8.5, frameon=False)
    axes.set_ylim(top=axes.get_ylim()[1] * _HEADROOM)  # for the legend
    return figure


def discard(title: str, models: Mapping[str, DiscardSteps], colours: Mapping[str, str]) -> Figure:
    """FNMR over the share of pairs that are left out, with its interval."""
    figure, axes = _axes(title, "pairs of least quality left out", "false non-match rate")
    for name, steps in models.items():
        axes.fill_between(
            steps.discarded, steps.low, steps.high, step="post", color=colours[name], alpha=0.16, linewidth=0
        )
        axes.step(steps.discarded, steps.fnmr, where="post", color=colours[name], label=_as_it_is(name), linewidth=2)
    if len(models) > 1:
        axes.legend(frameon=False, fontsize=8.5)
    axes.set_xlim(0, max(steps.discarded[-1] for steps in models.values()))
    highest = max((max(steps.high[: len(steps.high) // 2]) for steps in models.values()), default=1)
    axes.set_ylim(0, min(1.1 * highest, 1))  # what is left at the right end tells less and less
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    return figure


def groups(
    title: str,
    rates: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, Mapping[str, tuple[float, float]]],
    colours: Mapping[str, str],
) -> Figure:
    """Rates by model and group as points with their intervals, a line a group."""
    figure, axes = _axes(title, "", "")
    names = list(dict.fromkeys(group for row in rates.values() for group in row))
    for place, (model, row) in enumerate(rates.items()):
        y = [names.index(group) + 0.16 * (place - (len(rates) - 1) / 2) for group in row]
        axes.plot(list(row.values()), y, "o", color=colours[model], label=_as_it_is(model), markersize=5.5)
        for group, height in zip(row, y):
            if group in intervals[model]:
                axes.hlines(height, *intervals[model][group], color=colours[model], linewidth=2, alpha=0.45)
    axes.set_yticks(range(len(names)), [_as_it_is(name) for name in names])
    legend = min(0.08 * len(rates), 0.4) if len(rates) > 1 else 0.0  # its share of the height, above all points
    axes.set_ylim(len(names) - 0.5, -0.5 - len(names) * legend / (1 - legend))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    if legend:
        axes.legend(frameon=False, fontsize=8.5, loc="upper right")
    return figure
