import json
import sys

import numpy as np
import pytest

from benchmarks.synthetic_ijb import write_release
from evaluate import ijb, report, verification
from evaluate.breakdowns.pairs import pair_groups, reachable
from evaluate.breakdowns.sets import Beside, Judged, read_beside, rfw_breakdown, set_breakdown, set_groups, unnamed
from evaluate.breakdowns.templates import given_qualities, template_breakdown
from evaluate.features import options
from evaluate.features.network import Network
from evaluate.protocols.folds import verify
from evaluate.protocols.ijb_lists import Images
from evaluate.protocols.template_pairs import TemplatePairs
from evaluate.protocols.templates import Templates, template_means
from evaluate.reporting.results import read_results, write_results
from evaluate.verification import verification_set
from pipelines.common.errors import UserError
from pipelines.sources.bins import write_bin
from tests.command import called
from tests.evaluate.networks import write_onnx
from tests.evaluate.test_overlap import Pixels
from tests.pipelines.photos import jpeg


def features_of(seed, pairs=400, d=16):
    """Pairs (2P, 1, d) and ``same``; genuine pairs of short features are far apart."""
    rng = np.random.default_rng(seed)
    same = np.arange(pairs) % 2 == 0
    left = rng.standard_normal((pairs, d))
    noise = np.where(rng.random(pairs) < 0.15, 1.5, 0.2)[:, None]
    right = np.where(same[:, None], left + noise * rng.standard_normal((pairs, d)), rng.standard_normal((pairs, d)))
    features = np.stack([left, right / (1 + noise)], 1).reshape(2 * pairs, 1, d)
    return features, same


def judged(seed, names=None):
    features, same = features_of(seed)
    person = unnamed(same) if names is None else np.unique(names, return_inverse=True)[1]
    return features, Judged(verify(features, same).distances, same, Beside(names, person, None))


def test_fmrs_are_the_least_that_a_set_can_tell():
    assert [reachable(count) for count in (99, 100, 3000, 15_000_000)] == [[], [1e-2], [1e-2, 1e-3], [1e-3, 1e-4]]


def test_pairs_of_nobody_are_a_person_or_two():
    assert unnamed(np.array([True, False, True])).tolist() == [0, 0, 1, 2, 3, 3]


def test_a_set_by_length_and_its_report(tmp_path):
    features, judgement = judged(0)
    for name in "ab":
        norms = np.linalg.norm(features[:, 0], axis=1) * (1 if name == "a" else -1)
        by = set_breakdown("lfw", judgement, norms, None)
        assert list(by.quality["norm"]) == ["0.01"] and not by.groups
        found = by.quality["norm"]["0.01"]
        scores = 1 - judgement.distances / 2
        assert (scores[~judgement.same] >= found.threshold).mean() <= 0.01
        assert found.rates["0"] == pytest.approx((scores[judgement.same] < found.threshold).mean())
        lower = found.rates["0.2"] < 0.7 * found.rates["0"]
        assert lower == (name == "a")  # a quality turned round is none
        assert found.resamples.of == "pairs" and set(found.interval) == {"0", "0.1", "0.2", "pauc"}
        low, high = found.interval["0"]
        assert low < found.rates["0"] < high
        part = verification_set(verify(features, judgement.same), judgement.same)
        part.by = by
        write_results(tmp_path / name, name, sets={"lfw": part})
        assert read_results(tmp_path / name).sets["lfw"].by == by
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, "argv", ["", "--results", *(str(tmp_path / x) for x in "ab"), "--output", str(tmp_path / "o")])
    report.main()
    patch.undo()
    page = (tmp_path / "o/index.html").read_text()
    assert "errors by quality (norm) at FMR 1e-2" in page and "Difference in points" in page


def named(seed):
    """Names for ``features_of``'s images: one of 60 people in a genuine pair, two in an impostor pair."""
    rng = np.random.default_rng(seed)
    names = []
    for pair in range(400):
        who = rng.choice(60, 2, replace=False)
        names += [f"p{who[0]}", f"p{who[0] if pair % 2 == 0 else who[1]}"]
    return names


def test_groups_of_named_people(capsys):
    features, judgement = judged(1, named(1))
    groups = {f"p{k}": ("north", "south")[k % 2] for k in range(58)}
    by = set_breakdown("lfw", judgement, None, set_groups("lfw", judgement.same, named(1), groups))
    found = by.groups["0.01"]
    assert set(found.groups) == {"north", "south"} and found.resamples.of == "people"
    scores, person = 1 - judgement.distances / 2, named(1)
    north = np.array([groups.get(name) == "north" for name in person])
    genuine = north[::2] & north[1::2] & judgement.same
    assert found.groups["north"].genuine == genuine.sum()
    assert found.groups["north"].fnmr == pytest.approx((scores[genuine] < found.threshold).mean())
    assert "images show people without a group" in capsys.readouterr().out
    assert found.groups["south"].people == 29


def test_rfw_is_judged_at_one_threshold():
    sets = {f"{group}_test": judged(seed)[1] for seed, group in enumerate(("African", "Asian", "Caucasian", "Indian"))}
    found = rfw_breakdown(sets).groups["0.01"]
    assert list(found.groups) == ["african", "asian", "caucasian", "indian"]
    scores = 1 - sets["Asian_test"].distances / 2
    same = sets["Asian_test"].same
    assert found.groups["asian"].fnmr == pytest.approx((scores[same] < found.threshold).mean())
    assert found.groups["asian"].fmr == pytest.approx((scores[~same] >= found.threshold).mean())
    assert 0 < np.mean([errors.fmr for errors in found.groups.values()]) <= 0.01


def test_groups_without_pairs_are_left_out(capsys):
    same = np.tile([True, False], 10)
    sides = np.repeat([0, 1, 2], [8, 8, 4]), np.repeat([0, 1, 2, -1], [8, 8, 1, 3])
    found = pair_groups(sides, ["a", "b", "c"], same, "lfw")
    assert found.names == ("a", "b") and found.group.tolist() == [0] * 8 + [1] * 8 + [-1] * 4
    assert "group c is left out, with 1 genuine and 0 impostor pairs" in capsys.readouterr().out
    assert pair_groups((sides[0] * 0, sides[0] * 0), ["a"], same, "lfw") is None
    assert "lfw: groups are not compared, for 1 of 1 have two pairs of each kind" in capsys.readouterr().out


def test_rfw_without_groups_to_compare_keeps_its_figures(capsys):
    """Nobody asked for them."""
    names = "African", "Asian", "Caucasian", "Indian"
    sets = {f"{group}_test": Judged(np.ones(9), np.ones(9, bool), Beside(None, np.arange(18), None)) for group in names}
    assert rfw_breakdown(sets) is None
    assert "RFW: groups are not compared, for 0 of 4" in capsys.readouterr().out


def test_what_lies_beside_a_set_must_fit_it(tmp_path):
    path, same = tmp_path / "lfw.bin", np.array([True, False])
    with pytest.raises(UserError, match="names nobody: for --groups write .*lfw.people.txt"):
        read_beside(path, same, quality=False, people=True)
    with pytest.raises(UserError, match="--quality file needs .*lfw.quality.npy"):
        read_beside(path, same, quality=True, people=False)
    (tmp_path / "lfw.people.txt").write_text("a\na\nb\nb\n")
    with pytest.raises(UserError, match="pair 1 is impostor, and shows b and b"):
        read_beside(path, same, quality=False, people=True)


def test_a_set_without_genuine_pairs_has_no_breakdown(capsys):
    distances, same = np.linspace(1, 3, 200), np.zeros(200, bool)
    names = [f"p{k % 2}" for k in range(400)]
    judgement = Judged(distances, same, Beside(names, np.arange(400) % 2, np.arange(400.0)))
    assert set_breakdown("lfw", judgement, np.ones(400), None) is None
    assert "lfw: without a genuine pair there is no FNMR, so no figures" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["lfw.bin", "lfw.xz", "lfw.bin.xz", "lfw.txt"])
def test_what_lies_beside_a_set_is_called_as_the_set_is(tmp_path, name):
    (tmp_path / "lfw.people.txt").write_text("a\na\nb\nc\n")
    np.save(tmp_path / "lfw.quality.npy", np.array([4.0, 3, 2, 1]))
    found = read_beside(tmp_path / name, np.array([True, False]), quality=True, people=True)
    assert found.names == ["a", "a", "b", "c"] and found.quality.tolist() == [4, 3, 2, 1]
    assert verification.bare(tmp_path / name) == tmp_path / "lfw"


def test_command(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    same = np.arange(200) % 2 == 0
    pictures = [jpeg(k) for k in range(8)]
    images = [pictures[(i + (k and not same[i])) % 8] for i in range(200) for k in (0, 1)]
    path = tmp_path / "lfw.bin"
    write_bin(path, images, same)
    people = [f"p{(i + (k and not same[i])) % 8}" for i in range(200) for k in (0, 1)]
    path.with_suffix(".people.txt").write_text("\n".join(people))
    np.save(path.with_suffix(".quality.npy"), np.arange(400.0))
    (tmp_path / "groups.csv").write_text("".join(f"p{k},{'xy'[k // 4]}\n" for k in range(8)))
    options = ["--quality", "norm", "file", "--groups", tmp_path / "groups.csv", "--output", tmp_path, "--threads", "1"]
    arguments = ["--checkpoint", write_onnx(tmp_path / "n.onnx"), "--bins", path, *options]
    monkeypatch.setattr(sys, "argv", ["", *map(str, arguments)])
    verification.main()
    by = json.loads((tmp_path / "results.json").read_text())["sets"]["lfw"]["by"]
    assert set(by["quality"]) == {"norm", "file"} and set(by["groups"]["0.01"]["groups"]) == {"x", "y"}
    assert "groups at the threshold of FMR 1e-2" in capsys.readouterr().out


def test_sets_whose_groups_cannot_be_compared_are_told_before_the_work(tmp_path, monkeypatch):
    """The others are compared, and no figure is lost."""
    monkeypatch.setattr(options, "load_network", lambda *_: Network(Pixels(), 56))
    same = np.arange(200) % 2 == 0
    pictures = [jpeg(k) for k in range(8)]
    shown = [(i + (k and not same[i])) % 8 for i in range(200) for k in (0, 1)]
    for name, person in (("a", "p"), ("b", "q")):
        write_bin(tmp_path / f"{name}.bin", [pictures[who] for who in shown], same)
        (tmp_path / f"{name}.people.txt").write_text("\n".join(f"{person}{who}" for who in shown))
    (tmp_path / "groups.csv").write_text("".join(f"p{k},{'xy'[k // 4]}\n" for k in range(8)))
    more = ["--checkpoint", "any", "--groups", tmp_path / "groups.csv", "--threads", 1, "--output", tmp_path / "o"]
    ended = called(verification.main, "--bins", tmp_path / "b.bin", *more)
    assert ended.code == 2 and ended.error == f"error: {tmp_path}/groups.csv: no set has two groups to compare\n"
    assert "the network takes" not in ended.out
    ended = called(verification.main, "--bins", tmp_path / "a.bin", tmp_path / "b.bin", *more)
    told = "b: groups are not compared, for 0 of 2 have two pairs of each kind"
    assert ended.code == 0 and told in ended.out.partition("the network takes")[0]
    sets = json.loads((tmp_path / "o/results.json").read_text())["sets"]
    assert set(sets["a"]["by"]["groups"]["0.01"]["groups"]) == {"x", "y"} and "by" not in sets["b"]


def test_ijb_by_quality_and_group(tmp_path, monkeypatch):
    features = write_release(tmp_path, 0.01, seed=1, dimension=16)
    data = ijb.IJB(tmp_path, "IJBC")
    subjects = np.unique(data.probes().subject)
    (tmp_path / "groups.csv").write_text("".join(f"{s},{'xy'[k % 2]}\n" for k, s in enumerate(subjects)))
    options = ["--quality", "norm", "detector", "--groups", tmp_path / "groups.csv", "--protocol", "verification"]
    arguments = ["--data", tmp_path, "--features", features, "--output", tmp_path / "o", *options]
    monkeypatch.setattr(sys, "argv", ["", *map(str, arguments)])
    ijb.main()
    one = json.loads((tmp_path / "o/results.json").read_text())["verification"]
    assert set(one["by"]["quality"]) == {"norm", "detector"}
    for fmr, part in one["by"]["quality"]["detector"].items():
        assert part["genuine"] == one["genuine"] and 0 < part["rates"]["0"] < 1
        if one["far"][fmr] <= float(fmr):  # else the ROC's nearest point exceeds the FMR
            assert part["rates"]["0"] == pytest.approx(1 - one["tar"][fmr], abs=1e-9)
    assert all(set(part["groups"]) == {"x", "y"} for part in one["by"]["groups"].values())


def test_qualities_and_groups_are_read_before_the_long_work(tmp_path):
    write_release(tmp_path, 0.001, dimension=4)
    number = len(ijb.IJB(tmp_path, "IJBC").images().names)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "sharp.npy", np.ones(number))
    sharp = [tmp_path / folder / "sharp.npy" for folder in ("a", "b")]
    arguments = ["--data", tmp_path, "--features", tmp_path / "none.npy", "--output", tmp_path / "o"]

    def error(*options):
        ended = called(ijb.main, *arguments, *options)
        assert ended.code == 2 and "none.npy" not in ended.error
        return ended.error

    assert "another quality of the name sharp" in error("--quality", *sharp)
    assert "nrom" in error("--quality", "nrom")
    for option in (["--quality", "norm"], ["--groups", tmp_path / "groups.csv"]):
        assert "--protocol verification" in error(*option, "--protocol", "identification")
    (tmp_path / "groups.csv").write_text("a,x\n")
    assert "none of the subjects in the lists" in error("--groups", tmp_path / "groups.csv")
    subjects = np.unique(ijb.IJB(tmp_path, "IJBC").probes().subject)
    (tmp_path / "groups.csv").write_text("".join(f"{subject},x\n" for subject in subjects))
    assert error("--groups", tmp_path / "groups.csv") == f"error: {tmp_path}/groups.csv has no two groups to compare\n"
    probes = next((tmp_path / "IJBC" / "meta").glob("*probe*"))
    probes.rename(probes.with_suffix(".away"))
    assert probes.name in error("--groups", tmp_path / "groups.csv", "--protocol", "verification")


def test_a_templates_quality_is_the_mean_of_its_medias_means():
    values, template = np.array([1.0, 3.0, 7.0, 2.0, 10.0]), np.array([5, 5, 5, 2, 5])
    assert template_means(values, template, np.array([1, 1, 2, 1, 3])).tolist() == [2.0, (2 + 7 + 10) / 3]


def test_a_quality_that_is_given_twice_is_one():
    images = Images(["1.jpg"], np.zeros((1, 5, 2)), np.ones(1, np.float32), np.zeros(1, int), np.zeros(1, int))
    assert list(given_qualities(["detector", "norm", "detector"], images)) == ["detector"]


def test_templates_need_impostors_enough(capsys):
    templates = Templates(np.arange(4), np.eye(4))
    pairs = TemplatePairs(templates, np.array([0, 0]), np.array([1, 2]), np.array([True, False]))
    assert template_breakdown(pairs, None, {}, None) is None
    assert "1 impostor pairs tell nothing of FMR 1e-2" in capsys.readouterr().out
