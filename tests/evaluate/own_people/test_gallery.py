import numpy as np
import pytest

from evaluate.own_people.faces import Faces, open_folder
from evaluate.own_people.gallery import own_gallery
from evaluate.own_people.pairs import own_pairs
from evaluate.protocols.embeddings import normalised
from evaluate.protocols.intervals import wilson
from evaluate.reporting.uncertainty import measured_unlike
from pipelines.common.errors import UserError


def faces(rng, centres, who, prefix=""):
    vectors = normalised(centres[who] + 1.1 * rng.standard_normal((len(who), centres.shape[1])))
    return Faces([f"{number}.jpg" for number in range(len(who))], [f"{prefix}{one}" for one in who], vectors)


def test_gallery_is_the_matrix_of_all_scores():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((60, 12))
    gallery = faces(rng, centres, rng.permutation(np.repeat(np.arange(40), 2)))
    probes, unknown = (
        faces(rng, centres, rng.integers(0, 40, 150)),
        faces(rng, centres, np.repeat(np.arange(40, 60), 5)),
    )
    found = own_gallery(gallery, probes, unknown, fpirs=(0.001, 0.02, 0.1, 0.2))
    own = np.array(probes.names)[:, None] == np.array(gallery.names)
    scores = probes.vectors @ gallery.vectors.T
    mate = np.where(own, scores, -np.inf).max(axis=1)
    rank = (~own & (scores > mate[:, None])).sum(axis=1)
    for k in (1, 5, 10):
        share = np.mean(rank < k)
        low, high = found.interval[f"rank{k}"]
        assert getattr(found, f"rank{k}") == pytest.approx(share, abs=1e-12)
        assert low < share < high
    best = np.sort((unknown.vectors @ gallery.vectors.T).max(axis=1))[::-1]
    assert found.tpir.keys() == {"0.02", "0.1", "0.2"}  # 100 images of unknown people do not tell 0.001
    for fpir, place in (("0.02", 1), ("0.1", 9), ("0.2", 19)):
        assert found.threshold[fpir] == pytest.approx(best[place], abs=1e-12)
        assert found.tpir[fpir] == np.mean((rank == 0) & (mate > best[place] + 1e-12))
    low, high = found.threshold_interval.pop("0.2")
    assert low < found.threshold["0.2"] < high
    assert found.threshold_interval == {"0.02": None, "0.1": None}  # nine are above the latter
    wrong = found.confusions["Probes that find somebody else"]
    assert all(one.people[0] != one.people[1] for one in wrong)
    assert wrong[0].score == pytest.approx(np.where(own, -np.inf, scores)[rank > 0].max())


def test_people_who_are_not_enrolled_tell_nothing_of_those_who_are():
    """All ten are found: how sure that is does not depend on how many unknown people were looked at."""
    rng = np.random.default_rng(0)
    centres, who = rng.standard_normal((1010, 64)), np.arange(10)
    vectors = normalised(centres)
    gallery = Faces([f"{one}.jpg" for one in who], [str(one) for one in who], vectors[:10])
    unknown = Faces(["x.jpg"] * 1000, [str(one) for one in range(1000)], vectors[10:])
    found = own_gallery(gallery, gallery, unknown, (0.01,))
    assert found.rank1 == found.tpir["0.01"] == 1
    assert found.interval["rank1"] == found.interval["0.01"] == pytest.approx(wilson(1, 10))


def test_two_sets_of_people_are_not_compared_in_pairs():
    """They have as many images of each person, and other names; the same people at another place are compared."""
    rng = np.random.default_rng(0)
    centres, who = rng.standard_normal((12, 8)), np.repeat(np.arange(8), 3)
    unknown = faces(rng, centres, np.repeat(np.arange(8, 12), 4))
    sets = [faces(rng, centres, who), faces(rng, centres, who), faces(rng, centres, who, prefix="x")]
    for found in ([own_pairs(one, [0.1]) for one in sets], [own_gallery(one, one, unknown, [0.1]) for one in sets]):
        assert not measured_unlike(found[:2]) and measured_unlike(found[1:])


def test_images_that_lie_flat_are_a_person_each(tmp_path):
    for name in ("3.jpg", "4.PNG", "._3.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".AppleDouble").mkdir()
    source = open_folder(tmp_path)
    assert [source.identity(label) for label in source.labels(np.arange(len(source)))] == ["3.jpg", "4.PNG"]


def test_probes_of_nobody_in_the_gallery():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((4, 8))
    with pytest.raises(UserError, match=r"1 people of probe/ are not in gallery/: 3; unknown/ is for such"):
        own_gallery(faces(rng, centres, np.arange(3)), faces(rng, centres, np.array([0, 3])), None)
