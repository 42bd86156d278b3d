"""results.json: what may stand in it, and what is told of a file that is none."""

import json

import numpy as np
import pytest

from evaluate.megaface import normalised
from evaluate.protocols.folds import verify
from evaluate.protocols.identification import joint, joint_top, open_set, search
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
