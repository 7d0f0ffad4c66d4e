"""Placing of objects in the synthetic street scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cityscapes_maskrcnn.synthetic.backdrop import Light
from cityscapes_maskrcnn.synthetic.canvas import Array, Camera, Part
from cityscapes_maskrcnn.synthetic.furniture import (
    Pieces,
    bin_pieces,
    leaf_sprites,
    pole_pieces,
    tree_pieces,
)
from cityscapes_maskrcnn.synthetic.people import (
    bicycle_parts,
    motorcycle_parts,
    person_parts,
    rider_parts,
)
from cityscapes_maskrcnn.synthetic.road import Street
from cityscapes_maskrcnn.synthetic.solids import Pose, Vehicle, VehiclePainter, hazed
from cityscapes_maskrcnn.synthetic.vehicles import make_bus, make_car, make_train, make_truck

_COMMON = ("car", "person", "bicycle")
_SIDEWAYS = np.pi / 2


@dataclass
class Item:
    """An object that stands on the ground.

    Attributes:
        distance: metres to its nearest point; farther items are painted first.
        pieces: labels and parts, painted in order, each an object of the annotation.
    """

    distance: float
    pieces: Pieces


class Composer:
    """Place objects in one scene.

    Args:
        rng: source of randomness.
        camera: sees the scene.
        street: where things may stand.
        light: the weather.
        keep: probability with which one of the common objects is kept, below 1 in small images.

    Attributes:
        items: what was placed.
        shadows: see :func:`.backdrop.shadow_map`.
    """

    def __init__(
        self, rng: np.random.Generator, camera: Camera, street: Street, light: Light, keep: float
    ) -> None:
        self.rng = rng
        self.camera = camera
        self.street = street
        self.light = light
        self.keep = keep
        self.items: list[Item] = []
        self.shadows: list[tuple[Array, float]] = []
        self._side = 1.0 if light.sun[0] > 0 else -1.0

    def place_furniture(self) -> None:
        """Place trees, poles and litter bins along both kerbs."""
        rng, street = self.rng, self.street
        sprites = leaf_sprites(rng, self.light)
        for kerb, side, green in (
            (street.left, -1.0, street.green[0]),
            (street.right, 1.0, street.green[1]),
        ):
            gap = rng.uniform(8, 16)
            if rng.random() < 0.55 or green:
                for z in np.arange(rng.uniform(11, 20), 110, gap).tolist():
                    x = kerb + side * (rng.uniform(3, 9) if green else 0.9)
                    tall = rng.uniform(5.0, 9.5)
                    pieces = tree_pieces(self.camera, (x, z), tall, rng, self.light, sprites)
                    self._add(x, z, pieces)
                    self._cast(_ring(x, z, 0.25 * tall), tall * 0.6, 0.3)
            for _ in range(int(rng.integers(1, 5))):
                x, z = kerb + side * 0.5, float(rng.uniform(10, 70))
                self._add(x, z, pole_pieces(self.camera, x, z, rng, self.light))
                self._cast(_ring(x, z, 0.06), 3.0, 0.3)
            for _ in range(int(rng.integers(0, 3))):
                x, z = kerb + side * rng.uniform(0.6, 1.4), float(rng.uniform(9, 40))
                self._add(x, z, bin_pieces(self.camera, (x, z), self.light))
                self._cast(_ring(x, z, 0.35), 1.0, 0.3)

    def place_vehicles(self, busy: float) -> None:
        """Place parked cars, traffic in both directions, trams, crossing traffic, a far queue."""
        rng, street = self.rng, self.street
        for x in street.parking:
            fill = rng.uniform(0.35, 0.95) * min(1.2, busy)
            z = rng.uniform(6.0, 10.0)
            while z < 66:
                car = make_car(rng)
                z += car.length / 2
                heading = 0.0 if (x > 0) == (rng.random() < 0.9) else np.pi
                pose = Pose(x + rng.uniform(-0.15, 0.15), z, heading + rng.normal(0, 0.02))
                if rng.random() < fill and not self._at_crossing(z):
                    self._vehicle(car, pose)
                z += car.length / 2 + rng.uniform(0.6, 1.8)
        lanes = [(x, 0.0, rng.uniform(8, 36)) for x in street.ahead]
        lanes += [(x, np.pi, rng.uniform(6, 32)) for x in street.oncoming]
        for x, heading, first in lanes:
            z = first
            while z < 80:
                vehicle = _traffic(rng)
                z += vehicle.length / 2
                if rng.random() < 0.55 * min(1.4, busy):
                    self._vehicle(vehicle, Pose(x + rng.normal(0, 0.15), z, heading))
                z += vehicle.length / 2 + rng.uniform(4, 18)
        if street.rails is not None and rng.random() < 0.62:
            tram = make_train(rng)
            heading = np.pi if rng.random() < 0.7 else 0.0
            self._vehicle(tram, Pose(street.rails, rng.uniform(12, 50) + tram.length / 2, heading))
        if street.crossing is not None and rng.random() < 0.6:
            z = street.crossing + rng.uniform(5.0, 8.5)
            for _ in range(int(rng.integers(1, 3))):
                vehicle = _traffic(rng)
                x = self._gap_x(z, vehicle.length / 2)
                heading = _SIDEWAYS if rng.random() < 0.5 else -_SIDEWAYS
                self._vehicle(vehicle, Pose(x, z, heading + rng.normal(0, 0.1)))
                z += 3.2
        if rng.random() < 0.3 * busy:
            x = float(rng.choice(street.oncoming))
            parts: list[Part] = []
            for z in np.arange(110, 82, -6.5).tolist():
                pose = Pose(x + rng.uniform(-2, 4), z, np.pi)
                painter = VehiclePainter(self.camera, pose, make_car(rng), self.light.sun)
                parts += self._far(painter.parts(), z)
            self.items.append(Item(80.0, [("cargroup", parts)]))

    def place_people(self, busy: float) -> None:
        """Place pedestrians on the pavements and crossings, sometimes a crowd far away."""
        rng, street = self.rng, self.street
        for _ in range(rng.poisson(7.0 * busy**1.5)):
            z = float(np.clip(rng.lognormal(np.log(26), 0.5), 7, 70))
            x = self._pavement_x(z)
            if rng.random() < 0.06:
                x = float(rng.uniform(street.left, street.right))
            if x is None:
                continue
            turn = (0.0, np.pi, _SIDEWAYS, -_SIDEWAYS)[rng.choice(4, p=[0.36, 0.36, 0.14, 0.14])]
            heading = turn + float(rng.normal(0, 0.3))
            self._figure("person", person_parts, Pose(x, z, heading))
            if rng.random() < 0.3:
                beside = Pose(x + rng.uniform(0.5, 0.7), z + rng.uniform(-0.3, 0.3), heading)
                self._figure("person", person_parts, beside)
        if street.crossing is not None:
            for _ in range(rng.poisson(1.6 * busy)):
                z = street.crossing + rng.uniform(0.4, 2.6)
                heading = _SIDEWAYS if rng.random() < 0.5 else -_SIDEWAYS
                x = float(rng.uniform(street.left, street.right))
                self._figure("person", person_parts, Pose(x, z, heading))
        if rng.random() < 0.22 * busy:
            z = float(rng.uniform(38, 75))
            x = self._pavement_x(z)
            if x is not None:
                places = rng.normal((x, z), (0.8, 1.0), size=(int(rng.integers(4, 9)), 2)).tolist()
                crowd = [Pose(px, pz, float(rng.uniform(0, 6.3))) for px, pz in places]
                self._group("persongroup", person_parts, crowd)

    def place_cycles(self, busy: float) -> None:
        """Place bicycles and motorcycles, ridden and parked, sometimes a rack of bicycles."""
        rng, street = self.rng, self.street
        for _ in range(rng.poisson(0.72 * busy)):
            z = float(np.clip(rng.lognormal(np.log(21), 0.5), 8, 60))
            if rng.random() < 0.6:
                ahead = rng.random() < 0.6
                x = street.ahead[-1] + 1.4 if ahead else street.oncoming[-1] - 1.4
                heading = (0.0 if ahead else np.pi) + rng.normal(0, 0.12)
            else:
                x = rng.uniform(-1, 1) * min(self._visible_x(z), street.right_wall)
                heading = (_SIDEWAYS if rng.random() < 0.5 else -_SIDEWAYS) + rng.normal(0, 0.35)
            self._figure("bicycle", bicycle_parts, Pose(x, z, heading), ridden=True)
        for _ in range(rng.poisson(1.15 * busy)):
            z = float(np.clip(rng.lognormal(np.log(20), 0.45), 7, 50))
            place = self._pavement_x(z)
            if place is None:
                continue
            heading = int(rng.integers(3)) * _SIDEWAYS + rng.normal(0, 0.4)
            for k in range(int(rng.integers(1, 4))):
                x = place + 0.5 * k * rng.uniform(0.5, 1.5)
                pose = Pose(x, z + 0.6 * k, heading + rng.normal(0, 0.1))
                self._figure("bicycle", bicycle_parts, pose)
        if rng.random() < 0.1 * busy:
            z = float(rng.uniform(16, 40))
            place = self._pavement_x(z)
            if place is not None:
                turns = (1.4 + rng.normal(0, 0.1, size=6)).tolist()
                rack = [Pose(place, z + 0.5 * k, turn) for k, turn in enumerate(turns)]
                self._group("bicyclegroup", bicycle_parts, rack)
        for _ in range(rng.poisson(0.65)):
            z = float(np.clip(rng.lognormal(np.log(19), 0.45), 7, 45))
            if rng.random() < 0.4:
                ahead = rng.random() < 0.6
                x = street.ahead[0] + 0.7 if ahead else street.oncoming[0]
                pose = Pose(x, z, 0.0 if ahead else np.pi)
                self._figure("motorcycle", motorcycle_parts, pose, ridden=True)
                continue
            place = self._pavement_x(z)
            if place is not None:
                heading = int(rng.integers(-1, 2)) * _SIDEWAYS + rng.normal(0, 0.5)
                self._figure("motorcycle", motorcycle_parts, Pose(place, z, heading))

    def _add(self, x: float, z: float, pieces: Pieces) -> None:
        self.items.append(Item(float(np.hypot(x, z)), pieces))

    def _far(self, parts: Sequence[Part], z: float) -> list[Part]:
        return hazed(parts, self.light.haze, self.light.haze_at(z))

    def _vehicle(self, vehicle: Vehicle, pose: Pose) -> None:
        painter = VehiclePainter(self.camera, pose, vehicle, self.light.sun)
        if self.rng.random() > self.keep and vehicle.label in _COMMON:
            return
        pieces: Pieces = [(vehicle.label, self._far(painter.parts(), pose.z))]
        plate = painter.plate()
        if plate is not None:
            pieces.append(("license plate", [Part(plate, None)]))
        self.items.append(Item(_nearest(pose, vehicle), pieces))
        e, w = vehicle.length / 2 + 0.05, vehicle.width / 2 + 0.05
        corners = np.array([(-w, 0.0, -e), (w, 0.0, -e), (w, 0.0, e), (-w, 0.0, e)])
        self._cast(pose.world(corners), vehicle.height * 0.85, 0.62)

    def _figure(
        self, label: str, make: Callable[..., list[Part]], pose: Pose, ridden: bool = False
    ) -> None:
        """Add a person, bicycle or motorcycle; ``ridden``: with somebody on it."""
        kept = self.rng.random() <= self.keep or label not in _COMMON
        pieces: Pieces = [(label, make(self.camera, pose, self.rng, self._side))]
        if ridden:
            motor = label == "motorcycle"
            rider = rider_parts(self.camera, pose, self.rng, self._side, motor)
            pieces.append(("rider", rider))
        if not kept:
            return
        self._add(pose.x, pose.z, [(name, self._far(parts, pose.z)) for name, parts in pieces])
        if label == "person":
            self._cast(_ring(pose.x, pose.z, 0.26), 1.6, 0.5)
        else:
            w, e = 0.2, 0.85
            strip = np.array([(-w, 0.0, -e), (w, 0.0, -e), (w, 0.0, e), (-w, 0.0, e)])
            self._cast(pose.world(strip), 1.6 if ridden else 0.7, 0.45)

    def _group(self, label: str, make: Callable[..., list[Part]], poses: list[Pose]) -> None:
        """Add several figures that are annotated as one area."""
        parts: list[Part] = []
        for pose in sorted(poses, key=lambda pose: -pose.z):
            parts += self._far(make(self.camera, pose, self.rng, self._side), pose.z)
            self._cast(_ring(pose.x, pose.z, 0.26), 1.0, 0.4)
        nearest = min(float(np.hypot(pose.x, pose.z)) for pose in poses)
        self.items.append(Item(nearest, [(label, parts)]))

    def _cast(self, base: Array, height: float, depth: float) -> None:
        """Add the shadows of an object with ground outline ``base`` (N, 3); height in metres."""
        self.shadows.append((base, depth))
        sun = self.light.sun
        shift = np.array([-sun[0], 0.0, -sun[2]]) * (height / sun[1])
        away = np.concatenate([base, base + shift])
        self.shadows.append((away, 0.42 * self.light.strength))

    def _visible_x(self, z: float) -> float:
        """How far to the side the image reaches at distance ``z``, metres."""
        return 0.5 * self.camera.width / self.camera.pixels_per_metre(z)

    def _gap_x(self, z: float, half: float) -> float:
        """A place in the side street that the corner houses leave in sight.

        Args:
            z: distance, beyond the crossing.
            half: half the length of what stands there, across the view.
        """
        street = self.street
        assert street.crossing is not None
        reach = self._visible_x(z)
        # Things are painted over houses: none may stand behind one.
        sight = z / (street.crossing + 3)
        low = -reach if street.green[0] else max(-reach, street.left_wall * sight + half)
        high = reach if street.green[1] else min(reach, street.right_wall * sight - half)
        return float(self.rng.uniform(low, high)) if low < high else (low + high) / 2

    def _at_crossing(self, z: float) -> bool:
        crossing = self.street.crossing
        return crossing is not None and crossing - 4 < z < crossing + 13

    def _pavement_x(self, z: float) -> float | None:
        """A place on one of the pavements that the camera sees at distance ``z``, or None."""
        street, rng = self.street, self.rng
        right = rng.random() < 0.5
        low, high = (street.right, street.right_wall) if right else (street.left_wall, street.left)
        x = float(rng.uniform(low + 0.3, high - 0.3))
        return x if abs(x) < 1.04 * self._visible_x(z) else None


def _ring(x: float, z: float, radius: float) -> Array:
    """A circle on the ground, (12, 3) metres."""
    turn = np.arange(12) * (2 * np.pi / 12)
    return np.stack([x + radius * np.cos(turn), 0 * turn, z + radius * np.sin(turn)], axis=1)


def _nearest(pose: Pose, vehicle: Vehicle) -> float:
    """Distance of the nearest point of a vehicle's footprint from the camera."""
    eye = np.abs(pose.local(np.zeros((1, 3)))[0])
    dx = max(float(eye[0]) - vehicle.width / 2, 0.0)
    dz = max(float(eye[2]) - vehicle.length / 2, 0.0)
    return float(np.hypot(dx, dz))


def _traffic(rng: np.random.Generator) -> Vehicle:
    """A vehicle for a moving lane: mostly a car."""
    value = rng.random()
    if value < 0.07:
        return make_truck(rng)
    if value < 0.125:
        return make_bus(rng)
    return make_car(rng)
