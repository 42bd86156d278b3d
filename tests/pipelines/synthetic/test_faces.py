"""Procedural faces: pure functions of three numbers, aligned to the template, learnable but not by their pixels."""

import hashlib
import io
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from pipelines.synthetic import canvas, faces, portrait

SEED = 5


@pytest.fixture(scope="module")
def people() -> np.ndarray:
    """110 identities, 8 photographs of each: (110, 8, 112, 112, 3) uint8."""
    return np.array([[faces.render(SEED, identity, image) for image in range(8)] for identity in range(110)])


def test_a_photograph_is_a_pure_function_of_three_numbers():
    code = "import sys; from pipelines.synthetic import faces; sys.stdout.buffer.write(faces.encode(5, 3, 2))"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    faces.render(5, 3, 1)  # what was drawn before does not matter
    assert faces.encode(5, 3, 2) == elsewhere
    assert np.array_equal(faces.render(5, 3, 2), faces.render(5, 3, 2))


def test_each_of_the_three_numbers_matters():
    numbers = [(seed, identity, image) for seed in (0, 1, 2**40) for identity in (0, 1, 2) for image in (0, 1, 2)]
    digests = {hashlib.sha256(faces.render(*each)).digest() for each in numbers}
    assert len(digests) == len(numbers)


def test_the_jpeg_shows_the_rendered_face():
    for image in range(6):
        picture = faces.render(SEED, 1, image)
        decoded = np.asarray(Image.open(io.BytesIO(faces.encode(SEED, 1, image))))
        assert decoded.shape == picture.shape == (112, 112, 3)
        assert picture.dtype == np.uint8
        assert np.abs(decoded.mean((0, 1)) - picture.mean((0, 1))).max() < 2
        assert np.abs(decoded.astype(int) - picture).mean() < 12


def test_traits_stay_and_conditions_change():
    """Over photographs of one identity the same traits are drawn, within the table's ranges."""
    who = [faces.draw_traits(faces.generator(SEED, 9)) for _ in range(2)]
    assert vars(who[0]).keys() == vars(who[1]).keys()
    for name, (low, high) in (faces.TRAITS | faces.HAIRDO).items():
        assert low <= getattr(who[0], name) == getattr(who[1], name) <= high
    conditions = [faces.draw_conditions(faces.generator(SEED, 9, image)) for image in range(2)]
    assert conditions[0].yaw != conditions[1].yaw


@pytest.mark.parametrize("yaw, pitch", [(0.0, 0.0), (0.6, 0.0), (-0.3, 0.3)])
def test_the_landmarks_are_aligned_to_the_template(yaw, pitch):
    who, now = faces.draw_traits(faces.generator(SEED, 4)), faces.draw_conditions(faces.generator(SEED, 4, 0))
    points = faces.landmarks(who, now)
    plain = canvas.Canvas(points, yaw, pitch, (1 + 0j, 0j))
    # the pose, written independently: turn about y, then about x, drop z
    turn = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    nod = np.array([[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]])
    spots = np.array([(x, y, canvas.dome(x, y) + lift) for x, y, lift in points])
    flat = (spots @ (nod @ turn).T)[:, :2]
    # the similarity as four real unknowns: a x - b y + c, b x + a y + d
    x, y = flat.T
    rows = np.concatenate([np.stack([x, -y, x**0, 0 * x], 1), np.stack([y, x, 0 * x, x**0], 1)])
    goal = np.concatenate([canvas.TEMPLATE.real, canvas.TEMPLATE.imag])
    expected = rows @ np.linalg.lstsq(rows, goal, rcond=None)[0]
    placed = np.array([plain.project(*spot) for spot in spots])
    assert np.allclose(np.concatenate([placed.real, placed.imag]), expected, atol=1e-4)
    assert np.abs(placed - canvas.TEMPLATE).max() < 14


@pytest.mark.parametrize("identity", range(4))
def test_the_features_are_painted_at_the_landmarks(identity):
    """Pupils in the white of the eyes, nostrils right below the tip of the nose, a mouth that ends at its corners."""
    who, now = faces.draw_traits(faces.generator(SEED, identity)), faces.draw_conditions(faces.generator(SEED, 0, 0))
    who.bald, who.beard, who.asymmetry, who.fold, who.moles = True, 0, 0, 0, []
    now.gaze, now.light, now.eye_open, now.mouth_open, now.smile = (0, 0), (4, 0), 1.15, 0, 0.8
    now.hat = now.glasses = False
    points = faces.landmarks(who, now)
    c = canvas.Canvas(points, 0.3, 0.1, (1 + 0j, 0j))
    portrait.paint(c, who, now)
    grey = c.albedo.mean(0)
    *eyes, nose, left, right = (c.project(x, y, canvas.dome(x, y) + lift) for x, y, lift in points)

    def darkest(place: complex, width: int, height: int) -> float:
        x, y = round(place.real), round(place.imag)
        return grey[y - height : y + height + 1, x - width : x + width + 1].min()

    for eye in eyes:
        assert darkest(eye, 0, 0) < 0.15
        assert grey[round(eye.imag), round(eye.real) - 6 : round(eye.real) + 7].max() > 0.5
    x, y = round(nose.real), round(nose.imag)
    below = grey[y + 3 : y + 6, x - 9 : x + 10]
    nostrils = np.maximum(0.6 * grey[y, x] - below, 0).sum(0)
    assert nostrils.sum() > 0 and abs(np.average(np.arange(-9, 10), weights=nostrils)) < 1.5
    for corner, inwards in ((left, 3), (right, -3)):
        assert darkest(corner + inwards, 0, 3) < 0.7 * darkest(corner - inwards, 0, 3)


def test_patches_undo_the_projection():
    """A pixel's coordinates in a patch lead back to the pixel."""
    c = canvas.Canvas(
        [(-17, -8, 0), (17, -8, 0), (0, 14, 10), (-13, 33, 0), (13, 33, 0)], 0.4, -0.2, (1.02 + 0.03j, 1 - 1j)
    )
    part = c.on_plane(5, -3, 30)
    assert part.u.shape == part.v.shape == (112, 112)
    for row, column in [(0, 0), (50, 60), (111, 3)]:
        back = c.project(5 + float(part.u[row, column]), -3 + float(part.v[row, column]), 30)
        assert back == pytest.approx(complex(column, row), abs=1e-3)
    tilted = c.on_dome(5, -3, 12, tilt=0.5, lift=3)
    row, column = np.unravel_index(np.argmin(np.hypot(tilted.u, tilted.v)), tilted.u.shape)
    centre = c.project(5, -3, canvas.dome(5, -3) + 3)
    tilted.paint(np.ones_like(tilted.u), canvas.colour(1, 0, 0))
    rows, columns = np.nonzero(c.albedo[0])
    assert abs(complex(columns.min() + column, rows.min() + row) - centre) < 1


def test_edges_cover_what_they_enclose():
    """Anti-aliased shapes have the area of the exact ones."""
    v, u = np.mgrid[-20:21, -20:21].astype(np.float32)
    u, v = u + 0.3, v - 0.2
    assert canvas.disc(u, v, 9, 9).sum() == pytest.approx(math.pi * 81, rel=0.01)
    assert canvas.inside(np.square(u / 12) + np.square(v / 7) - 1).sum() == pytest.approx(math.pi * 84, rel=0.02)
    assert canvas.band(v, -3.25, 4).sum() == pytest.approx(7.25 * 41, rel=0.01)


def test_light_comes_from_where_it_is_said_to():
    c = canvas.Canvas([(-17, -8, 0), (17, -8, 0), (0, 14, 10), (-13, 33, 0), (13, 33, 0)], 0, 0, (1 + 0j, 0j))
    c.albedo += 0.5
    part = c.silhouette()
    c.height += 40 * canvas.glow(part.u, part.v, 30, 30)
    no_gloss = np.zeros((112, 112), np.float32)
    y, x = round(c.origin.imag), round(c.origin.real)
    right = c.lit(1.0, 0.0, 0.3, no_gloss)[0]
    below = c.lit(0.0, 1.0, 0.3, no_gloss)[0]
    assert right[y, x + 15] > right[y, x - 15] + 0.1
    assert below[y + 15, x] > below[y - 15, x] + 0.1


def _verification(features: np.ndarray, pairs: np.ndarray, same: np.ndarray) -> float:
    """Best accuracy of one threshold on the cosine (a bound on what ten folds would give)."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = (features[pairs[:, 0]] * features[pairs[:, 1]]).sum(1)
    return max(np.mean((cosine > threshold) == same) for threshold in np.linspace(-1, 1, 401))


def test_identity_can_be_learned_but_does_not_lie_in_the_pixels(people):
    """Linear discriminants trained on 80 identities separate 30 others better than their pixels do."""
    small = people.reshape(110, 8, 28, 4, 28, 4, 3).mean((3, 5, 6)).reshape(110 * 8, -1)
    small = (small - small.mean(1, keepdims=True)) / small.std(1, keepdims=True)
    train, held_out = small[:640], small[640:]
    rng = np.random.default_rng(0)
    person = rng.integers(0, 30, 1000)
    other = (person + rng.integers(1, 30, 1000)) % 30
    first = rng.integers(0, 8, 1000)
    second = (first + rng.integers(1, 8, 1000)) % 8
    genuine = np.stack([person * 8 + first, person * 8 + second], 1)
    impostor = np.stack([person * 8 + first, other * 8 + second], 1)
    pairs, same = np.concatenate([genuine, impostor]), np.arange(2000) < 1000
    pixels = _verification(held_out - train.mean(0), pairs, same)
    discriminants = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.2).fit(train, np.arange(640) // 8)
    learned = _verification(discriminants.transform(held_out)[:, :30], pairs, same)
    assert 0.5 < pixels < 0.65
    assert learned > pixels + 0.05
