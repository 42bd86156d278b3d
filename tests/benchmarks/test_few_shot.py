"""The few-shot benchmark: its splits, its figures, and the whole of it by its command."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.few_shot import CONFIG, compared, draw, main, recognised, write
from models import create_model
from pipelines.sources import open_source
from pipelines.sources.bins import write_bin
from tests.pipelines.face_source import ENCODED, FaceSource
from train.config import load_config


def test_splits():
    labels = np.array([0] * 10 + [1] * 3 + [2] * 20 + [3] * 4 + [4] * 13)  # 1 has too few
    source = FaceSource(labels=labels)
    split = draw(source, identities=4, images=2, seed=3)
    of_tuning = labels[split.tuning]
    assert split.tuning.shape == (4, 2) and (of_tuning == split.labels[:, None]).all()
    assert sorted(of_tuning[:, 0]) == [0, 2, 3, 4]
    assert (labels[split.held_out] == of_tuning[split.rows, 0]).all()
    assert sorted([*split.tuning.ravel(), *split.held_out]) == list(np.flatnonzero(labels != 1))
    again, other = (draw(source, identities=4, images=2, seed=seed) for seed in (3, 4))
    assert (again.tuning == split.tuning).all() and not (other.tuning == split.tuning).all()
    with pytest.raises(ValueError, match="only 4 identities have 4 images"):
        draw(source, identities=5, images=2, seed=0)


def test_what_is_tuned_on(tmp_path):
    split = draw(FaceSource(), identities=3, images=2, seed=0)
    write(FaceSource(), split, tmp_path)
    written = open_source(tmp_path)
    images, labels = written.read(np.arange(len(written)))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [image.tobytes() for image in images] == [ENCODED[index] for index in split.tuning.ravel()]


def test_figures():
    """Pair by pair and probe by probe."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(12, 4))
    rows = np.repeat(np.arange(12), 9)
    everything = centres[:, None] + 0.3 * generator.normal(size=(12, 11, 4))
    everything /= np.linalg.norm(everything, axis=2, keepdims=True)
    tuning, held_out = everything[:, :2], everything[:, 2:].reshape(-1, 4)
    found = recognised(tuning, held_out, rows)

    means = [torch.nn.functional.normalize(torch.tensor(t.mean(0)), dim=0).numpy() for t in tuning]
    impostor = sorted(a @ b for i, a in enumerate(held_out) for j, b in enumerate(held_out[:i]) if rows[i] != rows[j])
    assert len(impostor) == 12 * 11 // 2 * 81
    limit = impostor[-1 - int(0.001 * len(impostor))]
    for identity in range(12):
        own = held_out[rows == identity]
        right = [max(range(12), key=lambda k: probe @ means[k]) == identity for probe in own]
        assert found["rank-1"][identity] == pytest.approx(np.mean(right))
        genuine = [own[i] @ own[j] > limit for i in range(9) for j in range(i)]
        assert found["TAR at FAR 1e-3"][identity] == pytest.approx(np.mean(genuine))
    assert all(0 < np.mean(figure) < 1 for figure in found.values())


def test_what_is_compared():
    """Of one split a mean and its error; of several, each identity's gains go together."""
    before, after = {"x": [0.5, 0.6, 0.7]}, {"x": [0.6, 0.6, 0.9]}
    (row,) = compared([before], [after], [np.array([7, 3, 4])])
    gains = np.array([10, 0, 20])
    assert row["before"] == pytest.approx(60) and row["after"] == pytest.approx(70)
    assert row["gain"] == pytest.approx(gains.mean()) and row["error"] == pytest.approx(gains.std(ddof=1) / 3**0.5)
    turned = [{"x": figures["x"][::-1]} for figures in (before, after)]
    (again,) = compared([before, turned[0]], [after, turned[1]], [np.array([7, 3, 4]), np.array([4, 3, 7])])
    assert again == pytest.approx(row)
    (other,) = compared([before, before], [after, after], [np.array([7, 3, 4]), np.array([1, 2, 5])])
    assert other["error"] == pytest.approx(np.tile(gains, 2).std(ddof=1) / 6**0.5)


def test_the_config():
    config = load_config(CONFIG)
    assert config.model.freeze == ["!fc.weight"] and config.head.init == "class_means"


@pytest.mark.slow
def test_splits_tunes_and_measures(tmp_path, monkeypatch):
    write_faces(tmp_path / "faces")
    source = open_source(tmp_path / "faces")
    first = np.arange(10) * 5
    pairs = np.stack([first, first + 1, first, first + 7], axis=1)  # of one person, of two
    encoded, _ = source.read(pairs.ravel())
    write_bin(tmp_path / "faces.bin", encoded, np.arange(20) % 2 == 0)
    torch.save(create_model("mbf", 16, 32, width=0.25).state_dict(), tmp_path / "model.pt")
    command = ["benchmarks.few_shot", tmp_path / "model.pt", "--data", tmp_path / "faces", "--output", tmp_path]
    command += ["--bins", tmp_path / "faces.bin", "--identities", 6, "--splits", 0, 1, "--runs", tmp_path / "runs"]
    command += ["--override", "data.batch_size=4", "data.threads=1", "schedule.epochs=2", "device=cpu"]
    command += ['model.freeze=["!features.layers.2.weight"]', "verify.every_steps=1000", "checkpoint.every_steps=1000"]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    main()
    (written,) = tmp_path.glob("few_shot_tuned_*.json")
    rows = json.loads(written.read_text())["rows"]
    assert [row["figure"] for row in rows] == ["rank-1", "TAR at FAR 1e-3", "faces"]
    assert len(list(tmp_path.glob("runs/*/tuned/model.pt"))) == 2

    monkeypatch.setattr("benchmarks.few_shot.train", None)  # the second time nothing is left to do
    monkeypatch.setattr("benchmarks.few_shot.embeddings", None)
    main()
    assert json.loads(written.read_text())["rows"] == rows


def write_faces(folder):
    """Twelve identities of five images each."""
    generator = np.random.default_rng(0)
    for identity in range(12):
        (folder / f"{identity:02d}").mkdir(parents=True)
        for image in range(5):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{identity:02d}" / f"{image}.jpg")
