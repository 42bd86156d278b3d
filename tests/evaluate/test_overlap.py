"""Identities planted in two data sets are found, and no others."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate import overlap, verification
from evaluate.features import options
from evaluate.features.embed import Embedder
from evaluate.features.network import Network
from evaluate.features.ranks import World
from evaluate.overlap import Identities, images_by_identity, mean_embeddings, nearest, open_identities
from pipelines.loading.landmarks import template_landmarks
from pipelines.prepare.convert import convert
from pipelines.sources import open_source, open_sources
from pipelines.sources.bins import write_bin
from pipelines.sources.memory import MemorySource
from tests.evaluate.features.test_pairs import Means
from tests.pipelines.photos import encoded, jpeg, picture, write_folder


class Pixels(torch.nn.Module):
    """An embedding of 7 x 7 means: the same picture is near itself and far from others."""

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 7).flatten(1)


def embedder(model):
    return Embedder(model, 56, World(torch.device("cpu")), batch_size=2, threads=1)


def test_nearest_in_blocks_is_that_of_the_whole_matrix(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(50, 8, generator=generator), torch.randn(33, 8, generator=generator)
    similarity = (second @ first.T).numpy()
    for block in (7, 4096):
        monkeypatch.setattr(overlap, "_BLOCK", block)
        cosines, rows = nearest(first, second, torch.device("cpu"))
        assert rows.tolist() == similarity.argmax(axis=1).tolist()
        np.testing.assert_allclose(cosines, similarity.max(axis=1), rtol=1e-5)


def test_some_images_of_each_identity():
    labels = np.array([4, -1, 2, 4, 4, 4, 2, 4])
    indices, of = images_by_identity(MemorySource([b"x"] * 8, labels), 3)
    assert indices.tolist() == [2, 6, 0, 4, 7] and of.tolist() == [2, 2, 4, 4, 4]


def test_means_are_those_of_unit_embeddings():
    images = [jpeg(seed) for seed in range(5)]
    source = MemorySource(images, np.array([1, 0, 1, 1, 3]))
    means, labels = mean_embeddings(embedder(Pixels()), Identities(source, template_landmarks), most=9)
    assert labels.tolist() == [0, 1, 3]
    alone = Identities(MemorySource(images, np.arange(5)), template_landmarks)
    units, _ = mean_embeddings(embedder(Pixels()), alone, most=9)
    expected = torch.nn.functional.normalize(units[[0, 2, 3]].sum(dim=0), dim=0)
    torch.testing.assert_close(means[1], expected)
    torch.testing.assert_close(means[[0, 2]], units[[1, 4]])


def test_images_without_an_identity_are_told():
    source = MemorySource([jpeg(0), jpeg(1)], np.array([-1, -1]), name="train.rec")
    with pytest.raises(ValueError, match=r"no image has an identity, as train\.rec, image 0"):
        mean_embeddings(embedder(Pixels()), Identities(source, template_landmarks), most=9)


def test_images_of_pairs_have_the_landmarks_beside_them(tmp_path):
    """The same image with other landmarks is another one, as in verification."""
    encoded = [jpeg(seed) for seed in (0, 1, 0, 1)]
    write_bin(tmp_path / "x.bin", encoded, np.array([False, False]))
    landmarks = np.zeros((4, 5, 2), np.float32)
    landmarks[2:] = np.arange(20).reshape(2, 5, 2) / 20
    np.save(tmp_path / "x.landmarks.npy", landmarks)
    found, labels = mean_embeddings(embedder(Means()), open_identities(tmp_path / "x.bin"), most=1)
    views = embedder(Means())(MemorySource(encoded), landmarks.__getitem__)
    assert labels.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(found, torch.nn.functional.normalize(torch.from_numpy(views).sum(dim=1)))


@pytest.mark.parametrize("option", ["--images", "--batch-size", "--threads"])
def test_counts_below_one_are_refused(option, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["overlap", "a", "b", "--checkpoint", "c", option, "0"])
    with pytest.raises(SystemExit, match="2"):
        overlap.main()
    assert f"{option}: 0 is less than 1" in capsys.readouterr().err


def test_a_network_without_numbers_finds_no_set_clean():
    """A leak check must not pass because NaN is near to nothing."""

    class Broken(Pixels):
        def forward(self, images):
            return super().forward(images) * torch.nan

    source = MemorySource([jpeg(seed) for seed in range(5)], np.array([1, 0, 1, 1, 3]), name="test.bin")
    with pytest.raises(ValueError, match=r"not finite for 2 of 2 images, the first is test\.bin, image 1"):
        mean_embeddings(embedder(Broken()), Identities(source, template_landmarks), most=9)


@pytest.mark.parametrize("kind", ["folder", "bin", "both"])
def test_command(tmp_path, monkeypatch, capsys, kind):
    people = write_folder(tmp_path / "faces", {"a": 2, "b": 2, "c": 2, "d": 2})
    convert(open_source(tmp_path / "faces"), tmp_path / "train", indices=np.arange(6))
    test = tmp_path / "test"
    if kind == "bin":
        test = tmp_path / "test.bin"
        write_bin(test, [people["d"][0], jpeg(50), jpeg(51), people["b"][0]], np.array([True, False]))
    if kind == "both":
        write_bin(tmp_path / "other.bin", [jpeg(60), jpeg(61)], np.array([True]))
    if kind != "bin":
        for name, image in (("x", people["b"][0]), ("y", people["d"][0]), ("z", jpeg(50))):
            (test / name).mkdir(parents=True)
            (test / name / "1.jpg").write_bytes(image)
    monkeypatch.setattr(options, "load_network", lambda *_: Network(Pixels(), 56))
    # A mean of two random pictures is at 0.7 to each of them.
    tests = [test, tmp_path / "other.bin"][: 1 + (kind == "both")]
    arguments = [tmp_path / "train", *tests, "--checkpoint", "any", "--output", tmp_path / "out", "--images", "1"]
    monkeypatch.setattr(sys, "argv", ["overlap", *map(str, arguments)])
    overlap.main()
    result = json.loads((tmp_path / "out" / "overlap.json").read_text())
    assert result["format"] == 1 and result["input"] == "RGB in [-1, 1]" and result["threshold"] == 0.6
    (found,) = result["shared"]
    assert found == {
        "first": "b",
        "second": {"bin": "3", "folder": "x", "both": "test/x"}[kind],
        "cosine": pytest.approx(1, abs=1e-3),
    }
    said = " ".join(capsys.readouterr().out.split())
    assert {"bin": "1 of 4 images of test.bin", "folder": "1 of 3 identities of", "both": "1 of 5 identities of"}[
        kind
    ] in said
    if kind == "folder":
        sys.argv.append("--json")
        overlap.main()
        assert json.loads(capsys.readouterr().out) == result
    clean = open_sources([tmp_path / "train"], [tmp_path / "out" / "changes.txt"])
    assert [clean.identity(label) for label in clean.labels(np.arange(6)) if label >= 0] == ["a", "a", "c", "c"]
    with Image.open(tmp_path / "out" / "overlap.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert np.ptp(pixels, axis=2).max() > 50  # photographs are in it, and not just words


def test_the_reason_is_the_most_similar_of_several(tmp_path, monkeypatch):
    """A is in the test set twice, as it is and half covered."""
    people = write_folder(tmp_path / "train", {"A": 1, "B": 1})
    whole = picture(0)
    next((tmp_path / "train/A").iterdir()).write_bytes(encoded(whole))
    half = whole.copy()
    half.paste(picture(77).crop((0, 0, 112, 30)), (0, 0))
    for name, image in (("x", encoded(half)), ("y", encoded(whole)), ("z", people["B"][0])):
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "1.jpg").write_bytes(image)
    monkeypatch.setattr(options, "load_network", lambda *_: Network(Pixels(), 56))
    words = [tmp_path / "train", tmp_path / "test", "--checkpoint", "any", "--output", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["overlap", *map(str, words)])
    overlap.main()
    shared = json.loads((tmp_path / "out/overlap.json").read_text())["shared"]
    assert {(entry["first"], entry["second"]) for entry in shared} == {("A", "x"), ("A", "y"), ("B", "z")}
    told = (tmp_path / "out/changes.txt").read_text()
    assert "A is y (1.00)" in told and "A is x" not in told and "B is z (1.00)" in told


def test_embeddings_of_the_chosen_images_are_kept(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "train", {"a": 3, "b": 3})
    write_folder(tmp_path / "test", {"c": 3, "d": 1})
    monkeypatch.setattr(options, "load_network", lambda *_: Network(Pixels(), 56))

    def run(*more):
        words = [tmp_path / "train", tmp_path / "test", "--checkpoint", "any", "--output", tmp_path / "out", *more]
        monkeypatch.setattr(sys, "argv", ["overlap", *map(str, words), "--images", "2", "--threshold", "-1"])
        overlap.main()
        return json.loads((tmp_path / "out" / "overlap.json").read_text()), " ".join(capsys.readouterr().out.split())

    expected, said = run()
    assert len(expected["shared"]) == 2 and "embeddings are in" not in said
    for there in (0, 1):
        found, said = run("--cache", tmp_path / "cache")
        assert found == expected
        assert f"{4 * there} of 4 embeddings are in" in said and f"{3 * there} of 3 embeddings are in" in said


def test_sets_of_pairs_are_embedded_once_by_both_commands(tmp_path, monkeypatch, capsys):
    """Each image once, though it is in several pairs, and of several sets each alone, as verification takes them."""
    people = write_folder(tmp_path / "train", {"a": 2, "b": 2})
    names = ["x.bin", "y.bin"]
    for place, name in enumerate(names):
        images = [jpeg(50 + 12 * place + seed) for seed in range(12)] + [people["b"][0]] * 8
        write_bin(tmp_path / name, images, np.arange(10) % 2 == 0)
    monkeypatch.setattr(options, "load_network", lambda *_: Network(Pixels(), 56))
    bins, rest = [str(tmp_path / name) for name in names], ["--checkpoint", "any", "--cache", str(tmp_path / "cache")]
    found = ["overlap", str(tmp_path / "train"), *bins, *rest, "--output", str(tmp_path / "out"), "--images", "1"]
    monkeypatch.setattr(sys, "argv", [*found, "--threshold", ".99"])
    overlap.main()
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("0 of 13 embeddings are in") == 2 and "2 of 26 images of x.bin, y.bin are also" in said
    shared = json.loads((tmp_path / "out" / "overlap.json").read_text())["shared"]
    assert sorted(entry["second"] for entry in shared) == ["x.bin/12", "y.bin/12"]
    monkeypatch.setattr(sys, "argv", ["verification", "--bins", *bins, *rest])
    verification.main()
    assert " ".join(capsys.readouterr().out.split()).count("13 of 13 embeddings are in") == 2
