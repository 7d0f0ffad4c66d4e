"""Persons, riders, bicycles and motorcycles of the synthetic street scenes.

All are built from balls in space (limbs are the hulls of two balls), so that they can be seen from
every side. Local coordinates as in :mod:`.solids`: x right, y up, z forward, metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cityscapes_maskrcnn.synthetic.canvas import (
    Array,
    Camera,
    Color,
    Part,
    balls,
    convex_hull,
    shade,
)
from cityscapes_maskrcnn.synthetic.solids import Point3, Pose

_SKIN: tuple[Color, ...] = ((226, 182, 152), (206, 158, 124), (164, 116, 84), (112, 76, 56))
_HAIR: tuple[Color, ...] = (
    (40, 30, 24),
    (84, 58, 36),
    (150, 116, 66),
    (120, 120, 118),
    (22, 20, 20),
)
_TOPS: tuple[Color, ...] = (
    (34, 38, 48), (52, 60, 78), (120, 30, 34), (190, 44, 40), (216, 212, 204), (70, 92, 64),
    (44, 84, 140), (140, 120, 92), (206, 168, 60), (96, 60, 104), (72, 72, 72), (40, 118, 124),
)  # fmt: skip
_TROUSERS: tuple[Color, ...] = (
    (38, 44, 62), (54, 70, 104), (30, 30, 32), (92, 84, 72), (66, 66, 70), (150, 134, 108),
)  # fmt: skip
_FRAMES: tuple[Color, ...] = (
    (170, 30, 30), (30, 60, 130), (40, 40, 42), (190, 190, 192), (40, 110, 70), (210, 150, 30),
)  # fmt: skip


@dataclass(frozen=True)
class Clothes:
    """Colours of one person."""

    skin: Color
    hair: Color
    top: Color
    trousers: Color
    shoes: Color
    bag: Color


def make_clothes(rng: np.random.Generator) -> Clothes:
    """Draw the colours of a person."""
    return Clothes(
        _SKIN[rng.integers(len(_SKIN))],
        _HAIR[rng.integers(len(_HAIR))],
        shade(_TOPS[rng.integers(len(_TOPS))], rng.uniform(0.85, 1.2)),
        shade(_TROUSERS[rng.integers(len(_TROUSERS))], rng.uniform(0.85, 1.2)),
        (34, 30, 28) if rng.random() < 0.7 else (196, 192, 186),
        _TOPS[rng.integers(len(_TOPS))],
    )


class Figure:
    """Collect the parts of one figure and put them in order of distance.

    Args:
        camera: projects the figure.
        pose: where it stands.
        size: factor on all local coordinates.
        light: +1 if the sun is to the right of the image, -1 if it is to the left.
    """

    def __init__(self, camera: Camera, pose: Pose, size: float, light: float) -> None:
        self.camera = camera
        self.pose = pose
        self.size = size
        self.light = light
        self.scale = camera.pixels_per_metre(pose.z)
        self._items: list[tuple[float, list[Part]]] = []

    def world(self, points: Sequence[Point3] | Array) -> Array:
        """Get world points (N, 3) in metres of local points."""
        return self.pose.world(np.asarray(points, dtype=np.float64) * self.size)

    def image(self, points: Sequence[Point3] | Array) -> Array:
        """Get image points (N, 2) in pixels of local points."""
        return self.camera.project(self.world(points))

    def add(
        self, points: Sequence[Point3], radii: Sequence[float], color: Color, bias: float = 0.0
    ) -> None:
        """Add the hull of balls; drawn later, nearest last. ``bias`` (metres) brings it nearer."""
        world = self.world(points)
        sizes = [radius * self.size for radius in radii]
        depth = float(world[:, 2].mean()) - bias
        parts = [balls(self.camera, world, sizes, shade(color, 0.78))]
        if self.scale * max(sizes) > 1.6:
            # The lit side of a round thing: the same balls, smaller and moved towards the sun.
            lit = world + np.array([self.light * 0.3 * max(sizes), 0.12 * max(sizes), 0.0])
            parts.append(
                balls(self.camera, lit, [0.68 * s for s in sizes], shade(color, 1.06), False)
            )
        self._items.append((depth, parts))

    def tube(self, path: Sequence[Point3], radius: float, color: Color) -> None:
        """Add a thin tube along a path."""
        world = self.world(path)
        width = max(2 * radius * self.size * self.scale, 0.8)
        part = Part(self.camera.project(world), color, line=width)
        self._items.append((float(world[:, 2].mean()), [part]))

    def patch(self, parts: list[Part], depth: float) -> None:
        """Add other parts at a distance in metres."""
        self._items.append((depth, parts))

    def parts(self) -> list[Part]:
        """Get all parts, far to near."""
        return [part for _, parts in sorted(self._items, key=lambda i: -i[0]) for part in parts]


def person_parts(camera: Camera, pose: Pose, rng: np.random.Generator, light: float) -> list[Part]:
    """Build a person who walks or stands: adult or child, with coat, skirt or bag."""
    child = rng.random() < 0.1
    height = rng.uniform(1.05, 1.4) if child else rng.uniform(1.58, 1.9)
    wear = make_clothes(rng)
    figure = Figure(camera, pose, height / 1.75, light)
    stride = rng.uniform(-0.3, 0.3) if rng.random() < 0.8 else 0.03
    girth = rng.uniform(0.92, 1.18)
    long_coat, skirt = rng.random() < 0.18, rng.random() < 0.15
    bag = rng.random()
    legs = wear.skin if skirt else wear.trousers
    for side in (-1.0, 1.0):
        step = side * stride
        knee = (side * 0.1, 0.48, step * 0.55 + 0.04)
        ankle = (side * 0.1, 0.10 + max(0.0, -step) * 0.25, step)
        figure.add([(side * 0.09, 0.9, 0.0), knee], [0.1 * girth, 0.072], legs)
        figure.add([knee, ankle], [0.07, 0.05], legs)
        toe = (ankle[0], ankle[1] - 0.05, ankle[2] + 0.16)
        figure.add([(ankle[0], ankle[1] - 0.04, ankle[2]), toe], [0.055, 0.04], wear.shoes)
        elbow = (side * 0.25 * girth, 1.12, -step * 0.4)
        hand = (side * 0.25 * girth, 0.87, -step * 0.75 + 0.12)
        figure.add([(side * 0.2 * girth, 1.4, 0.0), elbow], [0.07, 0.06], wear.top, 0.25)
        figure.add([elbow, hand], [0.058, 0.045], wear.top, 0.25)
        figure.add(
            [hand, (hand[0], hand[1] - 0.06, hand[2] + 0.02)], [0.042, 0.036], wear.skin, 0.25
        )
    hem, low = (0.62, 0.12) if long_coat else (0.92, 0.1)
    chest = [(-0.14 * girth, 1.4, 0.0), (0.14 * girth, 1.4, 0.0), (-low, hem, 0.0), (low, hem, 0.0)]
    figure.add(chest, [0.09, 0.09, 0.1 * girth, 0.1 * girth], wear.top, 0.2)
    if skirt and not long_coat:
        figure.add([(-0.1, 0.94, 0.0), (0.1, 0.94, 0.0), (-0.17, 0.6, 0.0), (0.17, 0.6, 0.0)],
                   [0.09, 0.09, 0.08, 0.08], wear.trousers, 0.3)  # fmt: skip
    _head(figure, wear, (0.0, 1.62, 0.02), rng.random() < 0.4)
    if bag < 0.2:
        figure.add([(0.0, 1.32, -0.2), (0.0, 1.05, -0.2)], [0.14, 0.16], wear.bag)
    elif bag < 0.42:
        figure.add([(0.3, 0.72, 0.0), (0.3, 0.6, 0.06)], [0.1, 0.13], wear.bag)
    return figure.parts()


def _head(figure: Figure, wear: Clothes, at: Point3, long_hair: bool) -> None:
    x, y, z = at
    figure.add([(x, y - 0.14, z - 0.02), (x, y - 0.22, z - 0.02)], [0.055, 0.06], wear.skin)
    figure.add([(x, y - 0.04, z + 0.02), (x, y + 0.03, z + 0.02)], [0.085, 0.1], wear.skin, 0.06)
    bottom = y - 0.16 if long_hair else y + 0.0
    crown = [(x, y + 0.07, z - 0.01), (x, bottom, z - 0.06)]
    # Seen from the front the hair lies behind the face, from the back before it.
    figure.add(crown, [0.1, 0.09 if long_hair else 0.085], wear.hair, 0.05)
    figure.add([(x - 0.03, y + 0.1, z), (x + 0.03, y + 0.1, z)], [0.065, 0.065], wear.hair, 0.2)


def _wheel(figure: Figure, z: float, radius: float, tyre: float, spokes: bool) -> None:
    """A wheel in the plane x = 0; the air inside belongs to the outline, as in Cityscapes."""
    angles = np.linspace(0, 2 * np.pi, 29)
    ring = np.stack(
        [np.zeros(29), radius * (1 + np.sin(angles)), z + radius * np.cos(angles)], axis=1
    )
    ring[:, 1] += tyre
    image = figure.image(ring)
    thick = max(2 * tyre * figure.size * figure.scale, 0.9)
    parts = [Part(convex_hull(image), None)]
    if spokes:
        hub = figure.image([(0.0, radius + tyre, z)])[0]
        thin = max(0.012 * figure.scale, 0.3)
        if figure.scale > 40:
            parts += [
                Part(np.stack([hub, image[k]]), (120, 124, 128), False, thin)
                for k in range(0, 28, 2)
            ]
        parts.append(Part(image, (24, 24, 26), True, thick))
        if figure.scale > 55:
            rim = hub + (image - hub) * 0.9
            parts.append(Part(rim, (168, 172, 176), False, thick * 0.45))
    else:
        parts.append(Part(convex_hull(image), (64, 66, 70), True))
        parts.append(Part(image, (22, 22, 24), True, thick))
        hub = figure.image([(0.0, radius + tyre, z)])[0]
        if figure.scale > 40:
            parts.append(Part(hub + (image - hub) * 0.45, (150, 152, 156), False, thick * 0.35))
    figure.patch(parts, float(figure.world([(0.0, radius, z)])[0, 2]))


def bicycle_parts(camera: Camera, pose: Pose, rng: np.random.Generator, light: float) -> list[Part]:
    """Build a bicycle: two spoked wheels, diamond frame, saddle, handlebar, often a basket."""
    figure = Figure(camera, pose, rng.uniform(0.96, 1.04), light)
    color = shade(_FRAMES[rng.integers(len(_FRAMES))], rng.uniform(0.9, 1.15))
    rear, front, radius = -0.52, 0.53, 0.33
    _wheel(figure, rear, radius, 0.024, True)
    _wheel(figure, front, radius, 0.024, True)
    axle_r: Point3 = (0.0, 0.35, rear)
    axle_f: Point3 = (0.0, 0.35, front)
    crank: Point3 = (0.0, 0.30, -0.08)
    seat: Point3 = (0.0, 0.84, -0.24)
    head: Point3 = (0.0, 0.84, 0.34)
    for a, b in (
        (axle_r, crank), (axle_r, seat), (crank, seat), (crank, head), (seat, head),
        (head, axle_f), (head, (0.0, 1.0, 0.28)),
    ):  # fmt: skip
        figure.tube([a, b], 0.022, color)
    dark: Color = (34, 32, 32)
    figure.add([(0.0, 0.93, -0.34), (0.0, 0.94, -0.14)], [0.07, 0.035], dark, 0.02)
    figure.tube([seat, (0.0, 0.93, -0.25)], 0.018, (150, 152, 154))
    figure.tube([(-0.28, 1.02, 0.2), (0.0, 1.03, 0.3), (0.28, 1.02, 0.2)], 0.018, dark)
    figure.tube([(-0.1, 0.18, -0.02), (0.1, 0.42, -0.14)], 0.02, dark)
    figure.patch([Part(figure.image([(0.0, 0.3, -0.2), (0.0, 0.4, -0.08), (0.0, 0.28, 0.02)]),
                       dark)], pose.z - 0.01)  # fmt: skip
    extra = rng.random()
    if extra < 0.3:
        figure.add([(-0.12, 0.95, 0.46), (0.12, 0.95, 0.46), (-0.1, 0.8, 0.46), (0.1, 0.8, 0.46)],
                   [0.05] * 4, (120, 98, 66))  # fmt: skip
    elif extra < 0.55:
        figure.add([(0.0, 0.72, -0.6), (0.0, 0.5, -0.62)], [0.11, 0.12], (44, 58, 90))
    if rng.random() < 0.5:
        figure.add([(0.0, 0.72, rear - 0.1)], [0.03], (214, 30, 24), 0.2)
    return figure.parts()


def motorcycle_parts(
    camera: Camera, pose: Pose, rng: np.random.Generator, light: float
) -> list[Part]:
    """Build a motorcycle or scooter: two thick wheels, engine, tank or shield, seat, lamp."""
    figure = Figure(camera, pose, rng.uniform(0.96, 1.06), light)
    color = shade(_FRAMES[rng.integers(len(_FRAMES))], rng.uniform(0.9, 1.2))
    scooter = rng.random() < 0.45
    dark: Color = (30, 30, 32)
    if scooter:
        _wheel(figure, -0.52, 0.2, 0.055, False)
        _wheel(figure, 0.62, 0.2, 0.055, False)
        figure.add([(0.0, 0.62, -0.7), (0.0, 0.7, -0.1), (0.0, 0.36, -0.62), (0.0, 0.32, 0.0)],
                   [0.14, 0.12, 0.16, 0.12], color)  # fmt: skip
        figure.add([(0.0, 0.3, -0.1), (0.0, 0.3, 0.4)], [0.1, 0.1], shade(color, 0.8))
        figure.add([(-0.1, 0.85, 0.4), (0.1, 0.85, 0.4), (-0.12, 0.36, 0.52), (0.12, 0.36, 0.52)],
                   [0.07, 0.07, 0.08, 0.08], color)  # fmt: skip
        figure.add([(0.0, 0.82, -0.72), (0.0, 0.8, 0.0)], [0.1, 0.09], dark, 0.05)
        figure.add([(0.0, 0.42, 0.6), (0.0, 0.4, 0.74)], [0.1, 0.07], color)
        bar, lamp = 1.02, (0.0, 0.9, 0.5)
    else:
        _wheel(figure, -0.68, 0.27, 0.07, False)
        _wheel(figure, 0.74, 0.27, 0.06, False)
        figure.add([(0.0, 0.34, -0.2), (0.0, 0.34, 0.26), (0.0, 0.56, 0.2)], [0.18, 0.17, 0.16],
                   (62, 64, 68))  # fmt: skip
        figure.add([(0.0, 0.8, -0.02), (0.0, 0.84, 0.3), (0.0, 0.68, 0.2)], [0.12, 0.16, 0.16],
                   color, 0.03)  # fmt: skip
        figure.add([(0.0, 0.8, -0.75), (0.0, 0.74, -0.1)], [0.09, 0.12], dark, 0.03)
        figure.add([(0.0, 0.72, -0.86), (0.0, 0.62, -0.5)], [0.09, 0.12], color)
        figure.tube([(0.0, 0.95, 0.4), (0.0, 0.32, 0.74)], 0.05, (150, 154, 158))
        figure.add([(0.14, 0.32, 0.0), (0.14, 0.36, -0.86)], [0.05, 0.07], (168, 170, 172))
        figure.add([(0.0, 0.62, 0.72), (0.0, 0.58, 0.9)], [0.07, 0.05], color)
        bar, lamp = 1.06, (0.0, 0.88, 0.56)
    figure.tube([(-0.36, bar, 0.24), (0.0, bar - 0.04, 0.4), (0.36, bar, 0.24)], 0.028, dark)
    figure.add([lamp], [0.1], (236, 236, 220), 0.03)
    figure.add([(0.0, 0.74, -0.92)], [0.055], (210, 30, 26), 0.03)
    for side in (-1.0, 1.0):
        figure.tube([(side * 0.28, bar, 0.28), (side * 0.34, bar + 0.14, 0.28)], 0.02, dark)
        figure.add([(side * 0.34, bar + 0.16, 0.28)], [0.05], dark)
    return figure.parts()


def rider_parts(
    camera: Camera, pose: Pose, rng: np.random.Generator, light: float, motor: bool
) -> list[Part]:
    """Build a person who sits on a bicycle or (``motor``) on a motorcycle at the same pose."""
    wear = make_clothes(rng)
    figure = Figure(camera, pose, rng.uniform(0.97, 1.05), light)
    seat_y, seat_z = (0.9, -0.2) if motor else (1.02, -0.24)
    lean = rng.uniform(0.12, 0.32)
    shoulder_y, shoulder_z = seat_y + 0.5, seat_z + lean
    hand = (0.33, 1.06, 0.26) if motor else (0.26, 1.05, 0.22)
    phase = rng.uniform(0, 2 * np.pi)
    for side in (-1.0, 1.0):
        if motor:
            knee: Point3 = (side * 0.26, 0.72, 0.24)
            foot: Point3 = (side * 0.22, 0.34, 0.02)
        else:
            turn = phase + (np.pi if side > 0 else 0.0)
            foot = (side * 0.12, 0.36 + 0.17 * np.sin(turn), -0.06 + 0.17 * np.cos(turn))
            knee = (side * 0.13, (seat_y + foot[1]) / 2 + 0.08, foot[2] + 0.3)
        hip = (side * 0.1, seat_y, seat_z)
        figure.add([hip, knee], [0.1, 0.075], wear.trousers, 0.02)
        figure.add([knee, foot], [0.072, 0.05], wear.trousers, 0.02)
        figure.add([foot, (foot[0], foot[1] - 0.03, foot[2] + 0.15)], [0.055, 0.04], wear.shoes)
        shoulder = (side * 0.2, shoulder_y, shoulder_z)
        elbow = (side * 0.3, (shoulder_y + hand[1]) / 2 - 0.06, (shoulder_z + hand[2]) / 2)
        figure.add([shoulder, elbow], [0.068, 0.058], wear.top, 0.03)
        figure.add([elbow, (side * hand[0], hand[1], hand[2])], [0.056, 0.042], wear.top, 0.03)
        figure.add([(side * hand[0], hand[1] + 0.01, hand[2] + 0.03)], [0.045], wear.skin, 0.03)
    torso = [(-0.16, shoulder_y, shoulder_z), (0.16, shoulder_y, shoulder_z),
             (-0.12, seat_y, seat_z), (0.12, seat_y, seat_z)]  # fmt: skip
    figure.add(torso, [0.09, 0.09, 0.11, 0.11], wear.top, 0.06)
    head: Point3 = (0.0, shoulder_y + 0.25, shoulder_z + 0.08)
    if motor or rng.random() < 0.45:
        x, y, z = head
        figure.add([(x, y - 0.16, z), (x, y - 0.24, z - 0.04)], [0.06, 0.06], wear.skin)
        figure.add([(x, y - 0.05, z + 0.04), (x, y, z + 0.03)], [0.08, 0.09], wear.skin, 0.05)
        helmet = shade(_FRAMES[rng.integers(len(_FRAMES))], 1.2)
        low = y - 0.06 if motor else y + 0.05
        figure.add([(x, y + 0.06, z + 0.02), (x, low, z - 0.04)], [0.125, 0.12], helmet, 0.12)
        if motor:
            figure.add([(x - 0.05, y - 0.01, z + 0.1), (x + 0.05, y - 0.01, z + 0.1)],
                       [0.055, 0.055], (30, 36, 44), 0.05)  # fmt: skip
    else:
        _head(figure, wear, head, rng.random() < 0.4)
    if rng.random() < 0.3:
        back = [(0.0, shoulder_y - 0.05, shoulder_z - 0.16), (0.0, seat_y + 0.2, seat_z - 0.12)]
        figure.add(back, [0.13, 0.15], wear.bag)
    return figure.parts()
