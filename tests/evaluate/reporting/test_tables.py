import re

import pytest
from rich.console import Console

from evaluate.reporting.breakdowns import ByFmr
from evaluate.reporting.schema import SetFigures
from evaluate.reporting.tables import accuracy_table, print_breakdown, print_rates, print_thresholds
from evaluate.reporting.words import rate_name, search_names, tar_names

FARS = ("1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1")
PAIR = [0.98765, 1.0]


@pytest.fixture
def narrow(monkeypatch, capsys):
    """Call a function with a terminal of 80 columns; returns the lines."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(function, *arguments, **options):
        function(*arguments, **options)
        return capsys.readouterr().out.splitlines()

    return call


def intervals_in(lines):
    """The intervals that stand on one line, and what of others is broken off."""
    assert all(len(line) <= 80 for line in lines)
    whole = [found for line in lines for found in re.findall(r"\[[^\[\]]*\]", line)]
    assert "\n".join(lines).count("[") == len(whole)
    return whole


def test_rates_have_one_form():
    rates = {"1e-06": "1e-6", 0.0001: "1e-4", "0.0025": "2.5e-3", 0.1: "1e-1", 1: "1"}
    assert [rate_name(rate) for rate in rates] == list(rates.values())


def test_no_interval_of_rates_is_broken(narrow):
    rates = dict.fromkeys(FARS, 0.99)
    met = {far: float(far) for far in FARS}
    names = tar_names(rates)
    lines = narrow(print_rates, "IJBC 1:1", rates, dict.fromkeys(FARS, PAIR) | {"1e-06": None}, met=met, names=names)
    assert intervals_in(lines) == 5 * ["[98.77, 100.00]"]
    row = next(line.split() for line in lines if "1e-4" in line)
    assert row == ["TAR", "at", "FAR", "1e-4", "99.00", "[98.77,", "100.00]", "0.01"]
    assert next(line.split() for line in lines if "1e-6" in line)[-2:] == ["–", "0.0001"]
    search = search_names(FARS)
    lines = narrow(print_rates, "1:N", dict.fromkeys(search, 0.9), dict.fromkeys(search, PAIR), names=search)
    assert len(intervals_in(lines)) == 9 and any("TPIR at FPIR 1e-1 " in line for line in lines)
    assert "95 % interval" not in "".join(narrow(print_rates, "1:N", {"rank1": 0.9}, None))


@pytest.mark.parametrize("name", ["lfw", "a_folder/with_a_long_name/agedb_30"])
def test_no_interval_of_verification_sets_is_broken(narrow, name):
    figures = SetFigures(
        pairs=6000,
        accuracy=0.9985,
        std=0.0012,
        val=0.9,
        val_std=0.1,
        far=1.0,
        threshold=1.5,
        interval={"accuracy": PAIR, "val": PAIR},
    )
    lines = narrow(lambda: Console().print(accuracy_table({name: figures})))
    assert len(intervals_in(lines)) == 2 and any("99.85 ± 0.12" in line for line in lines)


def test_no_interval_of_groups_is_broken(narrow):
    errors = {
        "genuine": 123456,
        "impostor": 123456789,
        "people": 1234,
        "fmr": 0.00123,
        "fnmr": 0.0456,
        "interval": {"fmr": [0.000123, 0.00456], "fnmr": [0.0123, 0.0789]},
    }
    measures = {
        "fmr_max_over_geometric_mean": None,
        "fnmr_max_over_geometric_mean": 1.268,
        "fdr": 0.9973,
        "garbe": 0.06968,
        "worst_accuracy": 0.9,
    }
    found = ByFmr(
        groups={
            "0.001": {
                "threshold": 0.3,
                "groups": {"African": errors, "Indian": errors},
                "measures": measures,
                "chance": measures | {"fnmr_max_over_geometric_mean": None, "fdr": 0.5},
                "interval": {"fdr": [0.765, 1.0], "garbe": [0.00139, 0.801]},
            }
        }
    )
    lines = narrow(print_breakdown, "IJBC 1:1", found)
    assert intervals_in(lines) == [*2 * ["[0.0123, 0.456]", "[1.23, 7.89]"], "[0.765, 1]", "[0.00139, 0.801]"]
    assert [line.split() for line in lines if "SGED" in line] == [["SGED", "–"]]  # of a file from before it
    assert lines[0] == "IJBC 1:1: groups at the threshold of FMR 1e-3"


def test_thresholds(narrow):
    found, intervals = {"1e-05": 0.5, "1e-06": 0.7}, {"1e-05": [0.4, 0.6], "1e-06": None}
    lines = narrow(print_thresholds, "thresholds: accept what exceeds them", "FAR", found, intervals)
    assert intervals_in(lines) == ["[0.400, 0.600]"]
    assert [line.split()[:3] for line in lines if "1e-5" in line] == [["FAR", "1e-5", "0.500"]]
    assert [line.split() for line in lines if "1e-6" in line] == [["FAR", "1e-6", "0.700", "–"]]
