"""The ground of the synthetic street scenes: lanes, pavements, marks, rails; the own bonnet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.synthetic.canvas import (
    Array,
    Camera,
    Canvas,
    Color,
    Part,
    shade,
    unit_circle,
)

NEAR, FAR = 1.2, 260.0

Values = float | npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Street:
    """Cross-section of a street, in metres to the right of the camera.

    Attributes:
        left, right: kerbs.
        left_wall, right_wall: fronts of the houses.
        lane: width of a lane; the camera drives in the middle of the lane around x = 0.
        ahead: middles of the lanes in the camera's direction.
        oncoming: middles of the lanes in the other direction.
        parking: middles of the rows of parked cars.
        rails: middle of the tram lane, or None.
        green: whether the left and the right side are a park instead of houses.
        length: where the street ends.
        crossing: distance of a zebra crossing and side street, or None.
    """

    left: float
    right: float
    left_wall: float
    right_wall: float
    lane: float
    ahead: tuple[float, ...]
    oncoming: tuple[float, ...]
    parking: tuple[float, ...]
    rails: float | None
    green: tuple[bool, bool]
    length: float
    crossing: float | None


def make_street(rng: np.random.Generator) -> Street:
    """Draw the cross-section of a street."""
    lane = rng.uniform(3.1, 3.6)
    offset = rng.uniform(-0.3, 0.3)
    ahead = [offset] + ([offset + lane] if rng.random() < 0.2 else [])
    rails = offset - lane if rng.random() < 0.3 else None
    first = offset - lane * (2 if rails is not None else 1)
    oncoming = [first] + ([first - lane] if rng.random() < 0.25 else [])
    right, left = ahead[-1] + lane / 2, oncoming[-1] - lane / 2
    parking = []
    if rng.random() < 0.72:
        parking.append(right + 1.1)
        right += 2.3
    if rng.random() < 0.72:
        parking.append(left - 1.1)
        left -= 2.3
    return Street(
        left, right, left - rng.uniform(2.6, 5.5), right + rng.uniform(2.6, 5.5), lane,
        tuple(ahead), tuple(oncoming), tuple(parking), rails,
        (bool(rng.random() < 0.2), bool(rng.random() < 0.2)), rng.uniform(95, 190),
        rng.uniform(14, 42) if rng.random() < 0.4 else None,
    )  # fmt: skip


def _strip(camera: Camera, x0: float, x1: float, z0: float, z1: float) -> Array:
    """Image outline of a rectangle on the ground, from x0 to x1 and z0 to z1."""
    return camera.project([(x0, 0.0, z0), (x1, 0.0, z0), (x1, 0.0, z1), (x0, 0.0, z1)])


def paint_ground(
    canvas: Canvas, camera: Camera, street: Street, rng: np.random.Generator
) -> list[tuple[str, list[Part]]]:
    """Paint everything flat except the marks on the road.

    Returns:
        Labels and areas, in the order in which they cover each other.
    """
    asphalt = shade((98, 98, 100), rng.uniform(0.8, 1.12))
    paving = shade((142, 134, 126), rng.uniform(0.85, 1.1))
    areas: list[tuple[str, list[Part]]] = []

    def lay(
        label: str, x0: float, x1: float, color: Color, z0: float = NEAR, z1: float = FAR
    ) -> None:
        polygon = _strip(camera, x0, x1, z0, z1)
        canvas.fill([polygon], color)
        areas.append((label, [Part(polygon, None)]))

    wide = 200.0
    for side, wall, green in (
        (-1.0, street.left_wall, street.green[0]),
        (1.0, street.right_wall, street.green[1]),
    ):
        color = (92, 106, 58) if green else shade(paving, 0.85)
        edges = sorted((wall, wall + side * wide))
        lay("terrain" if green else "ground", edges[0], edges[1], color)
    lay("road", street.left, street.right, asphalt)
    lay("sidewalk", street.left_wall, street.left, paving)
    lay("sidewalk", street.right, street.right_wall, paving)
    for middle in street.parking:
        polygon = _strip(camera, middle - 1.15, middle + 1.15, NEAR, FAR)
        canvas.fill([polygon], shade(asphalt, 0.93))
        if rng.random() < 0.3:
            areas.append(("parking", [Part(polygon, None)]))
    if street.crossing is not None:
        z0, z1 = street.crossing + 3.4, street.crossing + 10.5
        for x0, x1 in (
            (street.left_wall - wide, street.left),
            (street.right, street.right_wall + wide),
        ):
            lay("road", x0, x1, asphalt, z0, z1)
    _paving_joints(canvas, camera, street, paving)
    for kerb, side in ((street.left, -1.0), (street.right, 1.0)):
        edges = sorted((kerb, kerb + side * 0.16))
        canvas.fill([_strip(camera, edges[0], edges[1], NEAR, FAR)], shade(paving, 1.18))
        edges = sorted((kerb, kerb - side * 0.1))
        canvas.fill([_strip(camera, edges[0], edges[1], NEAR, FAR)], shade(asphalt, 0.72))
    if street.rails is not None:
        bed = _strip(camera, street.rails - 1.3, street.rails + 1.3, NEAR, FAR)
        canvas.fill([bed], shade(asphalt, 1.06))
        for x in (street.rails - 0.72, street.rails + 0.72):
            canvas.fill([_strip(camera, x - 0.09, x + 0.09, NEAR, FAR)], (70, 66, 64))
            canvas.fill([_strip(camera, x - 0.03, x + 0.03, NEAR, FAR)], (150, 148, 146))
        if rng.random() < 0.5:
            areas.append(("rail track", [Part(bed, None)]))
    for _ in range(int(rng.integers(0, 6))):
        x, z = rng.uniform(street.left, street.right - 1.2), rng.uniform(4, 45)
        patch = _strip(camera, x, x + rng.uniform(0.6, 2.0), z, z + rng.uniform(1.5, 7))
        canvas.fill([patch], shade(asphalt, rng.uniform(0.82, 1.1)))
    return areas


def _strips(camera: Camera, x0: Values, x1: Values, z0: Values, z1: Values) -> Array:
    """Image outlines (N, 4, 2) of rectangles on the ground; numbers stand for equal values."""
    sides = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (x0, x1, z0, z1)))
    a, b, c, d = (np.atleast_1d(side) for side in sides)
    x, z = np.stack([a, b, b, a], axis=1), np.stack([c, c, d, d], axis=1)
    corners = np.stack([x, np.zeros_like(x), z], axis=2)
    return camera.project(corners.reshape(-1, 3)).reshape(-1, 4, 2)


def _paving_joints(canvas: Canvas, camera: Camera, street: Street, paving: Color) -> None:
    """Paint the gaps between the slabs of the pavements, as far as they can be seen."""
    color = shade(paving, 0.88)
    along = np.concatenate([np.arange(4.0, 24, 1.2), np.arange(24.0, 50, 2.4)])
    for x0, x1 in ((street.left_wall, street.left), (street.right, street.right_wall)):
        canvas.fill(_strips(camera, x0, x1, along, along + 0.05), color)
        across = np.arange(x0 + 1.0, x1 - 0.4, 1.0)
        canvas.fill(_strips(camera, across, across + 0.035, NEAR, 45), color)


def paint_marks(canvas: Canvas, camera: Camera, street: Street, rng: np.random.Generator) -> None:
    """Paint lane marks, an edge line, the zebra crossing, arrows and manhole covers."""
    white = shade((206, 206, 200), rng.uniform(0.85, 1.05))
    phase = rng.uniform(0, 9)
    starts = np.arange(2 + phase, 130, 9.0)
    for a, b in pairwise(sorted([*street.ahead, *street.oncoming])):
        if street.rails is not None and a < street.rails < b:
            sides = np.array([street.rails - 1.5, street.rails + 1.5])
            canvas.fill(_strips(camera, sides - 0.06, sides + 0.06, NEAR, 140), white)
        else:
            x = (a + b) / 2
            canvas.fill(_strips(camera, x - 0.07, x + 0.07, starts, starts + 4.0), white)
    dots, bays = np.arange(3, 70, 1.2), np.arange(2.6 + phase / 2, 60, 5.6)
    for x in street.parking:
        side = 1.0 if x > 0 else -1.0
        edge = x - side * 1.2
        canvas.fill(_strips(camera, edge - 0.05, edge + 0.05, dots, dots + 0.6), white)
        canvas.fill(_strips(camera, edge, edge + side * 2.2, bays, bays + 0.1), white)
    if street.crossing is not None:
        z = street.crossing
        bars = np.arange(street.left + 0.3, street.right - 0.4, 1.0)
        canvas.fill(_strips(camera, bars, bars + 0.5, z, z + 3.0), white)
        edge = street.ahead[-1] + street.lane / 2
        stop = street.ahead[0] - street.lane / 2
        canvas.fill([_strip(camera, stop, edge, z - 1.6, z - 1.2)], white)
    if rng.random() < 0.35:
        z, x = float(rng.uniform(10, 26)), street.ahead[0]
        shaft = _strip(camera, x - 0.07, x + 0.07, z, z + 2.6)
        head = camera.project([(x - 0.32, 0, z + 2.6), (x + 0.32, 0, z + 2.6), (x, 0, z + 4.2)])
        canvas.fill([shaft, head], white)
    for _ in range(int(rng.integers(1, 5))):
        x, z = float(rng.uniform(street.left + 0.5, street.right - 0.5)), float(rng.uniform(5, 40))
        rim = unit_circle(16) * 0.34
        cover = np.stack([x + rim[:, 0], 0 * rim[:, 0], z + rim[:, 1]], axis=1)
        canvas.fill([camera.project(cover)], (58, 56, 56))


def paint_ego(canvas: Canvas, rng: np.random.Generator) -> list[Part]:
    """Paint the bonnet of the camera's own car along the bottom of the image."""
    height, width = canvas.height, canvas.width
    crest = rng.uniform(0.885, 0.905) * height
    u = np.linspace(-0.02, 1.02, 40)
    bulge = np.abs(u - 0.5) * 2
    rim = crest + height * (0.035 * bulge**2 + 0.07 * np.clip(bulge - 0.82, 0, None) ** 1.5 * 4)
    top = np.stack([u * width, rim], axis=1)
    hood = np.concatenate([top, [(1.02 * width, height + 2.0), (-0.02 * width, height + 2.0)]])
    base: Color = (38, 42, 48)
    parts = [Part(hood, base)]
    for step in range(1, 9):
        lower = top.copy()
        lower[:, 1] += height * 0.012 * step
        band = np.concatenate([lower, hood[-2:]])
        parts.append(Part(band, shade(base, 1.0 + 0.09 * step), False))
    glint = np.stack([u * width, rim + height * 0.004], axis=1)
    parts.append(Part(glint, (120, 126, 132), False, max(0.6, height * 0.002)))
    return parts


def border_frame(height: int, width: int, thickness: Sequence[int]) -> list[list[int]]:
    """Get a frame along the image border as one polygon.

    Args:
        height: rows of the image.
        width: columns of the image.
        thickness: left, top, right, bottom, in pixels.
    """
    left, top, right, bottom = thickness
    x0, y0, x1, y1 = left, top, width - 1 - right, height - 1 - bottom
    return [
        [0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1], [0, 0],
        [x0, y0], [x0, y1], [x1, y1], [x1, y0], [x0, y0],
    ]  # fmt: skip
