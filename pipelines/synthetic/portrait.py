"""A portrait: the features of a face painted, back to front, on a ``Canvas``.

``who`` holds an identity's traits and ``now`` the conditions of the photograph, see ``pipelines.synthetic.faces``.
Lengths are in pixels of the template, positions in the face's axes.
"""

from types import SimpleNamespace

import numpy as np

from pipelines.synthetic.canvas import (
    DOME_Z,
    Canvas,
    Patch,
    band,
    colour,
    disc,
    glow,
    inside,
    ramp,
)

CROWN = 62.0  # from the middle of the head to its top
FLUSH = colour(0.04, -0.06, -0.05)  # what blood adds to skin


def paint(canvas: Canvas, who: SimpleNamespace, now: SimpleNamespace) -> np.ndarray:
    """Paint the whole portrait. Returns where there is skin, which shines: coverage (112, 112)."""
    head = canvas.silhouette()
    shell = hair_shell(head, who, now)
    head.solid(shell, 0.7 * who.hair)
    paint_body(canvas, head, who, now)
    skin = paint_head(head, who, now)
    paint_skin(canvas, who, now)
    paint_nose(canvas, who)
    paint_beard(canvas, who, now, skin)
    paint_mouth(canvas, who, now)
    paint_eyes(canvas, who, now)
    paint_brows(canvas, who, now)
    paint_hair(canvas, who, now, shell)
    if now.hat:
        paint_hat(canvas, head, who, now)
    if now.glasses:
        paint_glasses(canvas, who, now)
    return skin


def paint_body(canvas: Canvas, body: Patch, who: SimpleNamespace, now: SimpleNamespace) -> None:
    body.solid(ramp(0.5 + body.v - 58 - 0.05 * np.abs(body.u)), now.clothes)
    neck = band(body.u, -0.62 * who.face_width, 0.62 * who.face_width)
    body.solid(neck * ramp(body.v - 20) * ramp(66 - body.v), 0.7 * who.skin)
    for side in (-1, 1):
        ear = canvas.on_plane(side * (who.face_width + who.ear_out - 2), who.eye_y + 8, 0, reach=16)
        ear.solid(disc(ear.u + 0.12 * side * ear.v, ear.v, 0.45 * who.ear, who.ear), 0.92 * who.skin)
        ear.shade(0.35 * glow(ear.u, ear.v + 1, 0.2 * who.ear, 0.55 * who.ear))


def paint_head(head: Patch, who: SimpleNamespace, now: SimpleNamespace) -> np.ndarray:
    """Returns the coverage of the head (112, 112)."""
    down = np.maximum(head.v * (1 / (who.chin + 0.5 * now.mouth_open)), 0)
    up2 = rounded(head.v, CROWN)
    down2 = np.square(down)
    width = who.face_width * (1 - who.jaw_taper * np.minimum(down2, 1.4))
    radius2 = np.square(head.u / width) + up2 + down2 * (1 - who.jaw_square + who.jaw_square * down2)
    skin = inside(radius2 - 1)
    head.solid(skin, who.skin)
    head.height += DOME_Z * np.sqrt(1.01 - 0.9 * np.minimum(radius2, 1))
    return skin


def bump(canvas: Canvas, x: float, y: float, radius_u: float, radius_v: float, height: float, lift: float = 0) -> None:
    """Raise the surface around a point of the dome."""
    part = canvas.on_dome(x, y, 2.4 * max(radius_u, radius_v), lift=lift)
    part.height += height * glow(part.u, part.v, radius_u, radius_v)


def paint_skin(canvas: Canvas, who: SimpleNamespace, now: SimpleNamespace) -> None:
    for side in (-1, 1):
        cheek = canvas.on_dome(side * 20, 14, 24)
        cheek.tint((1.5 + who.ruddy) * glow(cheek.u, cheek.v, 11, 9), FLUSH)
        bump(canvas, side * 23, 9, 10, 8, who.cheekbone)
        socket = canvas.on_dome(side * who.eye_distance, who.eye_y + 0.5, 24)
        dip = glow(socket.u, socket.v, 10, 7)
        socket.height -= who.socket * dip
        socket.shade((0.05 + 0.035 * who.socket) * dip)
        bump(canvas, side * 0.9 * who.eye_distance, who.eye_y - who.brow_gap + 1, 10, 4, who.brow_ridge)
        fold = canvas.on_dome(side * (who.nose_width + 6), 0.5 * (who.nose_y + who.mouth_y), 14, tilt=-0.5 * side)
        depth = who.fold * (0.4 + 0.8 * max(now.smile, 0))
        fold.shade(depth * glow(fold.u - 0.02 * side * np.square(fold.v), fold.v, 1.3, 7))
    bump(canvas, 0, who.chin - 8, 8, 6, who.chin_bump)
    for x, y, radius in who.moles:
        mole = canvas.on_dome(x, y, 3)
        mole.paint(0.85 * disc(mole.u, mole.v, radius, radius), 0.35 * who.skin)


def paint_nose(canvas: Canvas, who: SimpleNamespace) -> None:
    top, length = who.eye_y - 2, who.nose_y - who.eye_y + 2
    for k in (0, 1 / 3, 2 / 3, 1):
        radius = who.nose_bridge + k * (0.45 * who.nose_width - 0.5)
        lift = k * who.nose_depth
        bump(canvas, 0, top + k * length, radius, 0.32 * length, 0.1 * who.nose_depth + 0.3 * lift, lift)
    tip = canvas.on_dome(0, who.nose_y, 18, lift=who.nose_depth)
    aside = np.abs(tip.u)
    tip.height += 0.35 * who.nose_depth * glow(tip.u, tip.v, 0.55 * who.nose_width + 0.5, 4.5)
    tip.height += 2.2 * glow(aside - 0.72 * who.nose_width, tip.v - 2, 0.34 * who.nose_width, 3.4)
    tip.tint((1 + who.ruddy) * glow(tip.u, tip.v, who.nose_width, 5), FLUSH)
    below = tip.v - 1.5
    wing = 0.35 * glow(aside - who.nose_width + 0.06 * np.square(below), below, 0.9, 2.8)
    shadow = 0.28 * glow(tip.u, tip.v - 6.5, who.nose_width, 2.2)
    x = aside - 0.48 * who.nose_width
    nostril = 0.75 * disc(x, tip.v - 4.2 + 0.3 * x, 0.26 * who.nose_width, who.nostril)
    tip.shade(1 - (1 - wing) * (1 - shadow) * (1 - nostril))


def paint_beard(canvas: Canvas, who: SimpleNamespace, now: SimpleNamespace, skin: np.ndarray) -> None:
    amount = max(0.0, who.beard) * now.shave
    if amount == 0:
        return
    part = canvas.on_plane(0, who.mouth_y, 30)
    aside = np.abs(part.u) - who.mouth_width - 2
    bend = np.square(part.u)
    jaw = ramp((part.v - 9 + 0.026 * bend) * 0.2)
    above = part.v + 0.5 * (who.mouth_y - who.nose_y) - 1 - 0.012 * bend
    moustache = ramp(1.2 - 0.4 * np.abs(above)) * ramp(0.5 - aside)
    part.paint(amount * np.maximum(jaw, moustache) * skin, 0.45 * who.hair + 0.1 * who.skin)


def paint_mouth(canvas: Canvas, who: SimpleNamespace, now: SimpleNamespace) -> None:
    part = canvas.on_dome(0, who.mouth_y, 24)
    along = part.u * (1 / (who.mouth_width + 1.5 * now.smile))
    arch = np.maximum(1 - np.square(along), 0)
    within = ramp((1.03 - np.abs(along)) * 6)
    v = part.v + 2.5 * now.smile * np.square(along) - 0.5 * now.smile + 0.04 * who.asymmetry * part.u
    top, bottom = -0.3 * now.mouth_open * arch, 0.7 * now.mouth_open * arch
    upper = who.upper_lip * arch - who.cupid * np.exp(-np.square(part.u * (1 / 1.8)))
    part.paint(band(v, top - upper, top + 0.3) * within, 0.9 * who.lips)
    part.paint(band(v, bottom - 0.3, bottom + who.lower_lip * np.sqrt(arch)) * within, who.lips)
    part.height += 1.0 * arch * glow(v - top + 0.5 * who.upper_lip, 0, 0.7 * who.upper_lip, 1)
    part.height += 1.6 * arch * glow(v - bottom - 0.5 * who.lower_lip, 0, 0.7 * who.lower_lip, 1)
    if now.mouth_open > 1.2:
        part.paint(band(v, top, bottom) * within, colour(0.16, 0.05, 0.05))
        teeth = np.minimum(top + 0.55 * now.mouth_open * arch + 0.4, bottom)
        part.paint(band(v, top, teeth) * ramp((0.9 - np.abs(along)) * 8), colour(0.88, 0.86, 0.82))
    part.paint(0.7 * band(v, top - 0.45, top + 0.45) * within, 0.4 * who.lips)
    part.shade(0.22 * glow(v - bottom - who.lower_lip - 2.2, part.u, 1.6, 0.6 * who.mouth_width))


def paint_eyes(canvas: Canvas, who: SimpleNamespace, now: SimpleNamespace) -> None:
    lash = np.minimum(who.hair, 0.12)
    for side in (-1, 1):
        part = canvas.on_dome(side * who.eye_distance, who.eye_y, 13)
        u = part.u * side  # from the inner to the outer corner
        v = part.v + who.eye_tilt * u
        along = u * (1 / who.eye_width)
        arch = np.maximum(1 - np.square(along), 0)
        within = ramp((1.02 - np.abs(along)) * 6)
        lower = max(who.lower_lid * (0.6 + 0.4 * now.eye_open) - 0.8 * max(now.smile, 0), 0.3)
        top, bottom = -who.upper_lid * now.eye_open * np.sqrt(arch), lower * arch
        opening = band(v, top, bottom) * within
        part.paint(opening, colour(0.86, 0.84, 0.82))
        x, y = u - side * now.gaze[0], v - now.gaze[1]
        part.paint(opening * disc(x, y, who.iris, who.iris), 0.55 * who.iris_colour)
        part.paint(opening * disc(x, y, who.iris - 0.7, who.iris - 0.7), who.iris_colour)
        part.paint(opening * disc(x, y, 1.3, 1.3), colour(0.03, 0.03, 0.03))
        part.shade(0.35 * opening * band(v, top, top + 1.4))  # the lid's shadow
        part.paint(0.9 * opening * disc(x - side * now.light[0], y + 1.1, 0.8, 0.8), colour(1.6, 1.6, 1.6))
        part.paint(0.9 * band(v, top - 1 - 0.3 * along, top + 0.2) * within, lash)
        part.paint(0.35 * band(v, bottom - 0.1, bottom + 0.6) * within, lash)
        part.shade(who.lid_crease * glow(v - top + 2.6, 0, 0.9, 1) * within)


def paint_brows(canvas: Canvas, who: SimpleNamespace, now: SimpleNamespace) -> None:
    for side in (-1, 1):
        y = who.eye_y - who.brow_gap - now.brow_raise + side * who.asymmetry
        part = canvas.on_dome(side * (who.eye_distance + 0.5), y, 16)
        along = part.u * (side / who.brow_width)
        curve = who.brow_slope * side * part.u - who.brow_arch * (1 - np.square(along))
        half = who.brow_weight * np.maximum(0.88 - 0.28 * along - 0.8 * np.maximum(along - 0.3, 0), 0.1)
        stroke = ramp(0.6 + 0.8 * (half - np.abs(part.v - curve))) * ramp(5 * (1.03 - np.abs(along)))
        part.paint(0.88 * stroke, who.brow)


def rounded(v: np.ndarray, top: float) -> np.ndarray:
    """The vertical term of a skull's outline: between a square and a fourth power above the middle, 0 below it."""
    up2 = np.square(np.minimum(v, 0) * (1 / top))
    return up2 * (0.6 + 0.4 * up2)


def hair_shell(head: Patch, who: SimpleNamespace, now: SimpleNamespace) -> np.ndarray:
    """Coverage of the outline of the hair, around the head down to the hair's length."""
    if who.bald:
        return np.zeros_like(head.u)
    side = who.face_width + who.hair_side * now.hair_volume
    top = CROWN + who.hair_top * now.hair_volume
    down = np.maximum(head.v, 0)
    outline = inside(np.square(head.u / (side + 0.06 * down)) + rounded(head.v, top) - 1)
    end = who.hair_length - 0.8 * np.maximum(np.abs(head.u) - who.face_width, 0) + 1.5 * np.sin(0.7 * head.u)
    return outline * ramp((end - head.v) * 0.3)


def paint_hair(canvas: Canvas, who: SimpleNamespace, now: SimpleNamespace, shell: np.ndarray) -> None:
    part = canvas.on_plane(0, 0, 26)
    wave = np.sin(0.9 * part.u + 3 * who.hair_curl * np.sin(0.22 * part.v + 1) + 0.008 * who.hair_parting * part.v)
    line = who.hairline + now.hair_shift + who.hair_peak * np.exp(-np.square(part.u * (1 / 9)))
    line = line + who.hair_fringe * np.exp(-np.square((part.u - who.hair_parting) * (1 / 17)))
    line = line + 240 * np.maximum(np.abs(part.u) * (1 / who.face_width) - who.hair_temple + 0.08, 0) + 0.8 * wave
    line = np.minimum(line, max(who.eye_y + 6, who.hair_length))
    alpha = shell * ramp(0.5 + (line - part.v) * 0.6)
    part.solid(alpha, who.hair * (1 + 0.2 * wave * np.sin(0.35 * part.u + 0.1 * part.v)))


def paint_hat(canvas: Canvas, head: Patch, who: SimpleNamespace, now: SimpleNamespace) -> None:
    brim = canvas.on_plane(0, who.hairline + 5, 30)
    shape = inside(np.square(head.u * (1 / (who.face_width + 4))) + rounded(head.v, CROWN + 12) - 1)
    edge = brim.v - 0.006 * np.square(brim.u)
    brim.solid(shape * ramp(0.5 - edge), now.clothes)
    brim.shade(shape * band(edge, -9, 0) * 0.4)


def paint_glasses(canvas: Canvas, who: SimpleNamespace, now: SimpleNamespace) -> None:
    width, height, square = now.lens
    frame = 0.25 * now.clothes
    for side in (-1, 1):
        lens = canvas.on_plane(side * who.eye_distance, who.eye_y + 1, 40, reach=18)
        x2, y2 = np.square(lens.u * (1 / width)), np.square(lens.v * (1 / height))
        ellipse, rectangle = np.sqrt(x2 + y2), np.sqrt(np.sqrt(np.square(x2) + np.square(y2)))
        edge = (ellipse + square * (rectangle - ellipse) - 1) * height
        if now.sunglasses:
            lens.paint(0.92 * ramp(0.5 - edge), colour(0.05, 0.05, 0.06))
        lens.paint(ramp(0.5 + now.rim - np.abs(edge)), frame)
        temple = canvas.on_plane(side * (who.eye_distance + width + 8), who.eye_y - 1, 26, reach=10)
        temple.paint(band(temple.v, -0.8, 0.8) * band(temple.u, -9, 9), frame)
    bridge = canvas.on_plane(0, who.eye_y, 42, reach=9)
    reach = who.eye_distance - width + 0.6
    bridge.paint(band(bridge.v - 0.03 * np.square(bridge.u), -0.8, 0.8) * band(bridge.u, -reach, reach), frame)
