"""The command finds what was planted in a folder, and ``prepare convert`` does what its file of changes says."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from evaluate import labels as command
from evaluate.features import options
from evaluate.features.network import Network
from pipelines.common.errors import UserError
from pipelines.prepare import __main__ as prepare
from pipelines.sources import open_source
from tests.command import called
from tests.evaluate.test_overlap import Pixels
from tests.pipelines.photos import encoded, people_in, picture

IMAGES = 4


def image_of(person, number):
    """Images of a person are alike up to noise, those of two are not."""
    pixels = np.asarray(picture(person), int) + np.random.default_rng([person, number]).integers(-20, 20, (112, 112, 3))
    return encoded(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))


@pytest.fixture
def faces(tmp_path):
    """Two sets; in the first one image is another's, one is nobody's; the second has the first's person 3 again."""
    for person in range(30):
        for number in range(IMAGES):
            shown = {(4, 2): 8, (6, 0): 77}.get((person, number), person)
            path = tmp_path / "a" / f"p{person:02d}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_of(shown, number + 10 * (shown != person)))
    for person in (40, 3):
        (tmp_path / "b" / f"q{person:02d}").mkdir(parents=True)
        for number in range(5, 5 + IMAGES + 1):
            (tmp_path / "b" / f"q{person:02d}" / f"{number}.jpg").write_bytes(image_of(person, number))
    return tmp_path


def call(monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    main()


def test_from_the_finding_to_a_clean_set(faces, monkeypatch, capsys):
    monkeypatch.setattr(options, "load_network", lambda *_: Network(Pixels(), 56))
    data = faces / "a", faces / "b"
    call(monkeypatch, command.main, *data, "--checkpoint", "any", "--output", faces / "found")
    result = json.loads((faces / "found" / "labels.json").read_text())
    assert (result["format"], result["images"], result["identities"]) == (1, 130, 32)
    errors = [(error["error"], error["identity"], error["other"]) for error in result["errors"]]
    assert errors[0][:2] == ("nobody", "a/p06") and errors[1] == ("moved", "a/p04", "a/p08")
    assert errors[2:] == [("merged", "a/p03", "b/q03")] * IMAGES  # to the larger of the two
    said = capsys.readouterr().out
    assert "1  Like nobody: left out" in said and "4  One person under two labels" in said
    with Image.open(faces / "found" / "labels.png") as sheet:
        assert np.ptp(np.asarray(sheet.convert("RGB")), axis=2).max() > 50  # photographs are in it, not just words

    changes = faces / "found" / "changes.txt"
    call(monkeypatch, prepare.main, "convert", *data, faces / "clean", "--changes", changes)
    people = people_in(open_source(faces / "clean"))
    assert len(people) == 31 and "a/p03" not in people
    assert people["b/q03"] == [image_of(3, number) for number in range(IMAGES)] + [
        image_of(3, number) for number in range(5, 5 + IMAGES + 1)
    ]
    assert people["a/p08"] == [image_of(8, 12)] + [image_of(8, number) for number in range(IMAGES)]
    assert len(people["a/p06"]) == IMAGES - 1
    assert "nobody else" in (faces / "clean" / "left_out.jsonl").read_text()

    call(monkeypatch, command.main, faces / "clean", "--checkpoint", "any", "--output", faces / "again")
    assert json.loads((faces / "again" / "labels.json").read_text())["errors"] == []

    features = faces / "found" / "features.npy"
    call(monkeypatch, command.main, *data, "--features", features, "--output", faces / "third", "--merge", "1")
    thirds = json.loads((faces / "third" / "labels.json").read_text())
    capsys.readouterr()
    sys.argv.append("--json")
    command.main()
    assert json.loads(capsys.readouterr().out) == thirds
    assert [error["error"] for error in thirds["errors"]] == ["nobody", "moved"] and thirds["merge"] == 1


def test_a_threshold_that_leaves_no_label_two_images(faces, monkeypatch, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(30 * IMAGES, 1, 16)) + 3 * np.eye(30 * IMAGES, 16)[:, None]
    np.save(tmp_path / "x.npy", vectors.astype(np.float32))
    data = faces / "a", "--features", tmp_path / "x.npy", "--output", tmp_path / "out"
    with pytest.raises(UserError, match=r"by --stray 0\.99 no two images of a label .* lower"):
        call(monkeypatch, command.main, *data, "--stray", "0.99")
    assert not (tmp_path / "out" / "labels.json").exists()


def test_features_of_other_data_are_refused(faces, monkeypatch):
    np.save(faces / "x.npy", np.ones((7, 16), np.float32))
    with pytest.raises(UserError, match=r"x\.npy must hold .* \(120, d\), .* \(7, 16\)"):
        call(monkeypatch, command.main, faces / "a", "--features", faces / "x.npy", "--output", faces / "out")
    features = "--features", faces / "x.npy", "--views", "1"
    np.save(faces / "x.npy", np.full((120, 16), np.nan, np.float32))
    with pytest.raises(UserError, match=r"not finite for 120 of 120 images, the first is .*p00/0\.jpg"):
        call(monkeypatch, command.main, faces / "a", *features, "--output", faces / "out")
    assert not (faces / "out").exists()
    (faces / "out").touch()
    with pytest.raises(NotADirectoryError):  # before any work
        call(monkeypatch, command.main, faces / "a", "--checkpoint", "none", "--output", faces / "out")


def test_features_of_somebody_else_are_left_alone(tmp_path):
    """IJB's, say; this command's own may be replaced."""
    np.save(tmp_path / "features.npy", np.ones(3))
    ended = called(command.main, "none", "--checkpoint", "none", "--output", tmp_path)
    assert ended.code == 2 and "features.npy is there, and would be replaced" in ended.error
    (tmp_path / "labels.json").touch()
    command.check_own_features(tmp_path)


def test_views_are_of_features(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, command.main, "a", "--checkpoint", "c", "--views", "2")
    assert "--views is for --features" in capsys.readouterr().err
