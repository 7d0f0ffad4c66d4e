"""Solids in space for the synthetic street scenes: how vehicles are described and drawn.

A vehicle has local coordinates in metres: x to its right, y up from the road, z forward; its origin
is on the road below its middle. Each solid is a side view (a profile) drawn out along x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from cityscapes_maskrcnn.synthetic.canvas import (
    Array,
    Camera,
    Color,
    Part,
    blend,
    convex_hull,
    shade,
)

Point2 = tuple[float, float]
Point3 = tuple[float, float, float]

GLASS: Color = (38, 46, 54)
RUBBER: Color = (22, 22, 24)


@dataclass(frozen=True)
class Pose:
    """Where an object stands: metres on the ground; heading 0 looks along +Z, pi/2 along +X."""

    x: float
    z: float
    heading: float

    def world(self, local: Array) -> Array:
        """Map local (N, 3) to world (N, 3)."""
        sin, cos = math.sin(self.heading), math.cos(self.heading)
        result = local.copy()
        result[:, 0] = self.x + local[:, 0] * cos + local[:, 2] * sin
        result[:, 2] = self.z - local[:, 0] * sin + local[:, 2] * cos
        return result

    def local(self, world: Array) -> Array:
        """Map world (N, 3) to local (N, 3)."""
        sin, cos = np.sin(self.heading), np.cos(self.heading)
        dx, dz = world[:, 0] - self.x, world[:, 2] - self.z
        return np.stack([dx * cos - dz * sin, world[:, 1], dx * sin + dz * cos], axis=1)


@dataclass(frozen=True)
class Decal:
    """A flat area on a side (points are (z, y)) or on the front or rear (points are (x, y)).

    ``detail`` is the height of the vehicle in pixels from which it is worth drawing.
    """

    points: Sequence[Point2]
    color: Color
    detail: float = 0.0


@dataclass
class Solid:
    """A profile drawn out along x.

    Attributes:
        profile: (z, y) from the lower rear corner over the top to the lower front corner.
        belt: height up to which the solid is ``half_width`` wide.
        half_width: metres.
        roof_half_width: metres, at the highest point.
        color: paint.
        glass: indices i of the strips between profile points i and i + 1 that hold a window.
    """

    profile: Sequence[Point2]
    belt: float
    half_width: float
    roof_half_width: float
    color: Color
    glass: Sequence[int] = ()
    sides: list[Decal] = field(default_factory=list)
    front: list[Decal] = field(default_factory=list)
    rear: list[Decal] = field(default_factory=list)

    def half_width_at(self, y: float) -> float:
        """Get half the width at height ``y``."""
        top = max(point[1] for point in self.profile)
        share = min(1.0, max(0.0, (y - self.belt) / max(top - self.belt, 1e-6)))
        return self.half_width + (self.roof_half_width - self.half_width) * share


@dataclass(frozen=True)
class Wheel:
    """A wheel on both sides of a vehicle, at ``z``, metres."""

    z: float
    radius: float
    width: float = 0.22


@dataclass
class Vehicle:
    """Everything needed to draw a vehicle. ``length``, ``width``, ``height`` in metres."""

    label: str
    length: float
    width: float
    height: float
    solids: list[Solid]
    wheels: list[Wheel]
    bottom: float = 0.24


def rectangle(low: Point2, high: Point2) -> list[Point2]:
    """Corners of an upright rectangle."""
    return [(low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1])]


@dataclass(frozen=True)
class _Area:
    """A part before projection: (N, 3) local points; ``hull``: only their hull counts."""

    points: Array
    color: Color
    solid: bool = True
    hull: bool = False
    line: float = 0.0


class VehiclePainter:
    """Draw one vehicle at one place.

    Args:
        camera: projects it.
        pose: where it stands.
        vehicle: what it is.
        sun: (3,) unit vector in world coordinates that points at the sun.
    """

    def __init__(self, camera: Camera, pose: Pose, vehicle: Vehicle, sun: Array) -> None:
        self.camera = camera
        self.pose = pose
        self.vehicle = vehicle
        self.eye = pose.local(np.array([[0.0, camera.elevation, 0.0]]))[0]
        self.sun = Pose(0, 0, pose.heading).local(sun[None])[0]
        nearest = max(2.0, float(np.hypot(pose.x, pose.z)) - vehicle.length / 3)
        self.pixels = vehicle.height * camera.pixels_per_metre(nearest)

    def parts(self) -> list[Part]:
        """Get the parts from the far side to the near side of the camera."""
        side = 1.0 if self.eye[0] > 0 else -1.0
        wheels = sorted(self.vehicle.wheels, key=lambda wheel: -abs(wheel.z - self.eye[2]))
        areas = [self._tyre(wheel, which) for which in (-side, side) for wheel in wheels]
        areas.append(self._underbody())
        solids = sorted(self.vehicle.solids, key=lambda s: -abs(_middle(s) - self.eye[2]))
        for solid in solids:
            areas += self._solid(solid)
        if abs(self.eye[0]) > self.vehicle.width / 2:
            for wheel in wheels:
                areas += self._wheel_face(wheel, side)
        return self._project(areas)

    def plate(self) -> Array | None:
        """Get the image outline (4, 2) of the license plate if it is large enough to annotate."""
        if self.pixels < 90 or self.vehicle.label != "car":
            return None
        end = self.vehicle.length / 2
        if self.eye[2] < -end:
            low, high, z = 0.56, 0.67, -end
        elif self.eye[2] > end:
            low, high, z = 0.40, 0.51, end
        else:
            return None
        corners = [(-0.26, low, z), (0.26, low, z), (0.26, high, z), (-0.26, high, z)]
        return self.camera.project(self.pose.world(np.array(corners)))

    def _project(self, areas: Sequence[_Area]) -> list[Part]:
        """All areas at once: one projection of many points is much faster than many of few."""
        image = self.camera.project(self.pose.world(np.concatenate([a.points for a in areas])))
        parts, start = [], 0
        for area in areas:
            points = image[start : start + len(area.points)]
            start += len(area.points)
            if area.hull:
                points = convex_hull(points)
            parts.append(Part(points, area.color, area.solid, area.line))
        return parts

    def _light(self, normal: Array) -> float:
        return 0.62 + 0.4 * max(0.0, float(normal @ self.sun)) + 0.18 * float(normal[1])

    def _solid(self, solid: Solid) -> list[_Area]:
        rows = [(z, y, solid.half_width_at(y)) for z, y in solid.profile]
        faces: list[tuple[float, list[_Area]]] = []
        for index, ((za, ya, wa), (zb, yb, wb)) in enumerate(pairwise(rows)):
            normal = np.array([0.0, zb - za, ya - yb])
            normal /= max(float(np.linalg.norm(normal)), 1e-9)
            middle = np.array([0.0, (ya + yb) / 2, (za + zb) / 2])
            if normal @ (self.eye - middle) <= 0:
                continue
            quad = np.array([(-wa, ya, za), (wa, ya, za), (wb, yb, zb), (-wb, yb, zb)])
            strip = [_Area(quad, shade(solid.color, self._light(normal)))]
            if index in solid.glass and self.pixels > 6:
                strip += self._pane(quad)
            faces.append((float(np.linalg.norm(middle - self.eye)), strip))
        areas = [area for _, strip in sorted(faces, key=lambda face: -face[0]) for area in strip]
        return areas + self._ends(solid, rows) + self._side(solid, rows)

    def _ends(self, solid: Solid, rows: Sequence[Point3]) -> list[_Area]:
        """Lamps, grille and plate of the visible end."""
        low, high = min(z for z, _, _ in rows), max(z for z, _, _ in rows)
        if self.eye[2] < low:
            decals, z, normal = solid.rear, low, np.array([0.0, 0.0, -1.0])
        elif self.eye[2] > high:
            decals, z, normal = solid.front, high, np.array([0.0, 0.0, 1.0])
        else:
            return []
        light = self._light(normal)
        return [
            _Area(np.array([(x, y, z) for x, y in d.points]), shade(d.color, light), False)
            for d in decals
            if self.pixels >= d.detail
        ]

    def _side(self, solid: Solid, rows: Sequence[Point3]) -> list[_Area]:
        if abs(self.eye[0]) <= min(w for _, _, w in rows):
            return []
        sign = 1.0 if self.eye[0] > 0 else -1.0
        light = self._light(np.array([sign, 0.0, 0.0]))
        areas = [_Area(np.array([(sign * w, y, z) for z, y, w in rows]), shade(solid.color, light))]
        for decal in solid.sides:
            if self.pixels >= decal.detail:
                points = [(sign * solid.half_width_at(y), y, z) for z, y in decal.points]
                areas.append(_Area(np.array(points), shade(decal.color, light), False))
        return areas

    def _pane(self, quad: Array) -> list[_Area]:
        """A window that leaves a frame of its strip free."""
        left, right = quad[0] + 0.09 * (quad[1] - quad[0]), quad[1] + 0.09 * (quad[0] - quad[1])
        upper_left = quad[3] + 0.09 * (quad[2] - quad[3]) - left
        upper_right = quad[2] + 0.09 * (quad[3] - quad[2]) - right
        glass = np.array([
            left + 0.08 * upper_left, right + 0.08 * upper_right,
            right + 0.93 * upper_right, left + 0.93 * upper_left,
        ])  # fmt: skip
        areas = [_Area(glass, GLASS, False)]
        if self.pixels > 30:
            shine = glass.copy()
            shine[0] = glass[0] + 0.5 * (glass[3] - glass[0])
            shine[1] = glass[1] + 0.72 * (glass[2] - glass[1])
            areas.append(_Area(shine, (104, 118, 130), False))
        return areas

    def _underbody(self) -> _Area:
        e, w = self.vehicle.length / 2 - 0.35, self.vehicle.width / 2 - 0.08
        low, high = self.vehicle.bottom * 0.75, self.vehicle.bottom + 0.25
        corners = [(x, y, z) for x in (-w, w) for y in (low, high) for z in (-e, e)]
        return _Area(np.array(corners), (26, 26, 28), hull=True)

    def _disc(self, wheel: Wheel, x: float, share: float) -> Array:
        """Points (20, 3) on a circle around the hub of a wheel."""
        angles = np.arange(20) * (2 * np.pi / 20)
        radius = wheel.radius * share
        y, z = wheel.radius + radius * np.sin(angles), wheel.z + radius * np.cos(angles)
        return np.stack([np.full(20, x), y, z], axis=1)

    def _tyre(self, wheel: Wheel, side: float) -> _Area:
        outside = side * (self.vehicle.width / 2 - 0.02)
        rims = (
            self._disc(wheel, outside, 1.0),
            self._disc(wheel, outside - side * wheel.width, 1.0),
        )
        return _Area(np.concatenate(rims), RUBBER, hull=True)

    def _wheel_face(self, wheel: Wheel, side: float) -> list[_Area]:
        """Wheel arch, tyre, rim and spokes on the visible side."""
        x = side * self.vehicle.width / 2
        arch = self._disc(wheel, x, 1.16)
        arch[:, 1] = np.maximum(arch[:, 1], wheel.radius * 0.75)
        areas = [_Area(arch, (20, 20, 22), False), _Area(self._disc(wheel, x, 1.0), RUBBER)]
        if self.pixels > 7:
            areas.append(_Area(self._disc(wheel, x, 0.66), (146, 150, 154), False))
        slant = abs(float(self.eye[0]) - x) / max(abs(float(self.eye[2]) - wheel.z), 1e-6)
        if self.pixels > 40 and slant > 0.3:
            areas.append(_Area(self._disc(wheel, x, 0.54), (74, 78, 82), False))
            hub = np.array([x, wheel.radius, wheel.z])
            width = 0.05 * self.pixels / self.vehicle.height * min(1.0, slant)
            areas += [
                _Area(np.stack([hub, end]), (158, 162, 166), False, line=width)
                for end in self._disc(wheel, x, 0.6)[::4]
            ]
        return areas


def _middle(solid: Solid) -> float:
    """Middle of a solid along z."""
    return (solid.profile[0][0] + solid.profile[-1][0]) / 2


def hazed(parts: Sequence[Part], haze: Color, amount: float) -> list[Part]:
    """Mix the colour of every part with ``haze`` by ``amount``, 0 to 1."""
    return [
        part if part.color is None else replace(part, color=blend(part.color, haze, amount))
        for part in parts
    ]
