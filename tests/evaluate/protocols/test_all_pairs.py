import numpy as np
import pytest

from evaluate.protocols import all_pairs
from evaluate.protocols.all_pairs import compare
from evaluate.protocols.embeddings import normalised
from evaluate.protocols.resampling import draw, impostor_limits
from pipelines.common.errors import UserError


def make(seed=0, people=40, d=12):
    """Unit vectors of people of one to nine images each, in no order, some of them equal; whom they show."""
    rng = np.random.default_rng(seed)
    person = rng.permutation(np.repeat(np.arange(people), rng.integers(1, 10, people)))
    vectors = rng.standard_normal((people, d))[person] + 1.2 * rng.standard_normal((len(person), d))
    vectors[::30] = vectors[0]  # ties
    return normalised(vectors), person


def brute_force(vectors, person, reference):
    """Genuine and impostor scores, falling, of the matrix of all scores."""
    i, j = np.triu_indices(len(person), 1)
    if reference is not None:
        kept = reference[i] != reference[j]
        i, j = i[kept], j[kept]
    scores = np.sum(vectors[i] * vectors[j], axis=1)
    same = person[i] == person[j]
    return np.sort(scores[same])[::-1], np.sort(scores[~same])[::-1], i[~same], j[~same]


@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("held", [1 << 24, 600])
def test_is_the_matrix_of_all_scores(monkeypatch, references, held):
    monkeypatch.setattr(all_pairs, "_CELLS", 3000)  # many blocks
    vectors, person = make()
    reference = np.random.default_rng(1).random(len(person)) < 0.3 if references else None
    found = compare(vectors, person, reference, fars=(1e-9, 1e-3, 0.01, 0.2), held=held)
    genuine, impostor, first, second = brute_force(vectors, person, reference)
    assert (len(found.genuine), found.impostors) == (len(genuine), len(impostor))
    np.testing.assert_allclose(np.sort(found.genuine)[::-1], genuine, atol=1e-12)
    assert found.fars == ((0.001, 0.01, 0.2) if held > 600 else (0.001, 0.01))
    for far in found.fars:
        point = found.at(far)
        limit = impostor[int(far * len(impostor))]  # as many lie above it as may be accepted
        assert point.threshold == pytest.approx(limit, abs=1e-12)
        assert point.far == np.mean(impostor > point.threshold) <= far
        assert point.tar == np.mean(genuine > point.threshold)
    counts = np.histogram(impostor, all_pairs.EDGES)[0]
    assert found.counts.sum() == counts.sum() and np.abs(found.counts - counts).sum() <= 4
    units = person.max() + 1
    np.testing.assert_array_equal(
        found.degree, np.bincount(person[first], minlength=units) + np.bincount(person[second], minlength=units)
    )
    fars, tars = found.curve()
    np.testing.assert_allclose(
        tars[:-1],
        [np.mean(genuine > impostor[int(f * len(impostor) * (1 + 1e-12))] + 1e-6) for f in fars[:-1]],
        atol=0.01,
    )


def test_resampled_thresholds_are_those_of_all_pairs():
    """The highest scores and how often each person is met tell what all pairs do."""
    vectors, person = make(people=60)
    found = compare(vectors, person, fars=(0.001, 0.01), held=len(person) ** 2 // 8)
    assert len(found.top) < found.impostors / 2
    _, _, first, second = brute_force(vectors, person, None)
    signs = draw(person.max() + 1, resamples=100)
    scores = np.sum(vectors[first] * vectors[second], axis=1).astype(np.float32)
    expected = impostor_limits(scores, person[first], person[second], found.fars, signs)
    np.testing.assert_allclose(found.resampled_limits(signs), expected, atol=1e-5)
    assert expected.std(axis=0).min() > 0


@pytest.mark.parametrize(
    "person, message",
    [
        (np.arange(30), "there are 0 pairs of one person and 435 of two"),
        (np.zeros(30, np.int64), "435 pairs of one person and 0 of two"),
        (np.arange(4) // 2, "4 pairs of two people: the FARs that they tell are 1/4"),
    ],
)
def test_too_few_people(person, message):
    with pytest.raises(UserError, match=message):
        compare(make()[0][: len(person)], person)
