import io

import numpy as np
import pytest

from evaluate.reporting import charts

BAND = {"a": {1e-3: (0.4, 0.9), 1e-2: (0.8, 0.95)}}


def lines_of(figure):
    """The names along both axes, as they are drawn."""
    figure.savefig(io.BytesIO(), format="svg")
    (axes,) = figure.axes
    return [[label.get_text() for label in axis.get_ticklabels()] for axis in (axes.xaxis, axes.yaxis)]


def test_every_model_is_in_the_legend():
    curves = {name: ([0.1, 1], [0.5, 1]) for name in ("_a", "$b", "c")}
    figure = charts.roc("ROC $1", curves, dict.fromkeys(curves, "black"))
    texts = [text.get_text().strip() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["_a", r"\$b", "c"]
    figure.savefig(io.BytesIO(), format="svg")


@pytest.mark.filterwarnings("error")
def test_a_network_that_tells_nobody_apart_has_a_curve():
    """All distances 0: no FAR but 0 and 1."""
    figure = charts.roc("ROC", {"a": ([0, 1, 1], [0, 1, 1])}, {"a": "black"})
    figure.savefig(io.BytesIO(), format="svg")


@pytest.mark.parametrize("misses, scale", [([0.0, 0.0], "linear"), ([0.3, 0.0], "log")])
@pytest.mark.filterwarnings("error")
def test_misses_are_drawn_where_there_are_none(misses, scale):
    figure = charts.det("DET", {"a": ([0.01, 1], misses)}, {"a": "black"})
    figure.savefig(io.BytesIO(), format="svg")
    assert figure.axes[0].get_yscale() == scale and figure.axes[0].get_xscale() == "log"


def test_intervals_are_shown_whole():
    """Though the curve lies far above them; what is left of the axis does not count."""
    curve = {"a": (np.array([1e-3, 1e-2, 1.0]), np.array([0.85, 0.9, 1.0]))}
    for figure, lowest in (
        (charts.roc("ROC", curve, {"a": "black"}, [1e-3], BAND), 0.4),
        (charts.roc("ROC", curve, {"a": "black"}, [1e-2], BAND), 0.8),
        (charts.cmc("CMC", {"a": ([1, 2], [0.9, 1])}, {"a": "black"}, {"a": {1: (0.7, 0.95)}}), 0.7),
        (charts.distractors("MegaFace", {"a": ([10], [0.9])}, {"a": "black"}, {"a": {10: (0.6, 0.95)}}), 0.6),
    ):
        assert lowest - 0.08 < figure.axes[0].get_ylim()[0] < lowest


def test_rates_along_an_axis_are_named_as_in_tables():
    curve = {"a": ([1e-3, 1.0], [0.9982, 1.0])}
    x, y = lines_of(charts.roc("ROC", curve, {"a": "black"}))
    assert {"1e-3", "1e-2", "1e-1", "1"} <= set(x) and len(set(y)) == len(y)  # not 99.8 % more than once
    x, y = lines_of(charts.det("DET", {"a": ([1e-3, 1.0], [0.2, 0.004])}, {"a": "black"}))
    assert {"1e-4", "1e-3", "1e-2", "1e-1", "1"} <= set(x) and {"0.5%", "1%", "2%", "5%", "10%", "20%"} <= set(y)
    x, _ = lines_of(charts.distractors("MegaFace", {"a": ([10, 10_000], [0.9, 0.8])}, {"a": "black"}))
    assert {"10", "100", "1,000", "10,000"} <= set(x)
