import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from benchmarks.synthetic_ijb import write_release
from evaluate import ijb, report
from evaluate.megaface import megaface, normalised
from evaluate.page import PUBLISHED
from evaluate.results import read_results, write_results
from evaluate.verification import set_results, verify


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of every kind: two models on IJB-C, one of them also on a .bin set and MegaFace."""
    folder = tmp_path_factory.mktemp("results")
    features = write_release(folder, 0.005, dimension=16)
    patch = pytest.MonkeyPatch()
    for name, options in (("first", []), ("second", ["--flip", "none"])):
        arguments = ["--data", folder, "--features", features, "--output", folder / name, "--name", f"<{name}> & co"]
        patch.setattr(sys, "argv", ["", *map(str, arguments), *options])
        ijb.main()
    patch.undo()
    rng = np.random.default_rng(0)
    same = np.arange(200) % 2 == 0
    pairs = (
        rng.standard_normal((200, 2, 1, 8)) * np.where(same, 0.5, 1)[:, None, None, None] + same[:, None, None, None]
    )
    sets = {"lfw": set_results(verify(pairs.reshape(400, 1, 8), same), same)}
    write_results(folder / "bins", {"name": "<first> & co", "sets": sets})
    probes = normalised(np.repeat(rng.standard_normal((4, 8)), 3, axis=0) + 0.3 * rng.standard_normal((12, 8)))
    found = megaface(probes, np.repeat(np.arange(4), 3), normalised(rng.standard_normal((500, 8))))
    write_results(folder / "mega", {"name": "<first> & co", "megaface": found})
    return folder


def make(results, output, *names):
    arguments = ["--results", *(str(results / name) for name in names), "--output", str(output)]
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, "argv", ["", *arguments])
    report.main()
    patch.undo()
    return (output / "index.html").read_text()


class Check(HTMLParser):
    """Collects text and complains of tags that do not close."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.loads = [], [], []

    def handle_starttag(self, tag, attributes):
        self.loads += [value for key, value in attributes if key in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_page_holds_everything_and_loads_nothing(results, tmp_path):
    page = make(results, tmp_path, "first", "second", "bins", "mega")
    check = Check()
    check.feed(page)
    assert check.open == []
    assert all(load.startswith(("#", "data:", "https://github.com/")) for load in check.loads)
    text = " ".join(check.text)
    for words in ("IJB-C 1:1", "IJB-C 1:N", "Verification sets", "MegaFace", "hardest", "TopoFR", "<first> & co"):
        assert words in text
    assert page.count("<svg") == len(list(tmp_path.glob("*.png"))) == 9


def test_figures_on_the_page_are_those_of_the_results(results, tmp_path):
    page = make(results, tmp_path, "first")
    tar = json.loads((results / "first/results.json").read_text())["verification"]["tar"]
    row = re.search(r'<tr class="ours">.*?</tr>', page).group()
    assert re.findall(r">([\d.]+)</td>", row) == [f"{100 * value:.2f}" for value in tar.values()]


def test_the_better_of_two_models_is_marked(results, tmp_path):
    page = make(results, tmp_path, "first", "second")
    rows = re.findall(r'<tr class="ours">.*?</tr>', page)[:2]
    ours = [re.findall(r"<td( class=\"best\")?>([\d.]+)", row) for row in rows]
    for (mark, value), (other_mark, other) in zip(*ours):
        assert bool(mark) == (float(value) >= float(other)) and bool(other_mark) == (float(other) >= float(value))


def test_published_figures_have_a_source_and_are_rates():
    for row in json.loads(PUBLISHED.read_text())["rows"]:
        assert row["source"].startswith("https://") and row["method"] and row["data"] and row["network"]
        rates = [rate for kind in ("IJBC", "IJBB", "bins", "megaface") for rate in row.get(kind, {}).values()]
        assert rates and all(0.5 < rate < 1 for rate in rates)


def test_other_files_are_refused(tmp_path):
    for content in ("no json", "[]", "{}"):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(ValueError, match="results.json is no"):
            read_results(tmp_path)


def test_results_hold_no_nan(tmp_path):
    write_results(tmp_path, {"sets": {"a": {"val": float("nan"), "far": [float("inf"), 1.0]}}})
    assert read_results(tmp_path)["sets"] == {"a": {"val": None, "far": [None, 1.0]}}
