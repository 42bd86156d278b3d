import io
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sklearn.metrics.pairwise import paired_cosine_distances
from sklearn.model_selection import KFold

from evaluate import verification
from evaluate.protocols.folds import (
    ACCURACY_THRESHOLDS,
    VAL_THRESHOLDS,
    roc_band,
    thresholds_of,
    verify,
    worst_pairs,
)
from evaluate.protocols.intervals import wilson
from evaluate.protocols.resampling import draw
from evaluate.protocols.rfw import rfw_groups
from evaluate.reporting.schema import SetFigures
from evaluate.reporting.tables import accuracy_table
from pipelines.common.command import run
from pipelines.sources.bins import read_bin, write_bin
from tests.evaluate.networks import write_onnx
from tests.pipelines.photos import jpeg


def naive(features, same):
    """The protocol with masks and loops, threshold by threshold."""
    e = features.astype(np.float64).sum(1)
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    distances = ((e[::2] - e[1::2]) ** 2).sum(1)
    accuracy, val, far = [], [], []
    for test in np.array_split(np.arange(len(same)), 10):
        train = np.setdiff1d(np.arange(len(same)), test)
        right = [((distances[train] < t) == same[train]).mean() for t in ACCURACY_THRESHOLDS]
        best = ACCURACY_THRESHOLDS[int(np.argmax(right))]
        accuracy.append(((distances[test] < best) == same[test]).mean())
        fars = np.array([(distances[train][~same[train]] < t).mean() for t in VAL_THRESHOLDS])
        last = np.flatnonzero(fars <= 1e-3)[-1]
        step = (1e-3 - fars[last]) / (fars[last + 1] - fars[last])
        limit = VAL_THRESHOLDS[last] + step * (VAL_THRESHOLDS[last + 1] - VAL_THRESHOLDS[last])
        val.append((distances[test][same[test]] < limit).mean())
        far.append((distances[test][~same[test]] < limit).mean())
    return np.array(accuracy), np.array(val), np.array(far)


def make(seed, pairs, views=2, d=16):
    rng = np.random.default_rng(seed)
    same = rng.random(pairs) < 0.5
    left = rng.standard_normal((pairs, 1, d))
    right = np.where(
        same[:, None, None], left + 0.7 * rng.standard_normal((pairs, 1, d)), rng.standard_normal(left.shape)
    )
    features = np.stack([left, right], 1).reshape(2 * pairs, 1, d) + 0.1 * rng.standard_normal((2 * pairs, views, d))
    return features.astype(np.float32), same


@pytest.mark.parametrize("pairs, views", [(600, 2), (637, 1), (95, 2)])
def test_is_the_protocol_written_with_loops(pairs, views):
    features, same = make(pairs, pairs, views)
    result = verify(features, same)
    accuracy, val, far = naive(features, same)
    np.testing.assert_allclose(result.folds, accuracy)
    assert (result.accuracy, result.std) == pytest.approx((accuracy.mean(), accuracy.std()))
    assert (result.val, result.val_std, result.far) == pytest.approx((val.mean(), val.std(), far.mean()))


def test_xqlfw_is_judged_by_cosine_distances_on_its_own_grid():
    features, same = make(5, 600, 1)
    distances = paired_cosine_distances(features[::2, 0].astype(np.float64), features[1::2, 0].astype(np.float64))
    grid, folds, chosen = np.arange(0, 2, 0.001), [], []
    for train, test in KFold(10, shuffle=False).split(distances):
        best = np.argmax([((distances[train] < t) == same[train]).mean() for t in grid])
        folds.append(((distances[test] < grid[best]) == same[test]).mean())
        chosen.append(grid[best])
    result = verify(features, same, thresholds_of("cross/XQLFW"))
    np.testing.assert_allclose(result.folds, folds)
    assert result.threshold == pytest.approx(2 * np.mean(chosen))
    assert result.threshold != verify(features, same).threshold  # the set tells the grids apart


def test_rfw_is_the_spread_of_its_four_groups():
    sets = {"rfw/African_test": 0.90, "rfw/Asian_test": 0.92, "rfw/Caucasian_test": 0.98, "rfw/Indian_test": 0.94}
    spread = rfw_groups(sets | {"lfw": 0.998})
    assert (spread.mean, spread.std) == pytest.approx((0.935, np.std(list(sets.values()), ddof=1)))
    assert rfw_groups({name: sets[name] for name in list(sets)[:3]}) is None
    assert rfw_groups(sets | {"other/African_test": 0.5}) is None


def test_matches_the_published_implementation(shared):
    data = np.load(shared / "reference/verification/pairs.npz")
    expected = json.loads((shared / "reference/verification/expected.json").read_text())
    result = verify(np.stack([data["emb"], data["emb_flip"]], 1), data["issame"])
    np.testing.assert_allclose(result.folds, expected["folds"])
    assert (result.accuracy, result.std) == pytest.approx((expected["acc"], expected["acc_std"]))
    assert (result.val, result.val_std, result.far) == pytest.approx(
        tuple(expected[k] for k in ("val", "val_std", "far"))
    )
    assert (result.tpr.sum(), result.fpr.sum()) == pytest.approx((expected["tpr_sum"], expected["fpr_sum"]))


def test_a_set_without_impostors_has_an_accuracy_and_no_val():
    features, _ = make(0, 200)
    result = verify(features, np.ones(200, bool))
    assert result.accuracy > 0.9
    assert np.isnan([result.val, result.val_std, result.far]).all()


def test_zero_features_fail_no_one_else():
    features, same = make(1, 300)
    clean = verify(features, same)
    features[0] = 0
    result = verify(features, same)
    assert abs(result.accuracy - clean.accuracy) < 0.02 and np.isfinite(result.val)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_no_result(value):
    features, same = make(1, 300)
    features[7, 1, 3] = features[500, 0, 0] = value
    with pytest.raises(ValueError, match="not finite for 2 of 600 images, the first is image 7"):
        verify(features, same)


def test_a_collapsed_network_shows_the_far_it_met():
    """All embeddings equal: every pair is accepted, which a TAR alone would praise."""
    _, same = make(2, 100)
    result = verify(np.ones((200, 2, 8), np.float32), same)
    assert result.far == 1 and printed({"lfw": result})["FAR % met"] == "100.00"


def printed(results):
    """The cells of the only row of the table of results by their columns' headers, as a terminal shows them."""
    rows = accuracy_table({name: SetFigures(**result.summary()) for name, result in results.items()})
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(rows)
    head, _, row = filter(str.strip, console.export_text().splitlines())
    return dict(zip(re.split("  +", head.strip()), re.split("  +", row.strip())))


def test_the_table_shows_intervals():
    features, same = make(3, 600)
    found = verification.verification_set(verify(features, same), same)
    low, high = found.interval["accuracy"]
    assert low < found.accuracy < high
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(accuracy_table({"lfw": found}))
    text = console.export_text()
    assert f"{100 * found.accuracy:.2f} ± {100 * found.std:.2f}" in text
    assert f"[{100 * low:.2f}, {100 * high:.2f}]" in text


def test_impostor_pairs_tell_nothing_of_a_tar_of_one():
    same = np.arange(600) % 20 == 0
    second = np.eye(2)[np.where(same, 0, 1)]
    features = np.stack([np.tile([1.0, 0.0], (600, 1)), second], axis=1).reshape(1200, 1, 2)
    found = verification.verification_set(verify(features, same), same)
    assert found.accuracy == found.val == 1
    assert found.interval == {"accuracy": pytest.approx(wilson(1, 600)), "val": pytest.approx(wilson(1, 30))}


@pytest.mark.parametrize("name", ["a [bold] b", "[/red]", "a/lfw", "[link=x]y[/link]", "a\nb\x1b[31m"])
def test_names_are_printed_as_they_are(name):
    features, same = make(3, 50)
    assert printed({name: verify(features, same)})["set"] == name.encode("unicode_escape").decode()


@pytest.mark.parametrize("shape, message", [((19, 2, 4), "need features"), ((18, 2, 4), "too few")])
def test_unfit_input(shape, message):
    with pytest.raises(ValueError, match=message):
        verify(np.zeros(shape, np.float32), np.zeros(shape[0] // 2, bool))


def test_worst_pairs():
    features, same = make(2, 100)
    result = verify(features, same)
    worst = worst_pairs(result, same, 3)
    assert result.distances[worst["genuine"][0]] == result.distances[same].max() and same[worst["genuine"]].all()
    assert result.distances[worst["impostor"][0]] == result.distances[~same].min() and not same[worst["impostor"]].any()


def run_command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["", *map(str, arguments), "--threads", "1", "--batch-size", "16"])
    verification.main()


def make_bins(*paths, pairs=10):
    """Sets of noise pictures, genuine pairs being one picture twice; the n-th set has n impostor pairs more."""
    for number, path in enumerate(paths):
        count = pairs + number
        same = np.arange(count) % 2 == 0
        images = [jpeg(50 * count + 2 * i + (k and not same[i])) for i in range(count) for k in (0, 1)]
        path.parent.mkdir(exist_ok=True)
        write_bin(path, images, same)
    return paths


def test_two_sets_of_one_name_are_two_rows(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    bins = make_bins(tmp_path / "a" / "lfw.bin", tmp_path / "b" / "lfw.bin")
    network, output = write_onnx(tmp_path / "n.onnx"), tmp_path / "out"
    run_command(monkeypatch, "--checkpoint", network, "--output", output, "--bins", *bins)
    sets = json.loads((output / "results.json").read_text())["sets"]
    assert {name: part["pairs"] for name, part in sets.items()} == {"a/lfw": 10, "b/lfw": 11}
    assert all(Image.open(output / part["worst"]).width > 500 for part in sets.values())
    assert len({part["worst"] for part in sets.values()}) == 2
    out = capsys.readouterr().out
    assert "a/lfw" in out and "b/lfw" in out


def test_json_is_all_of_standard_output(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    bins, network = make_bins(tmp_path / "lfw.bin"), write_onnx(tmp_path / "n.onnx")
    run_command(monkeypatch, "--checkpoint", network, "--bins", *bins, "--json")
    printed, told = capsys.readouterr()
    found = json.loads(printed)
    assert found["name"] == "results" and found["sets"]["lfw"]["pairs"] == 10
    assert "accuracy" in told and "the network takes" in told
    monkeypatch.setattr(sys, "argv", ["", "--checkpoint", str(network), "--bins", "no.bin", "--json"])
    with pytest.raises(SystemExit, match="2"):
        run(verification.main)
    printed, told = capsys.readouterr()
    assert printed == "" and told.startswith("error: ") and told.count("\n") == 1


def test_a_set_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    network = write_onnx(tmp_path / "n.onnx")
    good, small = make_bins(tmp_path / "good.bin", tmp_path / "small.bin", pairs=8)
    write_bin(good, [jpeg(i) for i in range(20)], np.arange(10) % 2 == 0)
    with pytest.raises(ValueError, match="small.bin has 9 pairs, too few"):
        run_command(monkeypatch, "--checkpoint", network, "--bins", good, small)
    cut = tmp_path / "cut.bin"
    write_bin(cut, [jpeg(i)[: 300 if i == 5 else None] for i in range(20)], np.arange(10) % 2 == 0)
    with pytest.raises(ValueError, match=r"cut\.bin, image 5:"):
        run_command(monkeypatch, "--checkpoint", network, "--bins", good, cut)


def test_command(shared, tmp_path, monkeypatch, capsys):
    """Scores of a published network on a few pairs; a picture of the worst; results for a report."""
    pytest.importorskip("onnxruntime")
    weights, bins = shared / "faces/weights/mobilefacenet_y1.onnx", tmp_path / "some.bin"
    lfw = read_bin(shared / "faces/lfw.bin")  # its pairs come in blocks of 300 of a kind
    chosen = np.arange(30).repeat(2) + np.tile([0, 300], 30)
    write_bin(bins, [lfw.encoded[2 * i + k] for i in chosen for k in (0, 1)], lfw.same[chosen])
    monkeypatch.setattr(
        sys,
        "argv",
        ["", "--checkpoint", str(weights), "--bins", str(bins), "--output", str(tmp_path), "--threads", "2"],
    )
    verification.main()
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["name"] == tmp_path.name and result["sets"]["some"]["accuracy"] > 0.95
    assert result["input"] == "RGB in [0, 255], as the graph's first nodes normalise it"
    printed = capsys.readouterr().out
    assert "some" in printed and result["input"] in printed
    with Image.open(tmp_path / "worst_some.png") as picture:
        assert picture.width > 500


@pytest.mark.slow
@pytest.mark.parametrize("flip, accuracy, std", [(True, 0.9945, 0.0047), (False, 0.9933, None)])
def test_a_published_network_reaches_its_published_accuracy_on_lfw(shared, tmp_path, monkeypatch, flip, accuracy, std):
    pytest.importorskip("onnxruntime")
    weights, bins = shared / "faces/weights/mobilefacenet_y1.onnx", shared / "faces/lfw.bin"
    options = [] if flip else ["--no-flip"]
    monkeypatch.setattr(
        sys, "argv", ["", "--checkpoint", str(weights), "--bins", str(bins), "--output", str(tmp_path), *options]
    )
    verification.main()
    result = json.loads((tmp_path / "results.json").read_text())["sets"]["lfw"]
    assert round(result["accuracy"], 4) == accuracy
    assert std is None or round(result["std"], 4) == std


def test_the_curve_of_folds_of_one_kind_reaches_one():
    """Genuine pairs first, then the others: folds of either kind tell nothing of the other's rate."""
    features, same = make(0, 800, 1)
    order = np.concatenate([np.flatnonzero(same)[:300], np.flatnonzero(~same)[:300]])
    result = verify(features.reshape(800, 2, 1, -1)[order].reshape(1200, 1, -1), same[order])
    below = result.distances < result.thresholds[:, None]
    np.testing.assert_allclose(result.tpr, below[:, :300].mean(axis=1))
    np.testing.assert_allclose(result.fpr, below[:, 300:].mean(axis=1))


def test_the_rocs_band_is_what_other_sets_of_pairs_would_show():
    """About the spread of TAR at a FAR over sets drawn anew, around the curve."""
    tars, widths = [], []
    for seed in range(60):
        features, same = make(seed, 400, d=4)
        result = verify(features, same)
        genuine, impostor = np.sort(result.distances[same]), np.sort(result.distances[~same])
        tars.append((genuine < impostor[int(0.1 * len(impostor))]).mean())
        if seed < 6:
            band = roc_band(result, same, draw(len(same), 200))
            low, high = band[0.1]
            assert low < tars[-1] < high
            widths.append(high - low)
    assert min(band) * (~same).sum() >= 1
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(tars), rel=0.35)
