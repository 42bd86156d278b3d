import base64
import json
import re
import sys
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks.synthetic_ijb import write_release
from evaluate import ijb, report
from evaluate.megaface import megaface, normalised
from evaluate.own_people.faces import Faces
from evaluate.own_people.gallery import own_gallery
from evaluate.own_people.pairs import own_pairs
from evaluate.protocols.folds import verify
from evaluate.reporting import page as page_module
from evaluate.reporting import sections
from evaluate.reporting.page import PUBLISHED, Page
from evaluate.reporting.pictures import save_figure
from evaluate.reporting.results import read_results, write_json, write_results
from evaluate.reporting.schema import HardPair
from evaluate.tinyface import tinyface
from evaluate.verification import verification_set
from pipelines.common.errors import UserError
from tests.evaluate.results import write_set


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
    sets = {"lfw": verification_set(verify(pairs.reshape(400, 1, 8), same), same)}
    write_results(folder / "bins", "<first> & co", sets=sets)
    probes = normalised(np.repeat(rng.standard_normal((4, 8)), 3, axis=0) + 0.3 * rng.standard_normal((12, 8)))
    found = megaface(probes, np.repeat(np.arange(4), 3), normalised(rng.standard_normal((500, 8))))
    write_results(folder / "mega", "<first> & co", megaface=found)
    person = np.repeat(np.arange(4), 3)
    write_results(folder / "tiny", None, tinyface=tinyface(probes, probes, pairs[:9, 0, 0], person, person))
    write_results(folder / "pairs", None, own_pairs=own_pairs(faces(8), [0.01]))
    write_results(folder / "gallery", None, own_gallery=own_gallery(faces(8), faces(8, seed=1), None))
    return folder


def faces(people, each=3, seed=0):
    rng = np.random.default_rng(seed)
    names = [f"p{k}" for k in range(people) for _ in range(each)]
    return Faces([f"{name}.jpg" for name in names], names, normalised(rng.standard_normal((len(names), 8))))


def make(results, output, *names):
    arguments = ["--results", *(str(results / name) for name in names), "--output", str(output)]
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, "argv", ["", *arguments])
    report.main()
    patch.undo()
    return (output / "index.html").read_text()


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without charts, which take longest; other tests look at these."""
    monkeypatch.setattr(Page, "figures", lambda *_: None)
    monkeypatch.setattr(sections, "_png", lambda *_: b"")


@pytest.fixture
def roughly(monkeypatch):
    """Charts as files of few pixels, where they only have to be there."""
    monkeypatch.setattr(page_module, "save_figure", lambda figure, path, dpi: save_figure(figure, path, 20))


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
    assert all(load.startswith(("#", "data:", "https://github.com/", "https://arxiv.org/")) for load in check.loads)
    text = " ".join(check.text)
    for words in ("IJB-C 1:1", "IJB-C 1:N", "Verification sets", "MegaFace", "hardest", "TopoFR", "<first> & co"):
        assert words in text
    assert page.count("<svg") == len(list(tmp_path.glob("*.png"))) == 9


def test_figures_on_the_page_are_those_of_the_results(results, tmp_path, undrawn):
    page = make(results, tmp_path, "first")
    tar = json.loads((results / "first/results.json").read_text())["verification"]["tar"]
    row = re.search(r'<tr class="ours">.*?</tr>', page).group()
    assert re.findall(r"<td>([\d.]+)(?: |<)", row) == [f"{100 * value:.2f}" for value in tar.values()]


def test_the_better_of_two_models_is_marked(results, tmp_path, undrawn):
    page = make(results, tmp_path, "first", "second")
    rows = re.findall(r'<tr class="ours">.*?</tr>', page)[:2]
    ours = [re.findall(r"<td( class=\"best\")?>([\d.]+)", row) for row in rows]
    for (mark, value), (other_mark, other) in zip(*ours):
        assert bool(mark) == (float(value) >= float(other)) and bool(other_mark) == (float(other) >= float(value))


def test_none_is_marked_where_two_models_saw_other_people_or_pairs(tmp_path, undrawn):
    one, other = np.arange(400) % 2 == 0, np.arange(600) % 2 == 0
    for name, noise, same in (("a", 1, one), ("b", 1.2, one), ("c", 1.2, other)):
        write_pairs(tmp_path / name, noise, same)
    pages = [make(tmp_path, tmp_path / "page", *names) for names in ("ab", "ac", "abc")]
    tables = [re.search(r"<th>Accuracy</th>.*?</table>", page, re.DOTALL).group() for page in pages]
    assert [table.count('<td class="best">') for table in tables] == [1, 0, 0]


COUNTS = {
    "first": ("verification", "impostor"),
    "mega": ("megaface", "distractors"),
    "tiny": ("tinyface", "distractors"),
    "pairs": ("own_pairs", "images"),
    "gallery": ("own_gallery", "gallery"),
}


@pytest.mark.parametrize("kind", COUNTS)
def test_what_models_were_measured_on_is_told_of_each_where_it_differs(results, tmp_path, undrawn, kind):
    content = json.loads((results / kind / "results.json").read_text())
    part, count = COUNTS[kind]
    number = content[part][count]
    for name, more in (("a", 0), ("b", 0), ("c", 1000)):
        content["name"], content[part][count] = name, number + more
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    leads = [
        re.search('<p class="lead">(.*?)</p>', make(tmp_path, tmp_path / "page", *names)).group(1)
        for names in ("a", "ab", "ac")
    ]
    told, dot, rest = leads[0].partition(".")
    other = told.replace(f"{number:,} ", f"{number + 1000:,} ", 1)
    assert other != told and leads == [leads[0], leads[0], f"{told} (a); {other} (c){dot}{rest}"]


@pytest.mark.parametrize("kind", ["mega", "tiny", "gallery"])
def test_none_is_marked_among_other_images_that_are_searched(results, tmp_path, undrawn, kind):
    """The fewer distractors there are, the better is every figure."""
    content = json.loads((results / kind / "results.json").read_text())
    part, count = COUNTS[kind]
    for name, more in (("a", 0), ("b", 0), ("c", 1000)):
        content["name"] = name
        content[part][count] += more
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    pages = [make(tmp_path, tmp_path / "page", *names) for names in ("ab", "ac")]
    assert ['<td class="best">' in page for page in pages] == [True, False]
    assert ["Difference in points, paired" in page for page in pages] == [True, False]


def test_every_far_of_any_model_is_shown(results, tmp_path, undrawn):
    content = json.loads((results / "first" / "results.json").read_text())
    for name, far in (("a", "1e-06"), ("b", "0.1")):
        (tmp_path / name).mkdir()
        one = {key: value for key, value in content["verification"].items() if key not in ("interval", "resamples")}
        one["tar"] = {key: value for key, value in one["tar"].items() if key != far}
        changed = content | {"name": name, "verification": one}
        (tmp_path / name / "results.json").write_text(json.dumps(changed))
    head = re.search("<th>TAR at FAR</th>(.*?)</tr>", make(tmp_path, tmp_path / "page", "a", "b")).group(1)
    assert re.findall("<th>(.*?)</th>", head) == ["1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "1e-1"]


def test_two_runs_with_folders_of_one_name_are_two_models(tmp_path, roughly):
    for run, accuracy in (("a", 0.81), ("b", 0.82)):
        write_set(tmp_path / run / "lfw", accuracy=accuracy)
    page = make(tmp_path, tmp_path / "page", "a/lfw", "b/lfw")
    row = re.findall(r'<tr class="ours"><th><i[^>]*></i>(.*?)</th><td[^>]*>([\d.]+)', page)
    assert row == [("a/lfw", "81.00"), ("b/lfw", "82.00")]
    assert len(list((tmp_path / "page").glob("*.png"))) == 3  # one ROC, two histograms


def test_results_of_one_name_are_joined_where_they_do_not_meet(tmp_path):
    places = [
        write_set(tmp_path / "1", "r50", 0.81),
        write_set(tmp_path / "2", "r50", 0.82, cfp_fp=1, agedb_30=1),
        write_set(tmp_path / "x" / "r18", None, 0.83),
    ]
    models = report.read_models(places)
    figures = {name: {key: part.accuracy for key, part in found["sets"].items()} for name, found in models.items()}
    assert figures == {"r50": {"lfw": 0.81, "cfp_fp": 0.82, "agedb_30": 0.82}, "r18": {"lfw": 0.83}}
    models = report.read_models([*places, write_set(tmp_path / "3", "r50")])
    assert list(models) == ["r50 (1)", "r50 (2)", "r50 (3)", "r18"]
    with pytest.raises(ValueError, match="is given twice"):
        report.read_models([places[0], places[0] / "results.json"])


def test_verification_and_identification_of_one_target_are_joined(results, tmp_path):
    whole = json.loads((results / "first/results.json").read_text())
    for part in ("verification", "identification"):
        write_results(tmp_path / part, **{key: whole[key] for key in ("name", "target", part)})
    (model,) = report.read_models([tmp_path / "verification", tmp_path / "identification"]).values()
    assert list(model) == ["IJBC"]
    for part in ("verification", "identification"):
        assert model["IJBC"][part].model_dump(exclude_unset=True) == whole[part]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_odd_names(tmp_path, roughly):
    """They are told apart where they become names of files, and drawn and written as they are."""
    names = ["a/b", "a_b", "$x$ $", "_hidden", "中文"]
    for name in names:
        write_set(tmp_path / str(names.index(name)), name)
    write_set(tmp_path / "sets", "plain", **{"a/lfw": 1, "a_lfw": 1})
    page = make(tmp_path, tmp_path / "page", *map(str, range(len(names))), "sets")
    assert page.count("<svg") == len(list((tmp_path / "page").glob("*.png"))) == len(["ROC", *names]) + 2 * 2
    assert all(escape(name) in page for name in names)


def write_pairs(folder, noise, same):
    """Results on 600 pairs of faces: the same ones, seen through more or less ``noise``."""
    rng = np.random.default_rng(0)
    left, right, one, other = (rng.standard_normal((len(same), 16)) for _ in range(4))
    right = np.where(same[:, None], left + 0.7 * right, right)
    features = np.stack([left + noise * one, right + noise * other], axis=1).reshape(-1, 1, 16)
    write_results(folder, None, sets={"lfw": verification_set(verify(features, same), same)})


def test_models_are_compared_in_pairs(tmp_path, undrawn):
    """A difference is told from noise; not where the pairs are others, or a file has no resamples."""
    same = np.arange(600) % 2 == 0
    for name, noise in (("a", 0.3), ("b", 0.31), ("c", 1.0)):
        write_pairs(tmp_path / name, noise, same)
    write_pairs(tmp_path / "d", 0.3, ~same)
    old = json.loads((tmp_path / "a/results.json").read_text())
    for field in ("interval", "resamples"):
        del old["sets"]["lfw"][field]
    (tmp_path / "e").mkdir()
    (tmp_path / "e/results.json").write_text(json.dumps(old | {"name": "e"}))
    page = make(tmp_path, tmp_path / "page", *"abcde")
    cells = dict(re.findall(r'<tr class="ours"><th>(.) − a</th><td[^>]*>(.*?)</td>', page))
    assert "within noise" in cells["b"] and "within noise" not in cells["c"]
    value, low, high = (float(number) for number in re.findall(r"[+-][\d.]+", cells["c"]))
    assert low < value < high < 0
    accuracies = [read_results(tmp_path / name).sets["lfw"].accuracy for name in "ac"]
    assert value == pytest.approx(100 * (accuracies[1] - accuracies[0]), abs=0.006)
    assert cells["d"] == cells["e"] == "–"
    low, high = read_results(tmp_path / "a").sets["lfw"].interval["accuracy"]
    assert page.count(f"[{100 * low:.2f}, {100 * high:.2f}]") == 2  # in the tile and in the table


BY_HAND = {
    "sets {}": (lambda r: r.update(sets={}), "sets: "),
    "no std": (lambda r: r["sets"]["lfw"].pop("std"), r"sets\.lfw\.std: "),
    "percent": (lambda r: r["sets"]["lfw"].update(accuracy=99.5), r"sets\.lfw\.accuracy: "),
    "text": (lambda r: r["sets"]["lfw"].update(accuracy="0.99"), r"sets\.lfw\.accuracy: "),
    "NaN": (lambda r: r["sets"]["lfw"].update(accuracy=float("nan")), r"sets\.lfw\.accuracy: "),
    "a list": (lambda r: r.update(sets=[1]), "sets: "),
    "name 5": (lambda r: r.update(name=5), "name: "),
    "no name": (lambda r: r.update(name=""), "name: "),
    "NUL": (lambda r: r["sets"]["lfw"].update(worst="a\0"), r"sets\.lfw\.worst: a text"),
    "no figures": (lambda r: r.pop("sets"), "neither verification"),
    "no threshold": (lambda r: r["sets"]["lfw"].pop("threshold"), r"sets\.lfw\.threshold: "),
    "empty curve": (lambda r: r["sets"]["lfw"].update(roc={"far": [], "tar": []}), r"sets\.lfw\.roc\.far: "),
    "uneven curve": (lambda r: r["sets"]["lfw"]["roc"]["far"].pop(), r"sets\.lfw\.roc: .*do not fit"),
    "uneven bars": (lambda r: r["sets"]["lfw"]["histogram"]["edges"].pop(), r"sets\.lfw\.histogram: .*do not fit"),
}


@pytest.mark.parametrize("change, message", BY_HAND.values(), ids=BY_HAND)
def test_results_made_by_hand_are_told_what_they_lack(tmp_path, change, message):
    path = write_set(tmp_path / "r") / "results.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"results.json is no result that can be shown: .*{message}"):
        make(tmp_path, tmp_path / "page", "r")
    assert not (tmp_path / "page").exists()


def every_key(value, path=()):
    """Paths to the keys of nested dicts, lists of dicts by their first."""
    value = value[0] if isinstance(value, list) and value else value
    for key in value if isinstance(value, dict) else ():
        yield (*path, key)
        yield from every_key(value[key], (*path, key))


def shortened(value, length=8):
    """Nested lists with their first entries; edges of bins have one more."""
    if isinstance(value, dict):
        return {key: shortened(entry, 9 if key == "edges" else 8) for key, entry in value.items()}
    return [shortened(entry) for entry in value[:length]] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", ["first", "bins", "mega"])
def test_whatever_is_missing_or_null_is_no_traceback(results, tmp_path, undrawn, kind):
    """Each key in turn is left out, and made null: one line, or a page without it."""
    content = json.dumps(shortened(json.loads((results / kind / "results.json").read_text())))
    refused = 0
    kinds = {re.sub(r"[\d.e-]+$", "#", ".".join(path)): path for path in every_key(json.loads(content))}
    for path in kinds.values():  # one of many rates is enough
        for change in (dict.pop, lambda where, key: where.update({key: None})):
            changed = json.loads(content)
            where = changed
            for key in path[:-1]:
                where = where[key][0] if isinstance(where[key], list) else where[key]
            change(where, path[-1])
            (tmp_path / "results.json").write_text(json.dumps(changed))
            try:
                make(tmp_path, tmp_path / "page", "results.json")
            except ValueError as error:
                assert "results.json is no result" in str(error)
                refused += 1
    assert refused > 10


def test_published_figures_have_a_source_and_are_rates():
    for row in json.loads(PUBLISHED.read_text())["rows"]:
        assert row["source"].startswith("https://") and row["method"] and row["data"] and row["network"]
        rates = [
            rate for kind in ("IJBC", "IJBB", "bins", "megaface", "tinyface") for rate in row.get(kind, {}).values()
        ]
        surveillance = [rate for rates in row.get("ijbs", {}).values() for rate in rates.values()]
        assert rates or surveillance
        assert all(0.3 < rate < 1 for rate in rates)  # the lowest: IJB-B after CASIA
        assert all(0.008 < rate < 1 for rate in surveillance)  # TPIR of PFE at FPIR .01


def test_names_may_hold_bytes_that_are_no_text(tmp_path, undrawn):
    """Files' names may; long work is not lost by it."""
    write_set(tmp_path / "r", "r\udce9", **{"lf\udce9": 1})
    results = read_results(tmp_path / "r")
    assert results.name == "r\ufffd" and list(results.sets) == ["lf\ufffd"]
    pair = HardPair(templates=[1, 2], score=0.5, images=[["/\udce9.jpg"], ["/2.jpg"]])
    write_json(tmp_path / "pair.json", pair)
    assert HardPair.model_validate(json.loads((tmp_path / "pair.json").read_text()), strict=True) == pair
    assert "lf\ufffd".upper() in make(tmp_path, tmp_path / "page", "r")


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.filterwarnings("ignore:constrained_layout")
def test_nothing_is_written_outside_the_output(tmp_path, roughly):
    write_set(tmp_path / "r", **{"../../x": 1, "/tmp/x": 1, "y" * 300: 1})
    make(tmp_path, tmp_path / "a" / "b" / "page", "r")
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - {tmp_path / "r" / "results.json"}
    assert len(written) > 3 and all(path.parent == tmp_path / "a/b/page" for path in written)


@pytest.mark.parametrize("where", ["inside", "absolute", "above", "link", "elsewhere"])
def test_a_picture_lies_beside_its_results(tmp_path, undrawn, where):
    """A report may be sent to others: no file of this machine that a results.json names comes into it."""
    path = write_set(tmp_path / "r") / "results.json"
    (tmp_path / "r" / "worst.png").write_bytes(PNG + b"picture")
    (tmp_path / "secret.png").write_bytes(PNG + b"secret")
    (tmp_path / "r" / "link.png").symlink_to(tmp_path / "secret.png")
    names = {
        "inside": "worst.png",
        "absolute": str(tmp_path / "r" / "worst.png"),
        "above": "../secret.png",
        "link": "link.png",
        "elsewhere": str(tmp_path / "secret.png"),
    }
    content = json.loads(path.read_text())
    content["sets"]["lfw"]["worst"] = names[where]
    path.write_text(json.dumps(content))
    page = make(tmp_path, tmp_path / "page", "r")
    assert (base64.b64encode(PNG + b"picture").decode() in page) == (where in ("inside", "absolute"))
    assert base64.b64encode(PNG + b"secret").decode() not in page


def test_pictures_of_templates_are_those_of_a_data_set(results, tmp_path, monkeypatch, undrawn):
    seen = []
    monkeypatch.setattr(sections, "pair_sheet", lambda groups, **_: seen.append(groups) or Figure())
    content = json.loads((results / "first" / "results.json").read_text())
    crops = tmp_path / "IJBC" / "loose_crop" / "img"
    crops.mkdir(parents=True)
    (crops / "1.jpg").write_bytes(b"face")
    (tmp_path / "private.jpg").write_bytes(b"private")
    for path in (tmp_path / "private.jpg", crops / "../../../private.jpg", crops / "1.jpg", crops / "none.jpg"):
        for pairs in content["verification"]["hardest"].values():
            pairs[0]["images"] = [[str(path)], [str(path)]]
        (tmp_path / "results.json").write_text(json.dumps(content))
        make(tmp_path, tmp_path / "page", "results.json")
    assert [[pair.left for pair in pairs] for groups in seen for pairs in groups.values()] == [[[b"face"]], [[b"face"]]]


def test_distractors_are_counted(results, tmp_path):
    content = json.loads((results / "mega" / "results.json").read_text())
    content["megaface"]["rank1"] = {"many": 0.5}
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="'many' is no count"):
        read_results(tmp_path)
