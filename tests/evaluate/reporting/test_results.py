"""results.json: what may stand in it, and what is told of a file that is none."""

import json
import sys

import numpy as np
import pytest

from evaluate import report
from evaluate.megaface import normalised
from evaluate.protocols.folds import verify
from evaluate.protocols.identification import joint, joint_top, open_set, search
from evaluate.reporting.page import Page
from evaluate.reporting.results import read_results, write_results
from evaluate.reporting.schema import OneToMany
from evaluate.verification import verification_set
from pipelines.common.errors import UserError
from tests.evaluate.results import write_set


@pytest.mark.parametrize("text", ["no base64 !", "AAA", "AAAAAAA="])
def test_resamples_that_are_no_numbers_are_told(tmp_path, text):
    path = write_set(tmp_path / "r") / "results.json"
    content = json.loads(path.read_text())
    content["sets"]["lfw"]["resamples"]["values"]["accuracy"] = text
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"resamples\.values\.accuracy: it is no list of 32-bit numbers"):
        read_results(path)


def test_other_files_are_refused(tmp_path):
    for content in ("no json", "[]", "{}", "null", "[" * 100_000):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(ValueError, match="results.json is no"):
            read_results(tmp_path)


def test_results_hold_no_nan(tmp_path):
    same = np.ones(20, bool)  # without impostors there is no TAR at a FAR
    part = verification_set(verify(np.random.default_rng(0).standard_normal((40, 1, 8)), same), same)
    write_results(tmp_path, None, sets={"a": part})
    written = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert written["sets"]["a"]["val"] is None and written["sets"]["a"]["far"] is None
    assert read_results(tmp_path).sets["a"].accuracy == part.accuracy


def test_results_from_before_formats_had_numbers_are_read(tmp_path):
    path = write_set(tmp_path / "r") / "results.json"
    content = json.loads(path.read_text())
    assert content.pop("format") == 1
    for later in ("pairs", "val", "val_std", "far", "folds"):  # what a report shows needs none of these
        content["sets"]["lfw"].pop(later)
    path.write_text(json.dumps(content | {"of_another_program": 1}))
    assert read_results(path).sets["lfw"].accuracy == 0.9
    path.write_text(json.dumps(content | {"format": 2}))
    with pytest.raises(ValueError, match="its format is 2, and this version of Facemill reads up to 1"):
        read_results(path)


def test_every_figure_of_the_protocols_is_in_the_schema():
    """Keys that a schema does not know would be dropped without a word."""
    rng = np.random.default_rng(0)
    vectors = normalised(rng.standard_normal((30, 8)))
    mate = np.r_[np.arange(10), np.full(10, -1)]
    figures = {
        "joint": joint(search(vectors[10:20], vectors[:10], mate[:10], top=joint_top(10))),
        "open_set": open_set([search(vectors[10:], vectors[:10], mate)], ["g1"]),
    }
    assert OneToMany(**figures).model_dump(exclude_unset=True) == figures
    same = np.arange(20) % 2 == 0
    result = verify(rng.standard_normal((40, 1, 8)), same)
    assert result.summary().keys() <= verification_set(result, same).model_dump().keys()


def test_a_binary_file_is_no_result(tmp_path):
    (tmp_path / "results.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="results.json is no JSON"):
        read_results(tmp_path)


HISTOGRAM = {"edges": [0.0, 1.0], "genuine": [1.0], "impostor": [1.0]}
ROC = {"far": [0.1], "tar": [0.5]}
COUNTED = dict(images=4, people=2, genuine=1, impostor=1)
DISCARD = dict(
    threshold=0.5,
    genuine=2,
    refused=1,
    rates={"0": 0.5, "pauc": 0.5},
    steps={name: [0.1, 0.5] for name in ("discarded", "fnmr", "low", "high")},
)
ERRORS = dict(genuine=1, impostor=1, people=2, fmr=0.0, fnmr=0.0)
GROUPS = dict(threshold=0.5, groups={"x": ERRORS, "y": ERRORS}, measures={"fdr": 1.0}, chance={"fdr": 0.9})
SET = dict(accuracy=0.5, std=0.1, threshold=1.0, roc=ROC, band={"0.1": [0.4, 0.6]}, histogram=HISTOGRAM)
BY_HAND = {
    "name": "a",
    "ijbs": {"x": {"rank1": 0.5, "tpir": {"0.01": 0.5}}},
    "own_pairs": dict(
        **COUNTED,
        tar={"0.1": 0.5},
        far={"0.1": 0.1},
        threshold={"0.1": 0.3},
        threshold_interval={"0.1": [0.2, 0.4]},
        confusions={},
        roc=ROC,
        histogram=HISTOGRAM,
    ),
    "megaface": dict(probes=1, distractors=10, rank1={"10": 0.5}, tar={"1e-06": 0.5}, roc=ROC),
    "sets": {"lfw": SET | {"by": {"quality": {"norm": {"0.01": DISCARD}}, "groups": {"0.01": GROUPS}}}},
}


def test_results_made_by_hand_become_a_page(tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text(json.dumps(BY_HAND))
    monkeypatch.setattr(Page, "figures", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["", "--results", str(tmp_path), "--output", str(tmp_path / "page")])
    report.main()
    assert (tmp_path / "page/index.html").exists()


@pytest.mark.parametrize(
    "field, value",
    [
        ("ijbs.x.tpir", {"1%": 0.5}),
        ("ijbs.x.tpir", {"nan": 0.5}),
        ("own_pairs.tar", {}),
        ("own_pairs.tar", {"one": 0.5}),
        ("own_pairs.far", {"-1": 0.5}),
        ("own_pairs.threshold", {}),
        ("own_pairs.threshold", {"0.1": 0.3, "inf": 0.3}),
        ("own_pairs.threshold_interval", {}),
        ("own_pairs.histogram", {"edges": [0.0], "genuine": [], "impostor": []}),
        ("megaface.rank1", {"0.5": 0.5}),
        ("megaface.tar", {"1e-06": 0.5, "1%": 0.5}),
        ("megaface.threshold", {"1%": 0.5}),
        ("sets.lfw.band", {"inf": [0.1, 0.2]}),
        ("sets.lfw.by.quality.norm", {"1%": DISCARD}),
        ("sets.lfw.by.quality.norm.0.01.rates", {"a tenth": 0.5}),
        ("sets.lfw.by.quality.norm.0.01.steps", {name: [0.0] for name in DISCARD["steps"]}),
        ("sets.lfw.by.groups", {"1%": GROUPS}),
        ("sets.lfw.by.groups.0.01.chance", {}),
    ],
)
def test_figures_are_by_what_a_page_can_show(tmp_path, field, value):
    content = json.loads(json.dumps(BY_HAND))
    where = content
    *path, last = [key.replace(" ", ".") for key in field.replace("0.01", "0 01").split(".")]
    for key in path:
        where = where[key]
    where[last] = value
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"is no result that can be shown: {'.'.join(path)}"):
        read_results(tmp_path)
