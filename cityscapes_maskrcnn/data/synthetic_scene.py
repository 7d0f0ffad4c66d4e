"""Synthetic street scenes: what stands where, in which order it is painted, and its annotation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.data.synthetic_canvas import Array, Camera, Canvas, Part, outline
from cityscapes_maskrcnn.data.synthetic_people import (
    bicycle_parts,
    motorcycle_parts,
    person_parts,
    rider_parts,
)
from cityscapes_maskrcnn.data.synthetic_road import (
    Street,
    border_frame,
    make_street,
    paint_ego,
    paint_ground,
    paint_marks,
)
from cityscapes_maskrcnn.data.synthetic_solids import Pose, Vehicle, VehiclePainter, hazed
from cityscapes_maskrcnn.data.synthetic_street import (
    Light,
    Wall,
    paint_sky,
    paint_wall,
    pole_pieces,
    texture_ground,
    tree_pieces,
)
from cityscapes_maskrcnn.data.synthetic_vehicles import make_bus, make_car, make_train, make_truck

Annotation = dict[str, Any]
Pieces = list[tuple[str, list[Part]]]

_COMMON = ("car", "person", "bicycle", "rider")


@dataclass
class Item:
    """Something that stands on the ground.

    Attributes:
        distance: metres to its nearest point; farther items are painted first.
        pieces: labels and parts, painted in order. Pieces with the same label in a row whose label
            ends in ``group`` become one polygon.
        shadow: the ground it darkens.
    """

    distance: float
    pieces: Pieces
    shadow: list[Part] = field(default_factory=list)


@dataclass(frozen=True)
class Scene:
    """A picture and its annotation.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        annotation: the content of a ``*_gtFine_polygons.json``: ``imgHeight``, ``imgWidth`` and
            ``objects``, each with ``label``, ``polygon`` and, rarely, ``deleted``.
    """

    image: npt.NDArray[np.uint8]
    annotation: Annotation


class _Composer:
    """Holds what the placing of one scene needs: camera, light, random numbers, items so far."""

    def __init__(
        self, rng: np.random.Generator, camera: Camera, street: Street, light: Light, keep: float
    ) -> None:
        self.rng = rng
        self.camera = camera
        self.street = street
        self.light = light
        self.keep = keep
        self.items: list[Item] = []
        self.side = 1.0 if light.sun[0] > 0 else -1.0

    def vehicle(self, vehicle: Vehicle, pose: Pose, label: str | None = None) -> None:
        painter = VehiclePainter(self.camera, pose, vehicle, self.light.sun)
        rare = vehicle.label not in _COMMON
        if self.rng.random() > self.keep and not rare:
            return
        parts = hazed(painter.parts(), self.light.haze, self.light.haze_at(pose.z))
        pieces: Pieces = [(label or vehicle.label, parts)]
        plate = painter.plate()
        if plate is not None and label is None:
            pieces.append(("license plate", [Part(plate, None)]))
        self.items.append(Item(_nearest(pose, vehicle), pieces, painter.footprint()))

    def figure(
        self, label: str, make: Callable[..., list[Part]], pose: Pose, rider: str = ""
    ) -> None:
        """A person, bicycle or motorcycle; ``rider``: whether somebody sits on it."""
        kept = self.rng.random() <= self.keep or label not in _COMMON
        parts = make(self.camera, pose, self.rng, self.side)
        pieces: Pieces = [(label, parts)]
        if rider:
            motor = label == "motorcycle"
            pieces.append((rider, rider_parts(self.camera, pose, self.rng, self.side, motor)))
        if not kept:
            return
        amount = self.light.haze_at(pose.z)
        pieces = [(name, hazed(part, self.light.haze, amount)) for name, part in pieces]
        shadow = self._spot(pose, 0.3 if label == "person" else 0.5)
        self.items.append(Item(float(np.hypot(pose.x, pose.z)), pieces, shadow))

    def group(self, label: str, make: Callable[..., list[Part]], poses: list[Pose]) -> None:
        """Several figures that are annotated as one area."""
        poses = sorted(poses, key=lambda pose: -pose.z)
        parts: list[Part] = []
        for pose in poses:
            amount = self.light.haze_at(pose.z)
            figure = make(self.camera, pose, self.rng, self.side)
            parts += hazed(figure, self.light.haze, amount)
        nearest = min(float(np.hypot(pose.x, pose.z)) for pose in poses)
        self.items.append(Item(nearest, [(label, parts)]))

    def _spot(self, pose: Pose, radius: float) -> list[Part]:
        turn = np.arange(12) * (2 * np.pi / 12)
        ring = np.stack([
            pose.x + radius * np.cos(turn) - self.side * radius * 0.6,
            turn * 0,
            pose.z + radius * 0.8 * np.sin(turn),
        ], axis=1)  # fmt: skip
        return [Part(self.camera.project(ring), (0, 0, 0))]

    def visible_x(self, z: float) -> float:
        """How far to the side the image reaches at distance ``z``, metres."""
        return 0.5 * self.camera.width / self.camera.pixels_per_metre(z)


def _nearest(pose: Pose, vehicle: Vehicle) -> float:
    """Distance of the nearest point of a vehicle's footprint from the camera."""
    e, w = vehicle.length / 2, vehicle.width / 2
    eye = pose.local(np.zeros((1, 3)))[0]
    dx = max(abs(float(eye[0])) - w, 0.0)
    dz = max(abs(float(eye[2])) - e, 0.0)
    return float(np.hypot(dx, dz))


def _heavy(rng: np.random.Generator) -> Vehicle:
    """A vehicle for a moving lane: mostly a car."""
    value = rng.random()
    if value < 0.11:
        return make_truck(rng)
    if value < 0.2:
        return make_bus(rng)
    return make_car(rng)


def _place_vehicles(scene: _Composer, busy: float) -> None:
    rng, street = scene.rng, scene.street
    for x in street.parking:
        fill = rng.uniform(0.2, 0.85) * min(1.2, busy)
        z = rng.uniform(6.0, 10.0)
        while z < 62:
            car = make_car(rng)
            z += car.length / 2
            turned = 0.0 if (x > 0) == (rng.random() < 0.9) else np.pi
            if rng.random() < fill and not _at_crossing(street, z):
                pose = Pose(x + rng.uniform(-0.15, 0.15), z, turned + rng.normal(0, 0.02))
                scene.vehicle(car, pose)
            z += car.length / 2 + rng.uniform(0.6, 1.8)
    for x, heading, first in (
        *((x, 0.0, rng.uniform(9, 40)) for x in street.ahead),
        *((x, np.pi, rng.uniform(7, 35)) for x in street.oncoming),
    ):
        z = first
        while z < 75:
            vehicle = _heavy(rng)
            z += vehicle.length / 2
            if rng.random() < 0.42 * min(1.4, busy):
                scene.vehicle(vehicle, Pose(x + rng.normal(0, 0.15), z, heading))
            z += vehicle.length / 2 + rng.uniform(4, 22)
    if street.rails is not None and rng.random() < 0.62:
        tram = make_train(rng)
        heading = np.pi if rng.random() < 0.7 else 0.0
        z = rng.uniform(9, 45) + tram.length / 2
        scene.vehicle(tram, Pose(street.rails, z, heading))
    if street.crossing is not None and rng.random() < 0.55:
        z = street.crossing + rng.uniform(5.0, 8.5)
        for _ in range(int(rng.integers(1, 3))):
            reach = scene.visible_x(z)
            heading = np.pi / 2 if rng.random() < 0.5 else -np.pi / 2
            vehicle = _heavy(rng) if rng.random() < 0.7 else make_car(rng)
            scene.vehicle(
                vehicle, Pose(rng.uniform(-reach, reach), z, heading + rng.normal(0, 0.1))
            )
            z += 3.2
    if rng.random() < 0.3 * busy:
        x = rng.choice(street.oncoming)
        group = [Pose(x + rng.uniform(-2, 4), z, np.pi) for z in np.arange(82, 110, 6.5)]
        parts: list[Part] = []
        for pose in reversed(group):
            car = VehiclePainter(scene.camera, pose, make_car(rng), scene.light.sun)
            parts += hazed(car.parts(), scene.light.haze, scene.light.haze_at(pose.z))
        scene.items.append(Item(80.0, [("cargroup", parts)]))


def _at_crossing(street: Street, z: float) -> bool:
    return street.crossing is not None and street.crossing - 4 < z < street.crossing + 13


def _pavement_x(scene: _Composer, z: float) -> float | None:
    """A place on one of the pavements that the camera sees at distance ``z``, or None."""
    street, rng = scene.street, scene.rng
    reach = scene.visible_x(z) * 1.04
    right = rng.random() < 0.5
    low, high = (street.right, street.right_wall) if right else (street.left_wall, street.left)
    x = rng.uniform(low + 0.3, high - 0.3)
    return x if abs(x) < reach else None


def _place_people(scene: _Composer, busy: float) -> None:
    rng, street = scene.rng, scene.street
    for _ in range(rng.poisson(7.0 * busy**1.5)):
        z = float(np.clip(rng.lognormal(np.log(26), 0.5), 7, 70))
        x = _pavement_x(scene, z)
        if rng.random() < 0.06:
            x = rng.uniform(street.left, street.right)
        if x is None:
            continue
        heading = rng.choice([0.0, np.pi, np.pi / 2, -np.pi / 2], p=[0.36, 0.36, 0.14, 0.14])
        pose = Pose(x, z, heading + rng.normal(0, 0.3))
        scene.figure("person", person_parts, pose)
        if rng.random() < 0.3:
            beside = Pose(x + rng.uniform(0.5, 0.7), z + rng.uniform(-0.3, 0.3), pose.heading)
            scene.figure("person", person_parts, beside)
    if street.crossing is not None:
        for _ in range(rng.poisson(1.6 * busy)):
            z = street.crossing + rng.uniform(0.4, 2.6)
            x = rng.uniform(street.left, street.right)
            scene.figure("person", person_parts, Pose(x, z, rng.choice([1.57, -1.57])))
    if rng.random() < 0.22 * busy:
        z = rng.uniform(38, 75)
        x = _pavement_x(scene, z)
        if x is not None:
            count = int(rng.integers(4, 9))
            crowd = [
                Pose(x + rng.normal(0, 0.8), z + rng.normal(0, 1.0), rng.uniform(0, 6.3))
                for _ in range(count)
            ]
            scene.group("persongroup", person_parts, crowd)


def _place_cycles(scene: _Composer, busy: float) -> None:
    rng, street = scene.rng, scene.street
    for _ in range(rng.poisson(0.62 * busy)):
        z = float(np.clip(rng.lognormal(np.log(21), 0.5), 8, 60))
        if rng.random() < 0.6:
            ahead = rng.random() < 0.6
            x = street.ahead[-1] + 1.4 if ahead else street.oncoming[-1] - 1.4
            heading = (0.0 if ahead else np.pi) + rng.normal(0, 0.12)
        else:
            x = rng.uniform(-1, 1) * min(scene.visible_x(z), street.right_wall)
            heading = rng.choice([np.pi / 2, -np.pi / 2]) + rng.normal(0, 0.35)
        scene.figure("bicycle", bicycle_parts, Pose(x, z, heading), "rider")
    for _ in range(rng.poisson(0.5 * busy)):
        z = float(np.clip(rng.lognormal(np.log(20), 0.45), 7, 50))
        x = _pavement_x(scene, z)
        if x is None:
            continue
        heading = rng.choice([0.0, np.pi / 2, np.pi]) + rng.normal(0, 0.4)
        for k in range(int(rng.integers(1, 4))):
            pose = Pose(
                x + 0.5 * k * rng.uniform(0.5, 1.5), z + 0.6 * k, heading + rng.normal(0, 0.1)
            )
            scene.figure("bicycle", bicycle_parts, pose)
    if rng.random() < 0.1 * busy:
        z = rng.uniform(16, 40)
        x = _pavement_x(scene, z)
        if x is not None:
            rack = [Pose(x, z + 0.5 * k, 1.4 + rng.normal(0, 0.1)) for k in range(6)]
            scene.group("bicyclegroup", bicycle_parts, rack)
    for _ in range(rng.poisson(0.42)):
        z = float(np.clip(rng.lognormal(np.log(19), 0.45), 7, 45))
        if rng.random() < 0.4:
            ahead = rng.random() < 0.6
            x = street.ahead[0] + 0.7 if ahead else street.oncoming[0]
            pose = Pose(x, z, 0.0 if ahead else np.pi)
            scene.figure("motorcycle", motorcycle_parts, pose, "rider")
            continue
        place = _pavement_x(scene, z)
        if place is not None:
            pose = Pose(place, z, rng.choice([0.0, np.pi / 2, -np.pi / 2]) + rng.normal(0, 0.5))
            scene.figure("motorcycle", motorcycle_parts, pose)


def _place_furniture(scene: _Composer) -> None:
    rng, street, camera, light = scene.rng, scene.street, scene.camera, scene.light
    for kerb, side, green in (
        (street.left, -1, street.green[0]),
        (street.right, 1, street.green[1]),
    ):
        gap = rng.uniform(8, 16)
        if rng.random() < 0.6 or green:
            for z in np.arange(rng.uniform(9, 18), 110, gap):
                x = kerb + side * (0.9 if not green else rng.uniform(3, 9))
                pieces = tree_pieces(camera, x, z, rng, light)
                scene.items.append(Item(float(np.hypot(x, z)), pieces))
        for _ in range(int(rng.integers(1, 5))):
            x, z = kerb + side * 0.5, rng.uniform(9, 70)
            pieces = pole_pieces(camera, x, z, rng, light)
            scene.items.append(Item(float(np.hypot(x, z)), pieces))
        for _ in range(int(rng.integers(0, 3))):
            x, z = kerb + side * rng.uniform(0.6, 1.4), rng.uniform(9, 40)
            box = [
                (x + dx, y, z + dz) for dx in (-0.3, 0.3) for y in (0, 1.0) for dz in (-0.3, 0.3)
            ]
            image = camera.project(box)
            front = image[[0, 2, 6, 4]]
            lid = camera.project([(x - 0.32, 0.9, z - 0.31), (x + 0.32, 0.9, z - 0.31),
                                  (x + 0.32, 1.02, z - 0.31), (x - 0.32, 1.02, z - 0.31)])  # fmt: skip
            parts = [Part(front, (70, 82, 74)), Part(lid, (48, 56, 52))]
            scene.items.append(Item(float(np.hypot(x, z)), [("static", parts)]))


def _paint_buildings(
    canvas: Canvas, camera: Camera, street: Street, rng: np.random.Generator, light: Light
) -> Pieces:
    """House fronts along both sides, far to near, and across the end of the street."""
    pieces: Pieces = []
    x = street.left_wall - 30.0
    while x < street.right_wall + 30:
        wall = Wall((x, street.length), (1.0, 0.0), rng.uniform(10, 18), rng.uniform(9, 17))
        pieces.append(("building", paint_wall(canvas, camera, wall, rng, light, 0.9)))
        x += wall.length
    rows: list[tuple[float, float, float]] = []
    for side, x, green in (
        (-1.0, street.left_wall, street.green[0]),
        (1.0, street.right_wall, street.green[1]),
    ):
        z = 1.0
        while z < street.length - 4 and not green:
            length = min(rng.uniform(9, 22), street.length - z)
            if street.crossing is not None and z < street.crossing + 3 < z + length:
                length = street.crossing + 3 - z
                if length > 1:
                    rows.append((z, length, side * abs(x)))
                z = street.crossing + 11
                continue
            rows.append((z, length, side * abs(x)))
            z += length
        del x
    for z, length, x in sorted(rows, reverse=True):
        side = 1.0 if x > 0 else -1.0
        lit = 0.74 + 0.34 * max(0.0, -side * float(light.sun[0]))
        height = rng.uniform(9, 19)
        end = Wall((x, z), (side, 0.0), 11.0, height)
        image = camera.project(end.quads([(0, 0, 11.0, height)])[0])
        canvas.fill([image], (126, 116, 104))
        wall = Wall((x, z), (0.0, 1.0), length, height)
        covered = paint_wall(canvas, camera, wall, rng, light, lit)
        pieces.append(("building", [Part(image, None), *covered]))
    return pieces


def _make_light(rng: np.random.Generator) -> Light:
    azimuth, height = rng.uniform(-np.pi, np.pi), rng.uniform(0.45, 1.0)
    sun = np.array(
        [np.sin(azimuth) * np.cos(height), np.sin(height), np.cos(azimuth) * np.cos(height)]
    )
    strength = rng.uniform(0.1, 1.0)
    grey, blue = np.array([188, 196, 204]), np.array([118, 158, 206])
    top = grey + (blue - grey) * strength
    low = np.array([222, 226, 228]) * rng.uniform(0.94, 1.02)
    haze = low * 0.9
    return Light(sun, strength, tuple(haze), (tuple(top), tuple(np.minimum(low, 250))))


def _develop(image: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """What lens, sensor and weather do: blur, exposure, colour cast, vignette and noise."""
    height, width = image.shape[:2]
    exposure, contrast = rng.uniform(0.72, 1.12), rng.uniform(0.88, 1.12)
    cast = np.array([rng.uniform(0.95, 1.05), rng.uniform(0.99, 1.04), rng.uniform(0.93, 1.05)])
    sigma, blur = rng.uniform(1.2, 3.5), rng.uniform(0.3, 0.75) * height / 1024
    seed = int(rng.integers(2**63))
    if blur > 0.25:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    v = (np.arange(height, dtype=np.float32) / height - 0.5)[:, None]
    u = (np.arange(width, dtype=np.float32) / width - 0.5)[None]
    vignette = 1 - 0.22 * (u * u + v * v)
    noise = np.random.Generator(np.random.SFC64(seed)).standard_normal((height, width), np.float32)
    noise *= sigma
    result = np.empty_like(image)
    levels = np.arange(256, dtype=np.float32)
    curve = 255 * exposure * (levels / 255) ** contrast
    for channel in range(3):
        plane = cv2.LUT(image[:, :, channel], (curve * cast[channel]).astype(np.float32))
        plane = plane * vignette + noise
        noise = np.roll(noise, (7, 13), (0, 1))
        result[:, :, channel] = np.clip(plane, 0, 255).astype(np.uint8)
    return result


def _annotate(
    objects: list[dict[str, Any]], label: str, parts: list[Part], size: tuple[int, int]
) -> None:
    polygon = outline(parts, *size)
    if polygon:
        objects.append({"label": label, "polygon": polygon})


def render_scene(rng: np.random.Generator, height: int, width: int) -> Scene:
    """Make up a street, photograph it and annotate it.

    The same generator state gives the same street at every size; a smaller picture shows fewer and
    simpler objects, because those of a few pixels are left out.

    Args:
        rng: source of all randomness.
        height: rows of the picture, at least 64.
        width: columns of the picture, at least 128.

    Returns:
        The picture and its annotation.
    """
    size = (height, width)
    camera = Camera(
        height, width, 2.2 * height,
        ((0.5 + rng.uniform(-0.07, 0.07)) * width, rng.uniform(0.40, 0.45) * height),
        rng.uniform(1.25, 1.45),
    )  # fmt: skip
    light, street = _make_light(rng), make_street(rng)
    busy = 0.0 if rng.random() < 0.04 else float(np.clip(rng.lognormal(-0.05, 0.4), 0.3, 1.8))
    keep = min(1.0, 0.35 + 0.65 * (height / 1024) ** 0.5)
    canvas = Canvas(height, width, 2 if height >= 384 else 3)
    objects: list[dict[str, Any]] = []

    paint_sky(canvas, camera, rng, light)
    horizon = camera.center[1] + 1
    sky: Array = np.array([(0, 0), (width, 0), (width, horizon), (0, horizon)], dtype=np.float64)
    _annotate(objects, "sky", [Part(sky, None)], size)
    flat = paint_ground(canvas, camera, street, rng)
    texture_ground(canvas, camera, rng)
    paint_marks(canvas, camera, street, rng)
    for label, parts in [*flat, *_paint_buildings(canvas, camera, street, rng, light)]:
        _annotate(objects, label, parts, size)

    scene = _Composer(rng, camera, street, light, keep)
    _place_furniture(scene)
    if busy:
        _place_vehicles(scene, busy)
        _place_people(scene, busy)
        _place_cycles(scene, busy)
    items = sorted(scene.items, key=lambda item: -item.distance)
    for item in items:
        if item.shadow:
            soft = 0.12 * camera.pixels_per_metre(max(item.distance, 3.0))
            canvas.tint(item.shadow, (18, 18, 22), 0.45 + 0.25 * light.strength, min(soft, 9.0))
        for label, parts in item.pieces:
            polygon = outline(parts, *size)
            if polygon and _large_enough(polygon):
                objects.append({"label": label, "polygon": polygon})
                canvas.paint(parts)
    hood = paint_ego(canvas, rng)
    canvas.paint(hood)
    if objects and rng.random() < 0.3:
        spare = objects[int(rng.integers(len(objects)))]
        objects.append({"label": spare["label"], "polygon": spare["polygon"], "deleted": 1})
    thin = max(1, round(5 * height / 1024))
    _annotate(objects, "ego vehicle", hood[:1], size)
    for label, thickness in (
        ("out of roi", (thin, thin, thin, thin)),
        ("rectification border", (2 * thin, 0, 0, thin)),
    ):
        objects.append({"label": label, "polygon": border_frame(height, width, thickness)})
    annotation = {"imgHeight": height, "imgWidth": width, "objects": objects}
    return Scene(_develop(canvas.finished(), rng), annotation)


def _large_enough(polygon: list[list[int]]) -> bool:
    """Whether an outline is at least 3 pixels wide, 5 high and 16 in area, or thin and long."""
    points = np.asarray(polygon)
    wide, high = np.ptp(points, axis=0)
    return bool(max(wide, high) >= 5 and wide * high >= 16)
