"""The few-shot benchmark: its splits, its figures, and the whole of it by its command."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.few_shot import CONFIG, check_made_of, compared, draw, main, recognised, verified, write
from evaluate.features.embed import Embedder
from evaluate.features.ranks import World
from evaluate.protocols.folds import ACCURACY_THRESHOLDS, XQLFW_THRESHOLDS, verify
from models import create_model
from pipelines.common.errors import UserError
from pipelines.sources import open_source
from pipelines.sources.bins import write_bin
from pipelines.sources.memory import MemorySource
from tests.pipelines.face_source import ENCODED, FaceSource
from tests.pipelines.photos import jpeg
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


class Means(torch.nn.Module):
    """Means of the image's parts, moved by the eyes."""

    wants_landmarks = True

    def forward(self, images, landmarks):
        return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1) + landmarks[:, 0].sum(1, keepdim=True)


def test_sets_are_judged_as_they_are_published(tmp_path, monkeypatch):
    """XQLFW by its own thresholds, with the landmarks that lie beside a set; and only those that are asked for."""
    encoded = [jpeg(seed, 32) for seed in range(40)]
    same = np.arange(20) % 2 == 0
    for name in ("xqlfw", "other"):
        write_bin(tmp_path / f"{name}.bin", encoded, same)
    landmarks = np.random.default_rng(0).random((40, 5, 2), np.float32)
    np.save(tmp_path / "xqlfw.landmarks.npy", landmarks)
    embed = Embedder(Means(), 32, World(torch.device("cpu")), threads=1)
    monkeypatch.setattr("benchmarks.few_shot.embedder", lambda *_: embed)
    judged = []
    monkeypatch.setattr("benchmarks.few_shot.verify", lambda *given: judged.append(given) or verify(*given))
    known = tmp_path / "sets.json"
    verified(Path("any"), [tmp_path / "other.bin"], known, 1)
    found = verified(Path("any"), [tmp_path / "xqlfw.bin"], known, 1)
    (_, _, usual), (features, _, own) = judged
    np.testing.assert_allclose(features, embed(MemorySource(encoded), landmarks.__getitem__), rtol=1e-5, atol=1e-5)
    assert usual is ACCURACY_THRESHOLDS and own is XQLFW_THRESHOLDS
    assert found == {"xqlfw": verify(features, same, XQLFW_THRESHOLDS).folds.tolist()}
    assert verified(Path("any"), [tmp_path / "xqlfw.bin"], known, 1) == found and len(judged) == 2


def test_a_folder_is_of_one_network_and_its_data(tmp_path):
    runs, made_of = tmp_path / "runs", (Path("/a"), Path("/faces"))
    for _ in range(2):
        check_made_of(runs, *made_of)
    for other in ((Path("/b"), Path("/faces")), (Path("/a"), Path("/others"))):
        with pytest.raises(UserError, match="runs of another network or other data; .* --runs"):
            check_made_of(runs, *other)
    check_made_of(runs, *made_of)
    (runs / "made_of.json").rename(runs / "sets.json")  # figures of nobody knows which network
    with pytest.raises(UserError, match="another network"):
        check_made_of(runs, *made_of)


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
    monkeypatch.setattr("benchmarks.few_shot.embedder", None)
    main()
    assert json.loads(written.read_text())["rows"] == rows
    sys.argv.append("schedule.epochs=3")
    with pytest.raises(UserError, match="holds a run of another config; give other overrides another --name"):
        main()


def write_faces(folder):
    """Twelve identities of five images each."""
    generator = np.random.default_rng(0)
    for identity in range(12):
        (folder / f"{identity:02d}").mkdir(parents=True)
        for image in range(5):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{identity:02d}" / f"{image}.jpg")
