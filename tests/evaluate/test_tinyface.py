import json
import sys

import numpy as np
import pytest
from scipy.io import savemat

from evaluate import tinyface as command
from evaluate.protocols.tinyface import FOLDERS, MAT_LISTS, closed_set, read_lists
from evaluate.tinyface import tinyface
from pipelines.common.errors import UserError
from tests.evaluate.networks import write_onnx
from tests.pipelines.photos import jpeg


def make(seed=0, people=30, distractors=400, d=12):
    """Features of probes, of one to three mates of each person, and of distractors; whom the first two show."""
    rng = np.random.default_rng(seed)
    mate_person = np.repeat(np.arange(people) * 7, rng.integers(1, 4, people))
    probe_person = rng.choice(mate_person, 80)
    centres = rng.standard_normal((7 * people, d))
    mates, probes = (centres[who] + rng.standard_normal((len(who), d)) for who in (mate_person, probe_person))
    order = rng.permutation(len(mate_person))
    return probes, mates[order], rng.standard_normal((distractors, d)), probe_person, mate_person[order]


def test_is_the_label_matrix_of_all_scores():
    """As AdaFace's and CVLface's scripts have it: scores sorted, any of the first k of the probe's label."""
    probes, mates, distractors, probe_person, mate_person = make()
    result = tinyface(probes, mates, distractors, probe_person, mate_person)
    gallery = np.concatenate([mates, distractors])
    labels = np.concatenate([mate_person, np.full(len(distractors), -100)])
    scores = probes @ gallery.T / np.linalg.norm(gallery, axis=1)
    found = labels[np.argsort(-scores, axis=1)] == probe_person[:, None]
    for k in (1, 5, 20):
        share = found[:, :k].any(axis=1).mean()
        assert getattr(result, f"rank{k}") == pytest.approx(share, abs=1e-12)
        low, high = result.interval[f"rank{k}"]
        assert low < share < high
    assert 0.1 < result.rank1 < result.rank5 < result.rank20 < 1
    assert (result.probes, result.mates, result.distractors) == (80, len(mates), 400)


def test_ties_go_by_the_gallerys_order():
    gallery = np.eye(3)[[0, 0, 0, 1]]  # a distractor, two equal mates, another distractor
    rank = closed_set(np.eye(3)[:1], gallery, np.array([5]), np.array([-1, 5, 5, -1]))
    assert rank.tolist() == [1]


def write_set(folder, names):
    for number, (kind, name) in enumerate(names):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind / name).write_bytes(jpeg(number))


GOOD = [("Probe", "3_1.jpg"), ("Probe", "12_1.jpg"), ("Gallery_Match", "3_2.jpg"), ("Gallery_Match", "12_2.png")]
GOOD += [("Gallery_Match", "3_9.jpg"), ("Gallery_Distractor", "x.jpg"), ("Gallery_Distractor", "y.jpg")]


def test_command(tmp_path, monkeypatch, capsys):
    write_set(tmp_path / "data", GOOD)
    write_onnx(tmp_path / "n.onnx")
    options = {"--data": "data", "--checkpoint": "n.onnx", "--output": "out"}
    monkeypatch.setattr(sys, "argv", ["", *(x for k, v in options.items() for x in (k, str(tmp_path / v)))])
    command.main()
    found = json.loads((tmp_path / "out/results.json").read_text())["tinyface"]
    assert (found["probes"], found["mates"], found["distractors"], found["rank20"]) == (2, 3, 2, 1)
    assert "TinyFace" in capsys.readouterr().out
    sys.argv.append("--json")
    command.main()
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out/results.json").read_text())


@pytest.mark.parametrize(
    "names, message",
    [
        ([one for one in GOOD if one[0] != "Probe"], "there is no .*Probe: --data needs"),
        ([*GOOD, ("Probe", "77_1.jpg")], "1 probes have no image in .*Gallery_Match, the first is .*77_1.jpg"),
        ([*GOOD, ("Probe", "anna_1.jpg")], "anna_1.jpg names nobody"),
    ],
)
def test_folders_that_are_none_of_tinyface(tmp_path, names, message):
    write_set(tmp_path, names)
    with pytest.raises((ValueError, OSError), match=message):
        read_lists(tmp_path)
    assert len(FOLDERS) == 3


def cells(*texts):
    """A column of cells of text, as MATLAB has them."""
    column = np.empty((len(texts), 1), object)
    column[:, 0] = texts
    return column


def write_lists(folder, probes=("12_1.jpg", "3_1.jpg"), probe_ids=(40, 50), **more):
    savemat(folder / "probe_img_ID_pairs.mat", {"probe_set": cells(*probes), "probe_ids": np.array([probe_ids]).T})
    mates = {"gallery_set": cells("3_2.png", "12_2.png", "3_9.png"), "gallery_ids": np.array([[50.0, 40, 50]]).T}
    savemat(folder / "gallery_match_img_ID_pairs.mat", mates | more)


def test_the_releases_lists_tell_whose_images_count(tmp_path):
    """Their order, their numbers of people, and none of the images that they do not name."""
    write_set(tmp_path, [*GOOD, ("Probe", "99_1.jpg"), ("Gallery_Match", "99_2.jpg")])
    write_lists(tmp_path)
    found = read_lists(tmp_path, tmp_path)
    assert [path.name for path in found.probes] == ["12_1.jpg", "3_1.jpg"]
    assert [path.name for path in found.mates] == ["3_2.jpg", "12_2.png", "3_9.jpg"]
    assert (found.probe_person.tolist(), found.mate_person.tolist()) == ([40, 50], [50, 40, 50])
    assert len(found.distractors) == 2
    assert set(MAT_LISTS) == set(FOLDERS[:2])


def test_what_other_programs_leave_is_no_image(tmp_path):
    folder = tmp_path / ".hidden"  # where a set lies is nobody's matter
    write_set(folder, GOOD)
    wanted = read_lists(folder)
    assert len(wanted.probes) == 2
    write_set(folder, [("Probe", "._3_1.jpg"), ("Gallery_Distractor/.AppleDouble", "x.jpg"), ("Gallery_Match", ".jpg")])
    found = read_lists(folder)
    for field in ("probes", "mates", "distractors"):
        assert getattr(found, field) == getattr(wanted, field)


@pytest.mark.parametrize(("twice", "name"), [("3_1.png", "3_1.bmp"), ("more/3_1.jpg", "3_1.jpg")])
def test_two_images_for_a_name_of_a_list_are_told(tmp_path, twice, name):
    write_set(tmp_path, GOOD)
    write_lists(tmp_path, probes=("12_1.jpg", name))
    (tmp_path / "Probe" / twice).parent.mkdir(exist_ok=True)
    (tmp_path / "Probe" / twice).write_bytes(jpeg(99))
    with pytest.raises(
        UserError, match=r"Probe/(more/)?3_1\.\w+ and .*Probe/(more/)?3_1\.\w+ may both be meant by '3_1"
    ):
        read_lists(tmp_path, tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder: write_lists(folder, probes=("12_1.jpg", "8.jpg")), "1 of 2 images of .* the first is 8.jpg"),
        (lambda folder: write_lists(folder, probe_ids=(40,)), "2 names in probe_set, 1 numbers in probe_ids"),
        (lambda folder: savemat(folder / "probe_img_ID_pairs.mat", {"a": 1}), "has no variable 'probe_set'"),
        (lambda folder: (folder / "probe_img_ID_pairs.mat").write_bytes(b"MATLAB" * 40), "no sound .mat list"),
        (lambda folder: (folder / "probe_img_ID_pairs.mat").unlink(), "there is no list"),
        (lambda folder: write_lists(folder, probe_ids=(40, 51)), "1 probes have no image"),
    ],
)
def test_lists_that_do_not_fit(tmp_path, change, message):
    write_set(tmp_path, GOOD)
    write_lists(tmp_path)
    change(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        read_lists(tmp_path, tmp_path)
