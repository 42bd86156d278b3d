import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from benchmarks.synthetic_ijb import write_release
from evaluate import ijb
from evaluate.protocols.ijb_lists import IJB, TemplateList
from evaluate.protocols.template_pairs import TemplatePairs
from evaluate.protocols.templates import FLIPS, pool
from evaluate.templates.one_to_many import identification
from evaluate.templates.one_to_one import FARS, verification
from pipelines.common.errors import UserError


def run_ijb(monkeypatch, data, features, output, *options):
    arguments = ["--data", str(data), "--features", str(features), "--output", str(output), *options]
    monkeypatch.setattr(sys, "argv", ["evaluate.ijb", *arguments])
    ijb.main()
    return json.loads((output / "results.json").read_text())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ijb")
    features = np.load(write_release(folder, 0.01, seed=1, dimension=64), mmap_mode="r")
    data = IJB(folder, "IJBC")
    images = data.images()
    return data, pool(features.reshape(len(features), 2, -1), images.template, images.media, images.detector)


def test_verification_is_roc_curve_of_all_exact_scores(small):
    data, templates = small
    first, second, same = data.pairs()
    # Duplicates, swapped and contradictory pairs.
    extra = np.arange(200)
    first, second = np.r_[first, second[extra], first[extra]], np.r_[second, first[extra], second[extra]]
    same = np.r_[same, same[extra], ~same[extra]]
    result = verification(TemplatePairs(templates, first, second, same), "nearest")
    row = {t: k for k, t in enumerate(templates.ids.tolist())}
    scores = np.array([np.sum(templates.vectors[row[a]] * templates.vectors[row[b]]) for a, b in zip(first, second)])
    false, true, _ = roc_curve(same, scores)
    false, true = np.flipud(false), np.flipud(true)
    for far in FARS:
        place = min(zip(abs(false - far), range(len(false))))[1]
        assert result.tar[f"{far:g}"] == pytest.approx(true[place], abs=1e-12)
        assert result.far[f"{far:g}"] == pytest.approx(false[place], abs=1e-12)
    assert result.hardest["genuine"][0].score == pytest.approx(scores[same].min(), abs=1e-5)
    assert result.hardest["impostor"][0].score == pytest.approx(scores[~same].max(), abs=1e-5)
    assert sum(result.histogram.impostor) == (~same).sum()


def test_pairs_of_unknown_templates_are_named(small):
    data, templates = small
    first, second, same = data.pairs()
    second[5] = 10**8
    with pytest.raises(ValueError, match="first is 100000000"):
        TemplatePairs(templates, first, second, same)


def test_every_probe_needs_a_mate_and_every_subject_one_template(small):
    data, templates = small
    galleries, probes = data.galleries(), data.probes()
    with pytest.raises(ValueError, match="have no mate"):
        identification(templates, {"g1": galleries["g1"]}, probes)
    with pytest.raises(ValueError, match="one template a subject"):
        identification(templates, {"g1": galleries["g1"], "g2": galleries["g1"]}, probes)


def first_subject(text):
    """The second line's subject in the last line, too."""
    lines = text.splitlines()
    return "\n".join([*lines[:-1], f"{lines[-1].split(',')[0]},{lines[1].split(',')[1]},,"])


@pytest.mark.parametrize(
    "name, damage, message",
    [
        ("template_pair_label.txt", lambda text: text + "\n1 99999999 0\n", "first is 99999999: do the lists belong"),
        ("1N_probe_mixed.csv", lambda text: text + "\n99999999,1,,\n", "first is 99999999: do the lists belong"),
        ("1N_probe_mixed.csv", lambda text: text + "\n1,99999999,,\n", "1 probes have no mate in the galleries"),
        ("1N_gallery_G1.csv", first_subject, "the galleries must hold one template a subject"),
    ],
)
def test_what_the_lists_show_is_told_before_the_features_are_read(tmp_path, monkeypatch, name, damage, message):
    write_release(tmp_path, 0.005, dimension=8)
    path = tmp_path / f"IJBC/meta/ijbc_{name}"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=message):
        run_ijb(monkeypatch, tmp_path, tmp_path / "none.npy", tmp_path / "out")


def test_a_gallery_of_everybody_tells_nothing_of_unknown_people(small):
    data, templates = small
    galleries, probes = data.galleries(), data.probes()
    both = TemplateList(
        *(np.concatenate([getattr(each, field) for each in galleries.values()]) for field in ("template", "subject"))
    )
    with pytest.raises(UserError, match=r"gallery g1 has \d+ templates, and a mate of (\d+) of \1 probes"):
        identification(templates, {"g1": both}, probes)


def test_command_and_settings(tmp_path, monkeypatch):
    features = write_release(tmp_path, 0.005, dimension=32)
    result = run_ijb(monkeypatch, tmp_path, features, tmp_path / "a", "--rule", "at_most", "--name", "r50")
    assert result["name"] == "r50" and result["verification"]["rule"] == "at_most"
    assert all(float(far) >= seen for far, seen in result["verification"]["far"].items())
    other = run_ijb(monkeypatch, tmp_path, features, tmp_path / "b", "--protocol", "identification", "--flip", "none")
    assert "verification" not in other and other["name"] == "b"
    assert other["identification"]["joint"]["threshold"] != result["identification"]["joint"]["threshold"]


def by_hand(views, images, pairs, norm, weighed):
    """TAR by FAR of vectors (n, 2, d), an image and a template at a time, as CVLface's evaluator weighs them."""
    vectors = []
    for image, score in zip(views.astype(float), images.detector.astype(float)):
        vector = image[0] + image[1]
        vectors.append((vector if norm else vector / np.linalg.norm(vector)) * (score if weighed else 1))
    template = {}
    for number in np.unique(images.template):
        media = {}
        for row in np.flatnonzero(images.template == number):
            media.setdefault(images.media[row], []).append(vectors[row])
        template[number] = sum(np.mean(frames, axis=0) for frames in media.values())
    first, second, same = pairs
    scores = [
        template[a] @ template[b] / np.linalg.norm(template[a]) / np.linalg.norm(template[b])
        for a, b in zip(first, second)
    ]
    false, true, _ = roc_curve(same, scores)
    return {f"{far:g}": true[len(false) - 1 - abs(false[::-1] - far).argmin()] for far in FARS}


def test_three_ways_of_weighing_images(tmp_path, monkeypatch, capsys):
    path = write_release(tmp_path, 0.005, dimension=8)
    views = np.load(path).reshape(-1, 2, 8)
    views *= np.random.default_rng(1).uniform(0.2, 3, (len(views), 1, 1)).astype(np.float32)
    np.save(tmp_path / "views.npy", views)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run_ijb(monkeypatch, tmp_path, path, tmp_path / "a", "--ways", "det", "--norm", "keep")
    options = ["--protocol", "verification", "--ways", "norm+det", "norm", "det", "--json"]
    with pytest.raises(FileNotFoundError):  # results are in the folders of the ways alone
        run_ijb(monkeypatch, tmp_path, tmp_path / "views.npy", tmp_path / "a", *options)
    data = IJB(tmp_path, "IJBC")
    printed, told = capsys.readouterr()
    by_way = json.loads(printed)
    assert [*by_way] == ["norm+det", "norm", "det"] and "TAR at FAR" in told
    thresholds = []
    for way, norm, weighed in (("norm+det", True, True), ("norm", True, False), ("det", False, True)):
        result = json.loads((tmp_path / "a" / way / "results.json").read_text())
        assert result == by_way[way]
        assert result["name"] == f"a {way}" and result["settings"]["detector_score"] == weighed
        thresholds.append(result["verification"]["threshold"]["0.1"])
        expected = by_hand(views, data.images(), data.pairs(), norm, weighed)
        assert result["verification"]["tar"] == pytest.approx(expected, abs=1e-6)
    assert len(set(thresholds)) == 3


@pytest.fixture(scope="module")
def one_view(tmp_path_factory):
    """A data set and features of one view alone (n, 16), and its figures."""
    folder = tmp_path_factory.mktemp("views")
    both = np.load(write_release(folder, 0.005, dimension=16))
    single = both[:, :16].copy()
    np.save(folder / "twice.npy", np.concatenate([single, single], 1))
    patch = pytest.MonkeyPatch()
    result = run_ijb(patch, folder, folder / "twice.npy", folder / "twice")
    patch.undo()
    return folder, single, result["verification"], result["identification"]


@pytest.mark.parametrize("flip", FLIPS)
def test_one_view_has_the_figures_of_the_same_view_twice(one_view, tmp_path, monkeypatch, flip):
    data, single, verified, identified = one_view
    np.save(tmp_path / "f.npy", single)
    result = run_ijb(monkeypatch, data, tmp_path / "f.npy", tmp_path / "o", "--views", "1", "--flip", flip)
    assert result["verification"]["tar"] == verified["tar"] and result["settings"]["views"] == 1
    assert result["identification"]["joint"]["rank1"] == identified["joint"]["rank1"]


def test_one_view_is_never_halved_unasked(one_view, tmp_path, monkeypatch, capsys):
    data, single, verified, _ = one_view
    np.save(tmp_path / "f.npy", single)
    with pytest.raises(ValueError, match="say --views 1; .* --views 2"):
        run_ijb(monkeypatch, data, tmp_path / "f.npy", tmp_path / "o")
    assert not (tmp_path / "o").exists()
    halved = run_ijb(monkeypatch, data, tmp_path / "f.npy", tmp_path / "o", "--views", "2")
    assert halved["verification"]["tar"]["0.0001"] < verified["tar"]["0.0001"] and halved["settings"]["views"] == 2
    assert "original and mirrored, 8 numbers each" in capsys.readouterr().out


def test_what_is_not_finite_is_named(one_view, tmp_path, monkeypatch):
    data, single, *_ = one_view
    features = np.concatenate([single, single], 1)
    features[[40, 90], 3] = np.nan, np.inf
    np.save(tmp_path / "f.npy", features)
    with pytest.raises(ValueError, match=r"the features are not finite for 2 of \d+ images, the first is 41\.jpg"):
        run_ijb(monkeypatch, data, tmp_path / "f.npy", tmp_path / "o")
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    path = copy / "IJBC/meta/ijbc_name_5pts_score.txt"
    lines = path.read_text().splitlines()
    lines[7] = lines[7].rsplit(maxsplit=1)[0] + " nan"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"the detector scores are not finite for 1 of .* the first is 8\.jpg"):
        run_ijb(monkeypatch, copy, data / "twice.npy", tmp_path / "o")
    run_ijb(monkeypatch, copy, data / "twice.npy", tmp_path / "o", "--no-detector-score")
    quality = "--no-detector-score", "--quality", "detector"
    with pytest.raises(ValueError, match=r"the detector scores are not finite for 1 of .* the first is 8\.jpg"):
        run_ijb(monkeypatch, copy, data / "twice.npy", tmp_path / "o", *quality)


def test_a_users_mistake_is_one_line(tmp_path):
    command = [sys.executable, "-m", "evaluate.ijb", "--data", str(tmp_path), "--features", "f.npy", "--output", "o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: no folder meta") and done.stderr.count("\n") == 1


SETTINGS = {
    "sum_flip": [],
    "no_flip": ["--flip", "none"],
    "norm_weighted_no_detector": ["--no-detector-score"],  # lengths are the network's: each view's unit vector times it
}


def shared_set(shared, folder, *options):
    """A set of the reference's generator; the lists are written here, from its arrays."""
    tool = shared / "tools/make_ijb.py"
    command = [sys.executable, str(tool), "--out", str(folder), "--no-text", *options]
    subprocess.run(command, check=True, capture_output=True)
    array = {name: np.load(folder / f"{name}.npy") for name in ("tid", "mid", "faceness", "p1", "p2", "label")}
    names = [f"{row}.jpg" for row in range(len(array["tid"]))]
    write = {
        "face_tid_mid.txt": zip(names, array["tid"], array["mid"]),
        "name_5pts_score.txt": zip(names, *([["0"] * len(names)] * 10), array["faceness"]),
        "template_pair_label.txt": zip(array["p1"], array["p2"], array["label"]),
    }
    for name, rows in write.items():
        with (folder / f"IJBC/meta/ijbc_{name}").open("w") as file:
            file.writelines(" ".join(map(str, row)) + "\n" for row in rows)
    truth = np.load(folder / "truth.npz")
    for name, kind in (("gallery_G1", "g1"), ("gallery_G2", "g2"), ("probe_mixed", "probe")):
        rows = zip(truth[f"{kind}_t"], truth[f"{kind}_s"])
        lines = ["TEMPLATE_ID,SUBJECT_ID", *(f"{t},{s}" for t, s in rows)]
        (folder / f"IJBC/meta/ijbc_1N_{name}.csv").write_text("\n".join(lines))
    return folder / "feats.npy"


def compare(result, expected):
    for name in ("tar", "far"):
        assert result["verification"][name] == pytest.approx(expected["verification"][name], abs=1e-6)


@pytest.mark.parametrize("name, options", [("s200", ["--scale", ".005", "--seed", "3"]), ("s20", ["--scale", ".05"])])
def test_matches_published_implementations(shared, tmp_path, monkeypatch, name, options):
    features = shared_set(shared, tmp_path, *options)
    reference = json.loads((shared / f"reference/ijb/{name}.json").read_text())
    for setting, extra in SETTINGS.items():
        result = run_ijb(monkeypatch, tmp_path, features, tmp_path / setting, *extra)
        compare(result, {"verification": reference["verification"][setting]})
        if setting == "sum_flip" and reference["identification"]:
            check_identification(result["identification"], reference["identification"])


def check_identification(result, expected):
    joint, open_set = result["joint"], result["open_set"]
    for key in ("rank1", "rank5", "rank10"):
        assert joint[key] == pytest.approx(expected["joint"][key], abs=1e-6)
        assert open_set[key] == pytest.approx(expected["open_set"][key], abs=1e-6)
    assert joint["tpir"] == pytest.approx(expected["joint"]["tpir"], abs=1e-6)
    assert joint["threshold"] == pytest.approx(expected["joint"]["threshold"], abs=1e-6)
    assert open_set["tpir"] == pytest.approx(expected["open_set"]["tpir"], abs=1e-6)
    for gallery in ("g1", "g2"):
        tpir = open_set["galleries"][gallery]["tpir"]
        assert tpir == pytest.approx(expected["open_set"][f"tpir_{gallery}"], abs=1e-6)


@pytest.mark.slow
def test_matches_published_implementations_at_full_size(shared, tmp_path, monkeypatch):
    features = shared_set(shared, tmp_path, "--scale", "1")
    reference = json.loads((shared / "reference/ijb/full.json").read_text())
    result = run_ijb(monkeypatch, tmp_path, features, tmp_path / "out")
    compare(result, {"verification": reference["verification"]["sum_flip"]})
    check_identification(result["identification"], reference["identification"])
    features.unlink()
