import numpy as np
import pytest

from evaluate.protocols.templates import pool


def naive(features, template, media, detector, flip, norm):
    """The definition, template by template in float64."""
    original, mirror = features[:, 0].astype(np.float64), features[:, 1].astype(np.float64)
    images = {"sum": original + mirror, "concatenate": np.hstack([original, mirror]), "none": original}[flip]
    if norm == "normalise":
        images = images / np.linalg.norm(images, axis=1, keepdims=True)
    if detector is not None:
        images = images * detector[:, None]
    rows = []
    for t in np.unique(template):
        mine = template == t
        total = sum(images[mine & (media == m)].mean(0) for m in np.unique(media[mine]))
        rows.append(total / max(np.linalg.norm(total), 1e-300))
    return np.array(rows)


def make(seed=0, n=300):
    rng = np.random.default_rng(seed)
    template = rng.choice([900, 3, 41, 7, 100], n)  # unsorted, with gaps
    media = rng.integers(0, 4, n)  # the same media ids in all templates
    features = rng.standard_normal((n, 2, 8)).astype(np.float32) * rng.uniform(1, 30, (n, 1, 1)).astype(np.float32)
    return features, template, media, rng.uniform(0.1, 1, n).astype(np.float32)


@pytest.mark.parametrize("flip", ["sum", "concatenate", "none"])
@pytest.mark.parametrize("norm", ["keep", "normalise"])
@pytest.mark.parametrize("weighed", [True, False])
def test_pool_is_the_definition(flip, norm, weighed):
    features, template, media, detector = make()
    detector = detector if weighed else None
    templates = pool(features, template, media, detector, flip=flip, norm=norm, chunk=37)
    assert templates.ids.tolist() == [3, 7, 41, 100, 900]
    np.testing.assert_allclose(templates.vectors, naive(features, template, media, detector, flip, norm), atol=1e-6)


def test_zero_templates_stay_zero():
    features, template, media, detector = make()
    detector[template == 7] = 0
    templates = pool(features, template, media, detector)
    np.testing.assert_array_equal(templates.vectors[1], 0)
    np.testing.assert_allclose(np.linalg.norm(templates.vectors, axis=1)[[0, 2, 3, 4]], 1)


def test_copied_templates_are_equal_to_the_bit():
    features, template, media, detector = make()
    rows = np.flatnonzero(template == 41)
    both = [np.concatenate([x, x[rows]]) for x in (features, template, media, detector)]
    both[1][-len(rows) :] = 5000
    vectors = pool(*both, chunk=64).vectors
    np.testing.assert_array_equal(vectors[2], vectors[-1])


@pytest.mark.parametrize("shift", [0, 2**40])  # a table, and a search where ids are far apart
def test_index_finds_rows_and_names_unknown_ids(shift):
    features, template, media, detector = make()
    template = np.where(template == 900, 900 + shift, template)
    templates = pool(features, template, media, detector)
    np.testing.assert_array_equal(templates.index(np.array([900 + shift, 3, 3, 100])), [4, 0, 0, 3])
    for unknown in (-5, 8, 901 + shift):
        with pytest.raises(ValueError, match=f"the first is {unknown}"):
            templates.index(np.array([3, unknown]))


def test_not_finite_features_are_named():
    features, template, media, detector = make()
    features[np.flatnonzero(template == 41)[0], 0, 3] = np.nan
    with pytest.raises(ValueError, match="template 41"):
        pool(features, template, media, detector)
