"""Procedural faces: any number of identities and photographs of them, drawn from three whole numbers.

``render(seed, identity, image)`` is a pure function. The traits of the identity (proportions of head, eyes, brows,
nose, mouth and hair, colours, moles) come from (seed, identity); the conditions of the photograph (pose, expression,
light, camera, hairdo, glasses, occlusion, background) from (seed, identity, image). Lengths are in pixels of the
112 x 112 template and positions in the face's axes, see ``pipelines.synthetic.canvas``. The same numbers give the same
bytes wherever numpy and Pillow compute alike, so on one machine always.
"""

import math
from functools import cache
from types import SimpleNamespace

import numpy as np
from PIL import Image

from pipelines.common.alignment import SIZE
from pipelines.common.pillow import to_jpeg
from pipelines.synthetic import portrait
from pipelines.synthetic.canvas import Canvas, colour, disc, ramp

TRAITS = {  # of an identity, uniform in these ranges
    "face_width": (34.5, 44.0),  # half, at the cheekbones
    "chin": (45.0, 57.0),  # from the middle of the head
    "jaw_square": (-0.2, 0.75),
    "jaw_taper": (0.0, 0.28),
    "cheekbone": (0.0, 6.0),
    "chin_bump": (0.0, 5.0),
    "eye_distance": (15.5, 20.0),  # half
    "eye_y": (-10.5, -4.0),
    "eye_width": (6.2, 9.2),  # half
    "eye_tilt": (-0.14, 0.26),
    "upper_lid": (2.0, 4.8),
    "lower_lid": (1.2, 2.6),
    "lid_crease": (0.0, 0.6),
    "iris": (2.7, 3.6),
    "socket": (0.0, 5.0),
    "brow_gap": (7.0, 12.5),
    "brow_width": (7.5, 12.0),  # half
    "brow_weight": (0.7, 2.6),
    "brow_arch": (0.0, 4.0),
    "brow_slope": (-0.24, 0.16),
    "brow_ridge": (0.0, 4.0),
    "nose_y": (10.0, 18.5),
    "nose_width": (4.8, 9.8),  # half, at the wings
    "nose_depth": (8.0, 15.0),
    "nose_bridge": (2.4, 5.0),
    "nostril": (0.7, 1.7),
    "mouth_y": (29.0, 36.5),
    "mouth_width": (10.5, 16.5),  # half
    "upper_lip": (1.2, 4.4),
    "lower_lip": (1.8, 5.4),
    "cupid": (0.0, 1.5),
    "lip_red": (0.1, 0.8),
    "fold": (0.0, 0.35),  # from the nose to the corners of the mouth
    "ear": (7.0, 11.0),
    "ear_out": (0.5, 4.5),
    "beard": (-2.0, 1.0),  # most have none
    "melanin": (0.0, 1.0),
    "ruddy": (-1.0, 1.0),
    "asymmetry": (-0.8, 0.8),
}
HAIRDO = {  # usually the identity's, now and then another
    "hairline": (-48.0, -31.0),
    "hair_peak": (-3.0, 5.0),
    "hair_temple": (0.80, 1.02),
    "hair_parting": (-22.0, 22.0),
    "hair_fringe": (-6.0, 12.0),
    "hair_side": (1.0, 14.0),
    "hair_top": (3.0, 16.0),
    "hair_length": (-25.0, 90.0),  # where it ends, from the middle of the head
    "hair_curl": (0.0, 1.0),
}

SKIN = [(0.97, 0.82, 0.74), (0.90, 0.71, 0.59), (0.78, 0.57, 0.43), (0.58, 0.39, 0.28), (0.38, 0.25, 0.18)]
HAIR = [
    (0.07, 0.06, 0.06),
    (0.16, 0.10, 0.07),
    (0.32, 0.20, 0.12),
    (0.48, 0.24, 0.12),
    (0.78, 0.62, 0.36),
    (0.70, 0.69, 0.67),
]
IRIS = [(0.20, 0.11, 0.06), (0.40, 0.24, 0.10), (0.40, 0.46, 0.22), (0.30, 0.48, 0.62), (0.46, 0.52, 0.55)]


def render(seed: int, identity: int, image: int) -> np.ndarray:
    """Photograph number ``image`` of an identity: RGB uint8 (112, 112, 3)."""
    return _photograph(seed, identity, generator(seed, identity, image))


def encode(seed: int, identity: int, image: int) -> bytes:
    """``render`` as a JPEG; its quality, 60 to 96, is one of the photograph's conditions."""
    rng = generator(seed, identity, image)
    picture = _photograph(seed, identity, rng)
    return to_jpeg(Image.fromarray(picture), quality=int(rng.integers(60, 97)))


def generator(seed: int, *key: int) -> np.random.Generator:
    """Random numbers that belong to an identity (``key`` = identity) or to a photograph (identity, image) alone."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _photograph(seed: int, identity: int, rng: np.random.Generator) -> np.ndarray:
    who, now = draw_traits(generator(seed, identity)), draw_conditions(rng)
    if rng.random() < 0.2:
        vars(who).update(_uniform(HAIRDO, rng))
    if rng.random() < 0.07:
        who.hair = _mix(HAIR, rng.random())
    canvas = Canvas(landmarks(who, now), now.yaw, now.pitch, now.misalignment)
    skin = portrait.paint(canvas, who, now)
    scene = background(rng)
    light_x, light_y = now.light
    picture = scene + canvas.cover * (canvas.lit(light_x, light_y, now.ambient, now.gloss * skin) - scene)
    if rng.random() < 0.1:  # something before the camera
        x, y = canvas.pixels - rng.uniform(0, SIZE), canvas.pixels[:, None] - rng.uniform(0, SIZE)
        picture += disc(x, y, rng.uniform(8, 30), rng.uniform(8, 30)) * (colour(*rng.random(3)) - picture)
    return expose(picture, rng)


def draw_traits(rng: np.random.Generator) -> SimpleNamespace:
    """The traits of one identity."""
    who = SimpleNamespace(**_uniform(TRAITS, rng), **_uniform(HAIRDO, rng))
    who.skin = _mix(SKIN, who.melanin) * (1 + 0.4 * who.ruddy * portrait.FLUSH)
    fairness = rng.beta(1 + who.melanin, 1 + 4 * who.melanin) if who.melanin < 0.75 else rng.uniform(0, 0.1)
    who.hair = _mix(HAIR, fairness) * rng.uniform(0.85, 1.15)
    who.brow = 0.75 * who.hair + 0.08
    who.iris_colour = _mix(IRIS, rng.uniform(0, 0.3 if who.melanin > 0.6 else 1))
    red = colour(0.70, 0.27, 0.27) * (0.45 + 0.6 * float(who.skin.mean()))
    who.lips = who.lip_red * red + (1 - who.lip_red) * 0.88 * who.skin
    who.bald = rng.random() < 0.06
    who.moles = [(rng.uniform(-26, 26), rng.uniform(-24, 38), rng.uniform(0.7, 1.5)) for _ in range(rng.integers(0, 4))]
    return who


def draw_conditions(rng: np.random.Generator) -> SimpleNamespace:
    """The conditions of one photograph, as far as they change the face and its light."""
    now = SimpleNamespace()
    now.yaw = math.radians(min(max(rng.normal(0, 14), -34), 34))
    now.pitch = math.radians(min(max(rng.normal(0, 7), -16), 16))
    turn, shift = complex(rng.normal(1, 0.02), rng.normal(0, 0.03)), complex(rng.normal(0, 1), rng.normal(0, 1))
    now.misalignment = turn, shift
    now.mouth_open = max(0.0, rng.normal(0, 3.5))
    now.smile = rng.uniform(-0.25, 1)
    now.brow_raise = rng.normal(0, 1.2)
    now.eye_open = min(max(rng.normal(0.95, 0.2), 0.12), 1.15)
    now.gaze = rng.normal(0, 0.9), rng.normal(-0.3, 0.4)
    now.light = rng.normal(0, 0.8), rng.normal(-0.35, 0.45)
    now.ambient = rng.uniform(0.25, 0.8)
    now.gloss = rng.uniform(0, 0.25)
    now.hair_shift = rng.normal(0, 3)
    now.hair_volume = rng.uniform(0.6, 1.4)
    now.shave = rng.uniform(0, 1)
    now.clothes = colour(*rng.random(3)) * rng.uniform(0.3, 0.9)
    now.hat = rng.random() < 0.08
    now.glasses = rng.random() < 0.15
    now.lens = rng.uniform(9.5, 13), rng.uniform(7, 11), rng.uniform(0, 1)
    now.rim = rng.uniform(0.3, 1.1)
    now.sunglasses = rng.random() < 0.25
    return now


def landmarks(who: SimpleNamespace, now: SimpleNamespace) -> list[tuple[float, float, float]]:
    """Eyes, tip of the nose and corners of the mouth as (x, y, lift over the dome)."""
    mouth_width, mouth_y = who.mouth_width + 1.5 * now.smile, who.mouth_y - 2 * now.smile
    eyes = [(side * who.eye_distance, who.eye_y, 0.0) for side in (-1, 1)]
    return [*eyes, (0.0, who.nose_y, who.nose_depth), *((side * mouth_width, mouth_y, 0.0) for side in (-1, 1))]


def background(rng: np.random.Generator) -> np.ndarray:
    """A scene out of focus, (3, 112, 112): a coarse grid of random colours, interpolated."""
    rows, columns = rng.integers(2, 9, 2)
    scene = rng.uniform(0, 0.8) + rng.uniform(0, 0.5) * rng.normal(size=(1, rows, columns))
    scene = scene + rng.uniform(0, 0.18) * rng.normal(size=(3, 1, 1))
    scene = scene + rng.uniform(0, 0.12) * rng.normal(size=(3, rows, columns))
    return _stretch(rows) @ ramp(scene).astype(np.float32) @ _stretch(columns).T


def expose(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a camera makes of (3, 112, 112): exposure, white balance, at times no colour, focus, noise, 8 bits."""
    picture = picture * (math.exp(rng.normal(0, 0.22)) * np.exp(colour(*rng.normal(0, 0.09, 3))))
    if rng.random() < 0.03:
        picture[:] = picture.mean(0)
    if (sigma := rng.normal(0.35, 0.45)) > 0.3:
        picture = _blurred(picture, sigma)
    picture += abs(rng.normal(0, 0.015)) * rng.standard_normal((SIZE, SIZE), np.float32)
    return np.ascontiguousarray((255 * ramp(picture) + 0.5).astype(np.uint8).transpose(1, 2, 0))


def _uniform(ranges: dict[str, tuple[float, float]], rng: np.random.Generator) -> dict[str, float]:
    draws = rng.random(len(ranges)).tolist()
    return {name: low + (high - low) * draw for (name, (low, high)), draw in zip(ranges.items(), draws)}


def _mix(palette: list[tuple[float, float, float]], position: float) -> np.ndarray:
    """The colour (3, 1, 1) at ``position`` in [0, 1] along a palette."""
    place = position * (len(palette) - 1)
    low = min(int(place), len(palette) - 2)
    return (low + 1 - place) * colour(*palette[low]) + (place - low) * colour(*palette[low + 1])


@cache
def _stretch(knots: int) -> np.ndarray:
    """The (112, knots) matrix that interpolates linearly between evenly spaced knots."""
    place = np.linspace(0, knots - 1, SIZE, dtype=np.float32)[:, None]
    return np.maximum(1 - np.abs(place - np.arange(knots, dtype=np.float32)), 0)


def _blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (3, 112, 112), seven taps along each axis."""
    weights = np.exp(-0.5 * np.square(np.arange(4, dtype=np.float32) / np.float32(sigma)))
    weights[0] = 0.5  # its tap is counted from both sides
    weights /= 2 * weights.sum()
    for _ in range(2):
        wide = np.pad(picture, ((0, 0), (0, 0), (3, 3)), mode="edge")
        taps = (w * (wide[..., 3 - k :][..., :SIZE] + wide[..., 3 + k :][..., :SIZE]) for k, w in enumerate(weights))
        picture = sum(taps).swapaxes(1, 2)
    return picture
