import json
import shutil
import struct
import sys

import numpy as np
import pytest

from evaluate import megaface as command
from evaluate.megaface import megaface, without_noise
from evaluate.protocols.embeddings import normalised
from evaluate.protocols.megaface_files import (
    feature_path,
    find_noises,
    read_feature,
    read_list,
    read_noises,
    write_feature,
)
from pipelines.common.errors import UserError
from tests.evaluate.networks import write_onnx
from tests.pipelines.photos import jpeg


def make(seed=0, people=8, images=5, distractors=2300, d=16):
    rng = np.random.default_rng(seed)
    identity = np.repeat([f"person {k}" for k in range(people)], images)
    centres = rng.standard_normal((people, d))
    probes = np.repeat(centres, images, axis=0) + 0.8 * rng.standard_normal((people * images, d))
    order = rng.permutation(len(identity))
    return normalised(probes[order]), identity[order], normalised(rng.standard_normal((distractors, d)))


def naive(probes, identity, distractors):
    """Search by search."""
    sizes = [n for n in (10, 100, 1000) if n < len(distractors)] + [len(distractors)]
    scores = probes @ distractors.T
    hits, genuine = {n: [] for n in sizes}, []
    for i in range(len(probes)):
        for j in range(len(probes)):
            if i != j and identity[i] == identity[j]:
                genuine.append(probes[i] @ probes[j])
                for n in sizes:
                    hits[n].append(genuine[-1] > scores[i, :n].max())
    impostor = np.sort(scores.ravel())[::-1]
    limit = impostor[int(1e-6 * scores.size)]
    return {str(n): np.mean(found) for n, found in hits.items()}, np.mean(np.array(genuine) > limit)


def test_is_the_search_written_with_loops():
    probes, identity, distractors = make()
    result = megaface(probes.astype(np.float32), identity, distractors.astype(np.float32))
    rank1, tar = naive(probes, identity, distractors)
    assert result.rank1 == pytest.approx(rank1) and list(result.rank1) == ["10", "100", "1000", "2300"]
    assert 0.1 < result.rank1["2300"] < result.rank1["10"]
    assert result.tar["1e-06"] == pytest.approx(tar)
    assert result.searches == 8 * 5 * 4


def test_noisy_probes_become_their_clean_centre_or_go():
    probes, identity, _ = make()
    noisy = np.arange(len(probes)) % 7 == 0
    kept, names = without_noise(probes, identity, noisy, "drop")
    np.testing.assert_array_equal(kept, probes[~noisy])
    centred, same = without_noise(probes, identity, noisy, "centre")
    assert (same == identity).all()
    np.testing.assert_array_equal(centred[~noisy], probes[~noisy])
    row = np.flatnonzero(noisy)[0]
    centre = probes[(identity == identity[row]) & ~noisy].sum(0)
    np.testing.assert_allclose(centred[row], centre / np.linalg.norm(centre))
    assert len(without_noise(probes, identity, identity == identity[0], "centre")[0]) == len(probes) - 5


def test_feature_files_are_the_development_kits(tmp_path):
    feature = np.arange(5, dtype=np.float32)
    path = feature_path(tmp_path, "A/b.png", "algo")
    write_feature(path, feature)
    assert path.name == "b.png_algo.bin"
    assert path.read_bytes() == struct.pack("<4i5f", 5, 1, 4, 5, *feature)
    np.testing.assert_array_equal(read_feature(path), feature)


def test_row_vectors_are_features_too(tmp_path):
    """The kit writes the bytes of a row in the third place: 4 for a column, 4d for a row."""
    for row_bytes in (20, 4):
        (tmp_path / "f.bin").write_bytes(struct.pack("<4i5f", 1, 5, row_bytes, 5, *range(5)))
        np.testing.assert_array_equal(read_feature(tmp_path / "f.bin"), np.arange(5))


@pytest.mark.parametrize(
    "algorithm, name", [("x", "a.png_x.bin"), ("_x", "a.png_x.bin"), ("_x.bin", "a.png_x.bin"), (".bin", "a.png.bin")]
)
def test_the_algorithm_may_be_the_kits_suffix(tmp_path, algorithm, name):
    assert feature_path(tmp_path, "A/a.png", algorithm) == tmp_path / "A" / name


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        struct.pack("<4i", 5, 1, 4, 5),
        struct.pack("<4id", 1, 1, 8, 6, 1.0),
        struct.pack("<4i6f", 2, 3, 12, 5, *range(6)),  # a matrix
        struct.pack("<4i5f", 5, 1, 20, 5, *range(5)),
        struct.pack("<4i4f", -4, -1, 4, 5, *range(4)),
    ],
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "f.bin").write_bytes(content)
    with pytest.raises(ValueError, match="no MegaFace feature file"):
        read_feature(tmp_path / "f.bin")


def test_lists_and_noises(tmp_path):
    path = tmp_path / "list"
    path.write_text("/some/where/Adam/Adam_1.png\n\nEve/Eve_2.png\n")
    assert read_list(path, 2) == ["Adam/Adam_1.png", "Eve/Eve_2.png"]
    with pytest.raises(ValueError, match="3 components"):
        read_list(path, 3)
    path.write_text("# comment\nAdam_1.png\n17\ta/b/c.jpg\n")
    assert read_noises(path) == {"Adam_1.png", "a/b/c.jpg"}


def test_the_kits_json_lists(tmp_path):
    path = tmp_path / "features_list.json_1000000_1"  # so the kit names them
    path.write_text(json.dumps({"id": ["Adam", "Eve"], "path": ["Adam/Adam_1.png", "x/Eve/Eve_2.png"]}))
    assert read_list(path, 2) == ["Adam/Adam_1.png", "Eve/Eve_2.png"]
    for wrong in ('{"id": ["Adam"]}', '{"path": [1]}', '{"path": 5}', '{"path": ["a/b"]'):
        path.write_text(wrong)
        with pytest.raises(ValueError, match="features_list.json_1000000_1 is JSON, but not"):
            read_list(path, 2)


def test_lists_as_windows_writes_them(tmp_path):
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbfAdam/1.png\r\nEve/caf\xe9.png\r\n  \r\n")
    assert read_list(tmp_path / "list", 2) == ["Adam/1.png", "Eve/caf\udce9.png"]
    (tmp_path / "list").write_bytes(b"Adam/1.png\nx/Adam/1.png\n")
    with pytest.raises(ValueError, match="twice: Adam/1.png"):
        read_list(tmp_path / "list", 2)


def test_noises_are_found_with_or_without_their_folders():
    names = ["Adam/1.png", "Adam/2.png", "Eve/1.png"]
    assert find_noises(names, {"2.png", "x/Eve/1.png", "3.png", "Seth/1.png"}).tolist() == [1, 2]
    assert find_noises(names, set()).tolist() == []
    with pytest.raises(ValueError, match="1.png fits 2 images, Adam/1.png and others"):
        find_noises(names, {"1.png"})


def write_all(folder, scrub, probes, far, distractors):
    """Lists and features of both sets; the options that name them."""
    for kind, names, features in (("facescrub", scrub, probes), ("megaface", far, distractors)):
        (folder / f"{kind}_lst").write_text("\n".join(f"/images/{name}" for name in names))
        for name, feature in zip(names, features):
            write_feature(feature_path(folder / "f" / kind, name, "facemill"), 3 * feature)
    lists = {"--facescrub-list": "facescrub_lst", "--megaface-list": "megaface_lst"}
    return lists | {"--features": "f", "--output": "out"}


def run_command(monkeypatch, folder, options):
    monkeypatch.setattr(sys, "argv", ["", *(x for k, v in options.items() for x in (k, str(folder / v)))])
    command.main()
    return json.loads((folder / "out/results.json").read_text())["megaface"]


def names_of(identity, distractors):
    return [f"{name}/{name}_{row}.png" for row, name in enumerate(identity)], [
        f"{k % 3}/x/{k}.jpg" for k in range(len(distractors))
    ]


def test_command(tmp_path, monkeypatch, capsys):
    probes, identity, distractors = make(1, distractors=150)
    scrub, far = names_of(identity, distractors)
    options = write_all(tmp_path, scrub, probes, far, distractors)
    (tmp_path / "noise").write_text("\n".join(f"{k}\t{name}" for k, name in enumerate(far[:50])))
    (tmp_path / "other").write_text("\n".join(name.replace(".png", ".jpg") for name in scrub[:3]))
    options |= {"--megaface-noises": "noise", "--facescrub-noises": "other"}
    result = run_command(monkeypatch, tmp_path, options)
    assert result["distractors"] == 100
    assert result["rank1"] == pytest.approx(naive(probes, identity, distractors[50:])[0])
    assert result["noises"] == {"facescrub": {"listed": 3, "found": 0}, "megaface": {"listed": 50, "found": 50}}
    told = [line for line in capsys.readouterr().out.splitlines() if "noises" in line]
    assert told[0].startswith("0 of 3 noises in") and "are they named as in the list" in told[0]
    assert told[1].startswith("50 of 50 noises in") and told[1].endswith("are images of the megaface list")
    sys.argv.append("--json")
    command.main()
    assert json.loads(capsys.readouterr().out)["megaface"] == result


@pytest.mark.parametrize("kind, row, name", [("megaface", 7, "1/x/7.jpg"), ("facescrub", 3, "_3.png")])
def test_one_feature_that_is_not_finite_is_named(tmp_path, monkeypatch, kind, row, name):
    probes, identity, distractors = make(1, distractors=20)
    {"megaface": distractors, "facescrub": probes}[kind][row, 4] = np.nan
    scrub, far = names_of(identity, distractors)
    with pytest.raises(ValueError, match=rf"{kind} are not finite for 1 of \d+ images, the first is .*{name}$"):
        run_command(monkeypatch, tmp_path, write_all(tmp_path, scrub, probes, far, distractors))
    assert not (tmp_path / "out").exists()


def test_noises_that_leave_nothing(tmp_path, monkeypatch):
    probes, identity, distractors = make(1, distractors=5)
    scrub, far = names_of(identity, distractors)
    options = write_all(tmp_path, scrub, probes, far, distractors) | {"--megaface-noises": "megaface_lst"}
    with pytest.raises(ValueError, match="leaves no distractor"):
        run_command(monkeypatch, tmp_path, options)


def test_features_of_a_checkpoint_are_written_and_read_again(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    options = write_images(tmp_path)
    write_onnx(tmp_path / "n.onnx")
    network = {"--checkpoint": "n.onnx", "--images": "i"}
    computed = run_command(monkeypatch, tmp_path, options | network)
    taken = json.loads((tmp_path / "out/results.json").read_text())["input"]
    assert taken == "RGB in [-1, 1], as the graph normalises nothing"
    assert run_command(monkeypatch, tmp_path, options) == computed and computed["probes"] == 3
    (tmp_path / "i/megaface/0/x/2.jpg").write_bytes(jpeg(0)[:200])
    with pytest.raises(ValueError, match="megaface/0/x/2.jpg"):
        run_command(monkeypatch, tmp_path, options | network)
    assert run_command(monkeypatch, tmp_path, options) == computed  # nothing was written over


def write_images(folder):
    """Images of both sets; the options that name their lists."""
    scrub, far = ["a/1.jpg", "a/2.jpg", "b/1.jpg"], ["0/x/1.jpg", "0/x/2.jpg"]
    for number, name in enumerate([f"facescrub/{name}" for name in scrub] + [f"megaface/{name}" for name in far]):
        (folder / "i" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "i" / name).write_bytes(jpeg(number))
    return write_all(folder, scrub, [], far, [])


@pytest.mark.parametrize("written", [0, 1, 3, 4])  # files before the kill: in the first set or in the second
def test_features_of_two_networks_are_not_scored_together(tmp_path, monkeypatch, written):
    pytest.importorskip("onnxruntime")
    options = write_images(tmp_path)
    for seed, name in enumerate("ab"):
        write_onnx(tmp_path / f"{name}.onnx", seed=seed)
    first, second = (options | {"--checkpoint": f"{name}.onnx", "--images": "i"} for name in "ab")
    computed = run_command(monkeypatch, tmp_path, first)
    files = iter(range(written))

    def killed(*_):
        if next(files, None) is None:
            raise KeyboardInterrupt
        write_feature(*_)

    with monkeypatch.context() as patch:
        patch.setattr(command, "write_feature", killed)
        with pytest.raises(KeyboardInterrupt):
            run_command(monkeypatch, tmp_path, second)
    with pytest.raises(UserError, match="of two networks, or of a command that was interrupted.*--checkpoint"):
        run_command(monkeypatch, tmp_path, options)
    run_command(monkeypatch, tmp_path, second)
    assert run_command(monkeypatch, tmp_path, options) != computed
    shutil.move(tmp_path / "f/megaface", tmp_path / "megaface")
    run_command(monkeypatch, tmp_path, first)
    shutil.rmtree(tmp_path / "f/megaface")
    shutil.move(tmp_path / "megaface", tmp_path / "f/megaface")
    with pytest.raises(UserError, match="of two networks"):
        run_command(monkeypatch, tmp_path, options)


def test_features_of_two_lengths_are_told(tmp_path, monkeypatch):
    probes, identity, distractors = make(1, distractors=20)
    scrub, far = names_of(identity, distractors)
    options = write_all(tmp_path, scrub, probes[:, :8], far, distractors)
    with pytest.raises(UserError, match="two networks: they have 8 numbers in .*facescrub and 16 numbers in .*mega"):
        run_command(monkeypatch, tmp_path, options)


@pytest.mark.parametrize("lost", ["facescrub/a/2.jpg", "megaface/0/x/2.jpg"])
def test_a_missing_image_is_told_before_the_network_is_opened(tmp_path, monkeypatch, lost):
    options = write_images(tmp_path)
    (tmp_path / "i" / lost).unlink()
    kind, _, name = lost.partition("/")
    with pytest.raises(FileNotFoundError, match=f"1 of . images are missing in .*{kind}, the first is {name}"):
        run_command(monkeypatch, tmp_path, options | {"--checkpoint": "none.onnx", "--images": "i"})


@pytest.mark.parametrize(
    "treatment, noisy, enough", [("drop", 1, False), ("centre", 1, True), ("centre", 2, False), ("drop", 0, True)]
)
def test_noises_that_leave_no_search_are_told_before_the_network_is_opened(
    tmp_path, monkeypatch, treatment, noisy, enough
):
    options = write_images(tmp_path) | {"--checkpoint": "none.onnx", "--images": "i", "--facescrub-noises": "noises"}
    (tmp_path / "noises").write_text("\n".join(["a/1.jpg", "a/2.jpg"][:noisy]))
    arguments = [x for key, value in options.items() for x in (key, str(tmp_path / value))]
    monkeypatch.setattr(sys, "argv", ["", *arguments, "--noisy-probes", treatment])
    with pytest.raises(FileNotFoundError if enough else UserError, match="none.onnx" if enough else "two images"):
        command.main()
