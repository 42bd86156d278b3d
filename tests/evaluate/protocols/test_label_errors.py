"""Wrong labels that were planted among people whose images lie around points of a sphere."""

import numpy as np
import pytest

from evaluate.protocols.label_errors import NOBODY, find_label_errors
from evaluate.protocols.people import find_people, nearest_others
from pipelines.common.errors import UserError

PEOPLE, IMAGES, SIZE = 120, 6, 64


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def images_of(people, generator, count=IMAGES, spread=0.1):
    """Unit vectors (p * count, d) around ``people`` (p, d), at some .6 to one another."""
    return unit(np.repeat(people, count, axis=0) + generator.normal(0, spread, (len(people) * count, SIZE)))


@pytest.fixture
def world():
    generator = np.random.default_rng(1)
    people = unit(generator.normal(size=(PEOPLE, SIZE)))
    return generator, people, images_of(people, generator), np.repeat(np.arange(PEOPLE), IMAGES)


def found(embeddings, labels, **thresholds):
    return find_label_errors(embeddings, labels, PEOPLE, **thresholds)


def test_right_labels_are_left_alone(world):
    _, _, embeddings, labels = world
    errors = found(embeddings, labels)
    assert (errors.labels == labels).all() and (errors.other == -1).all() and np.isnan(errors.cosine).all()


def test_images_go_back_where_they_came_from_in_any_order(world):
    generator, _, embeddings, labels = world
    wrong = generator.permutation(len(labels))[:30]
    planted = labels.copy()
    planted[wrong] = (labels[wrong] + generator.integers(1, PEOPLE, 30)) % PEOPLE
    errors = found(embeddings, planted)
    assert (errors.labels == labels).all()
    assert set(np.flatnonzero(errors.other >= 0)) == set(wrong)
    assert errors.stray.share == pytest.approx(30 / len(labels), abs=0.02)
    order = generator.permutation(len(labels))
    assert (found(embeddings[order], planted[order]).labels == labels[order]).all()


def test_faces_of_nobody_are_left_out(world):
    generator, _, embeddings, labels = world
    strange = generator.permutation(len(labels))[:20]
    embeddings[strange] = unit(generator.normal(size=(20, SIZE)))
    assert set(np.flatnonzero(found(embeddings, labels).labels == NOBODY)) == set(strange)


def test_people_who_share_a_label_part_and_those_who_have_two_are_united(world):
    generator, people, embeddings, labels = world
    others = unit(generator.normal(size=(2, SIZE)))
    embeddings = np.concatenate([embeddings, images_of(others, generator, 3), images_of(people[[9]], generator, 4)])
    labels = np.concatenate([labels, [5, 5, 5, 6, 6, 6], [PEOPLE] * 4])
    errors = find_label_errors(embeddings, labels, PEOPLE + 1)
    right = labels.copy()
    right[-10:] = [PEOPLE + 1] * 3 + [PEOPLE + 2] * 3 + [9] * 4
    assert (errors.labels == right).all()
    assert (errors.other[-4:] == 9).all() and (errors.cosine[-4:] > 0.8).all()


def test_two_images_of_a_further_person_are_no_class(world):
    generator, _, embeddings, labels = world
    embeddings = np.concatenate([embeddings, images_of(unit(generator.normal(size=(1, SIZE))), generator, 2)])
    errors = found(embeddings, np.append(labels, [3, 3]))
    assert errors.labels[-2:].tolist() == [NOBODY, NOBODY] and (errors.labels[:-2] == labels).all()


def test_images_without_a_label_stay_so_and_a_single_image_stays(world):
    _, people, embeddings, labels = world
    labels[:2] = -1
    labels[2 : IMAGES - 1] = -1
    errors = found(embeddings, labels)
    assert (errors.labels == labels).all() and np.isnan(errors.people.likeness[:IMAGES]).all()


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [-1, -1, -1]])
def test_what_cannot_be_compared_is_refused(labels):
    with pytest.raises(UserError, match="two identities, and one of two images"):
        found(np.eye(3, dtype=np.float32), np.array(labels))


def test_features_that_tell_nobody_apart_are_refused():
    """All alike, as an untrained network's may be: nothing is left of them without their mean."""
    with pytest.raises(UserError, match="tell no faces apart"):
        found(np.zeros((6, 4), np.float32), np.arange(6) // 2)


def test_two_identities_are_enough():
    generator = np.random.default_rng(4)
    embeddings = images_of(unit(generator.normal(size=(2, SIZE))), generator)
    labels = np.repeat([0, 1], IMAGES)
    labels[0] = 1
    assert found(embeddings, labels).labels[0] in (0, NOBODY)
    assert (found(embeddings, labels).labels[1:] == labels[1:]).all()


def test_thresholds_that_are_given_count(world):
    generator, _, embeddings, labels = world
    planted = labels.copy()
    planted[7] = 50
    assert found(embeddings, planted).labels[7] == labels[7]
    assert found(embeddings, planted, stray=-1.0).labels[7] == 50
    assert found(embeddings, planted, move=1.1).labels[7] == NOBODY
    assert (found(embeddings, planted, stray=1.1).labels == NOBODY).mean() > 0.5


def test_likeness_is_that_to_the_mean_of_the_others():
    generator = np.random.default_rng(2)
    embeddings = images_of(unit(generator.normal(size=(3, SIZE))), generator)
    labels = np.repeat([4, 0, 7], IMAGES)
    people = find_people(embeddings, labels, 0.3)
    for image in range(len(labels)):
        rest = embeddings[(labels == labels[image]) & (np.arange(len(labels)) != image)].mean(axis=0)
        assert people.likeness[image] == pytest.approx(embeddings[image] @ rest / np.linalg.norm(rest), abs=1e-5)
    assert people.labels.tolist() == [0, 4, 7] and people.first.all()
    assert people.group.tolist() == [1] * IMAGES + [0] * IMAGES + [2] * IMAGES


def test_nearest_others_is_that_of_the_whole_matrix(monkeypatch):
    monkeypatch.setattr("evaluate.protocols.people._CELLS", 40)
    generator = np.random.default_rng(3)
    vectors, centres = unit(generator.normal(size=(25, 8))), unit(generator.normal(size=(13, 8)))
    labels, of = generator.integers(0, 13, 25), generator.permutation(13)
    scores = np.where(labels[:, None] == of, -np.inf, vectors @ centres.T)
    best, which, second = nearest_others(vectors, labels, centres, of)
    assert (which == scores.argmax(axis=1)).all()
    np.testing.assert_allclose(np.stack([second, best]), np.sort(scores, axis=1)[:, -2:].T, rtol=1e-5)
