import json
import struct
import sys

import numpy as np
import pytest

from evaluate import megaface as command
from evaluate.megaface import megaface, normalised, without_noise
from evaluate.megaface_files import feature_path, read_feature, read_list, read_noises, write_feature


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
    assert result["rank1"] == pytest.approx(rank1) and list(result["rank1"]) == ["10", "100", "1000", "2300"]
    assert 0.1 < result["rank1"]["2300"] < result["rank1"]["10"]
    assert result["tar"]["1e-06"] == pytest.approx(tar)
    assert result["searches"] == 8 * 5 * 4


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


@pytest.mark.parametrize(
    "content", [b"", b"short", struct.pack("<4i", 5, 1, 4, 5), struct.pack("<4id", 1, 1, 8, 6, 1.0)]
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


def test_command(tmp_path, monkeypatch):
    probes, identity, distractors = make(1, distractors=150)
    scrub = [f"{name}/{name}_{row}.png" for row, name in enumerate(identity)]
    far = [f"{k % 3}/x/{k}.jpg" for k in range(150)]
    for kind, names, features in (("facescrub", scrub, probes), ("megaface", far, distractors)):
        (tmp_path / f"{kind}_lst").write_text("\n".join(f"/images/{name}" for name in names))
        for name, feature in zip(names, features):
            write_feature(feature_path(tmp_path / "f" / kind, name, "facemill"), 3 * feature)
    (tmp_path / "noise").write_text("\n".join(f"{k}\t{name}" for k, name in enumerate(far[:50])))
    options = {
        "--facescrub-list": "facescrub_lst",
        "--megaface-list": "megaface_lst",
        "--megaface-noises": "noise",
        "--features": "f",
        "--output": "out",
    }
    monkeypatch.setattr(sys, "argv", ["", *(x for k, v in options.items() for x in (k, str(tmp_path / v)))])
    command.main()
    result = json.loads((tmp_path / "out/results.json").read_text())["megaface"]
    assert result["distractors"] == 100
    assert result["rank1"] == pytest.approx(naive(probes, identity, distractors[50:])[0])
