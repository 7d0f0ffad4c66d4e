"""Cars, trucks, buses and trams of the synthetic street scenes: their measures and colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cityscapes_maskrcnn.synthetic.canvas import Color, blend, shade
from cityscapes_maskrcnn.synthetic.solids import (
    GLASS,
    Decal,
    Point2,
    Solid,
    Vehicle,
    Wheel,
    rectangle,
)

_CAR_PAINTS: tuple[Color, ...] = (
    (34, 36, 40), (46, 50, 58), (168, 172, 176), (196, 198, 200), (226, 227, 226), (124, 128, 134),
    (150, 22, 24), (176, 36, 30), (26, 52, 118), (40, 84, 150), (86, 92, 98), (60, 76, 62),
    (196, 164, 52), (112, 96, 78), (40, 110, 116),
)  # fmt: skip
_TRUCK_PAINTS: tuple[Color, ...] = (
    (214, 216, 214), (188, 60, 40), (44, 88, 150), (222, 180, 60), (70, 130, 80), (160, 164, 168),
)  # fmt: skip
_BUS_PAINTS: tuple[Color, ...] = (
    (206, 52, 44), (232, 186, 44), (60, 122, 188), (226, 226, 220), (84, 150, 96),
)  # fmt: skip
_TRAM_PAINTS: tuple[Color, ...] = (
    (236, 222, 150), (214, 40, 44), (64, 140, 84), (70, 110, 186), (238, 238, 234),
)  # fmt: skip


def _mirrored(decals: Sequence[Decal]) -> list[Decal]:
    """Each decal and its mirror image about x = 0."""
    flipped = [Decal([(-x, y) for x, y in d.points], d.color, d.detail) for d in decals]
    return [*decals, *flipped]


def make_car(rng: np.random.Generator) -> Vehicle:
    """Build a passenger car: saloon, hatchback, estate, van or sports utility."""
    kind = rng.choice(["saloon", "hatch", "estate", "suv", "van"], p=[0.26, 0.32, 0.2, 0.14, 0.08])
    paint = _CAR_PAINTS[rng.integers(len(_CAR_PAINTS))]
    paint = shade(paint, rng.uniform(0.85, 1.15))
    stretch = rng.uniform(0.96, 1.05)
    length, width, top = {
        "saloon": (4.6, 1.80, 1.45),
        "hatch": (4.0, 1.74, 1.48),
        "estate": (4.6, 1.80, 1.50),
        "suv": (4.4, 1.86, 1.68),
        "van": (5.0, 1.94, 2.05),
    }[str(kind)]
    e = length * stretch / 2
    lift = 0.06 if kind in ("suv", "van") else 0.0
    belt = {"van": 1.15, "suv": 1.04}.get(str(kind), 0.94)
    tail: list[Point2] = {
        "saloon": [(-e + 0.05, belt + 0.04), (-e + 0.72, belt + 0.08), (-e + 1.38, top - 0.04)],
        "hatch": [(-e + 0.04, belt), (-e + 0.10, belt + 0.05), (-e + 0.62, top - 0.05)],
        "estate": [(-e + 0.04, belt), (-e + 0.08, belt + 0.05), (-e + 0.42, top - 0.04)],
        "suv": [(-e + 0.04, belt), (-e + 0.06, belt + 0.05), (-e + 0.36, top - 0.05)],
        "van": [(-e + 0.02, belt), (-e + 0.03, belt + 0.08), (-e + 0.14, top - 0.06)],
    }[str(kind)]
    hood = 0.75 if kind == "van" else 1.25
    cowl = (e - hood, belt + 0.06)
    roof_front = (cowl[0] - (0.62 if kind == "van" else 0.78), top - 0.03)
    roof_middle = ((tail[-1][0] + roof_front[0]) / 2, top)
    profile: list[Point2] = [
        (-e + 0.03, 0.28 + lift),
        (-e, 0.62),
        *tail,
        roof_middle,
        roof_front,
        cowl,
        (e - 0.18, belt - 0.12),
        (e, 0.62),
        (e - 0.04, 0.26 + lift),
    ]
    body = Solid(
        profile, belt, width / 2, width / 2 * (0.9 if kind == "van" else 0.76), paint, glass=(3, 6)
    )
    seam = shade(paint, 0.55)
    sill, top_glass = belt + 0.05, top - 0.1
    slope = top_glass - sill
    rear_low = tail[1][0] + (0.5 if kind != "saloon" else 0.3)
    rear_high = max(tail[-1][0] + 0.12, rear_low + 0.1)
    front_low, front_high = cowl[0] - 0.12, roof_front[0] - 0.02
    middle = 0.5 * (rear_high + front_high) - 0.05
    body.sides += [
        Decal(rectangle((-e + 0.02, 0.26), (e - 0.03, 0.40 + lift)), shade(paint, 0.45), 10),
        Decal(rectangle((-e + 0.05, belt - 0.10), (e - 0.25, belt - 0.05)), shade(paint, 1.3), 40),
        Decal(
            [(rear_low, sill), (middle - 0.04, sill), (middle - 0.04, top_glass),
             (rear_high, top_glass)], GLASS, 7,
        ),
        Decal(
            [(middle + 0.04, sill), (front_low, sill), (front_high, top_glass),
             (middle + 0.04, top_glass)], GLASS, 7,
        ),
        Decal(
            [(middle + 0.04, sill + slope * 0.6), (front_high + 0.3, sill + slope * 0.6),
             (front_high, top_glass), (middle + 0.04, top_glass)], (92, 108, 122), 30,
        ),
        Decal(
            [(rear_low + 0.3, sill + slope * 0.6), (middle - 0.04, sill + slope * 0.6),
             (middle - 0.04, top_glass), (rear_high, top_glass)], (84, 98, 112), 30,
        ),
        Decal(rectangle((middle - 0.01, 0.4), (middle + 0.015, sill)), seam, 45),
        Decal(rectangle((front_low - 0.05, 0.4), (front_low - 0.025, sill)), seam, 45),
        Decal(rectangle((middle + 0.12, belt - 0.2), (middle + 0.3, belt - 0.16)), seam, 60),
        Decal(rectangle((rear_low + 0.3, belt - 0.2), (rear_low + 0.48, belt - 0.16)), seam, 60),
    ]  # fmt: skip
    w = width / 2
    red: Color = (196, 26, 22)
    lamp: Color = (232, 236, 226)
    plate: Color = (226, 226, 218)
    body.rear += [
        Decal(rectangle((-w, 0.26), (w, 0.42 + lift)), shade(paint, 0.4), 10),
        *_mirrored([
            Decal(rectangle((w * 0.68, belt - 0.3), (w * 0.98, belt - 0.06)), red, 8),
            Decal(rectangle((w * 0.74, belt - 0.16), (w * 0.96, belt - 0.08)), (250, 120, 90), 40),
        ]),
        Decal(rectangle((-0.26, 0.56), (0.26, 0.67)), plate, 24),
        Decal(rectangle((-w * 0.9, 0.46), (w * 0.9, 0.48)), shade(paint, 0.6), 45),
    ]  # fmt: skip
    body.front += [
        Decal(rectangle((-w, 0.24), (w, 0.38 + lift)), shade(paint, 0.4), 10),
        Decal(rectangle((-w * 0.56, 0.52), (w * 0.56, 0.70)), (26, 28, 30), 14),
        *_mirrored([
            Decal(
                [(w * 0.62, 0.58), (w * 0.97, 0.62), (w * 0.96, 0.80), (w * 0.60, 0.72)], lamp, 8,
            ),
        ]),
        Decal(rectangle((-0.26, 0.40), (0.26, 0.51)), plate, 24),
        Decal(rectangle((-0.09, 0.56), (0.09, 0.68)), (190, 194, 198), 50),
    ]  # fmt: skip
    radius = 0.33 + lift / 2
    wheels = [Wheel(-e + 0.82, radius), Wheel(e - 0.86, radius)]
    return Vehicle("car", 2 * e, width, top, [body], wheels)


def make_truck(rng: np.random.Generator) -> Vehicle:
    """Build a lorry: a cab and, behind it, a closed box, a tarpaulin or a tank-like tipper."""
    paint = _TRUCK_PAINTS[rng.integers(len(_TRUCK_PAINTS))]
    cargo = _TRUCK_PAINTS[rng.integers(len(_TRUCK_PAINTS))]
    length, top = rng.uniform(6.8, 9.5), rng.uniform(3.1, 3.7)
    e, w, cab_top = length / 2, 1.2, rng.uniform(2.6, 2.9)
    start = e - 1.9
    cab = Solid(
        [(start, 0.5), (start, cab_top), (e - 0.35, cab_top), (e - 0.05, 1.65), (e, 1.5),
         (e, 0.42)],
        1.5, w - 0.04, w - 0.16, paint, glass=(2,),
    )  # fmt: skip
    cab.sides += [
        Decal(rectangle((start, 0.42), (e, 0.7)), (50, 50, 52), 12),
        Decal(
            [(start + 0.35, 1.6), (e - 0.22, 1.6), (e - 0.5, 2.35), (start + 0.35, 2.35)], GLASS, 8
        ),
        Decal(rectangle((start + 0.25, 0.8), (start + 0.29, 2.4)), shade(paint, 0.6), 50),
    ]  # fmt: skip
    cab.front += [
        Decal(rectangle((-w, 0.42), (w, 0.72)), (54, 54, 56), 10),
        Decal(rectangle((-0.7, 0.86), (0.7, 1.34)), (34, 36, 38), 14),
        *_mirrored([Decal(rectangle((0.72, 0.76), (1.1, 0.98)), (236, 238, 226), 10)]),
    ]
    box = Solid(
        [(-e, 0.95), (-e, top), (start - 0.12, top), (start - 0.12, 0.95)], top, w + 0.03, w + 0.03,
        cargo,
    )  # fmt: skip
    stripe = blend(cargo, (30, 60, 130) if sum(cargo) > 500 else (240, 240, 236), 0.8)
    box.sides += [
        Decal(rectangle((-e, 0.95), (start - 0.12, 1.1)), (88, 88, 90), 12),
        Decal(rectangle((-e + 0.5, 1.9), (start - 0.8, 2.5)), stripe, 16),
        *[
            Decal(rectangle((z, 1.1), (z + 0.03, top)), shade(cargo, 0.8), 60)
            for z in np.arange(-e + 0.6, start - 0.3, 0.8).tolist()
        ],
    ]
    box.rear += [
        Decal(rectangle((-0.02, 1.05), (0.02, top - 0.1)), shade(cargo, 0.5), 16),
        Decal(rectangle((-w, 0.95), (w, 1.1)), (70, 70, 72), 10),
        *_mirrored([Decal(rectangle((0.45, 1.2), (0.5, top - 0.2)), shade(cargo, 0.6), 40)]),
    ]
    frame = Solid(
        [(-e + 0.1, 0.55), (-e + 0.1, 0.97), (start + 0.3, 0.97), (start + 0.3, 0.55)], 0.9, 0.9,
        0.9, (46, 46, 48),
    )  # fmt: skip
    frame.rear += [
        Decal(rectangle((-1.0, 0.55), (1.0, 0.75)), (60, 60, 62), 10),
        *_mirrored([Decal(rectangle((0.72, 0.6), (1.0, 0.74)), (200, 28, 24), 10)]),
        Decal(rectangle((-0.26, 0.6), (0.26, 0.71)), (226, 226, 218), 40),
    ]
    wheels = [Wheel(-e + 1.3, 0.5, 0.32), Wheel(e - 1.15, 0.5, 0.3)]
    if length > 8:
        wheels.insert(1, Wheel(-e + 2.4, 0.5, 0.32))
    return Vehicle("truck", length, 2 * w, top, [frame, box, cab], wheels, bottom=0.5)


def _window_row(
    start: float, end: float, low: float, high: float, count: int, detail: float
) -> list[Decal]:
    """A row of side windows with lighter reflections in their upper part."""
    edges = np.linspace(start, end, count + 1)
    panes, tall = [], high - low
    for a, b in zip(edges[:-1] + 0.06, edges[1:] - 0.06, strict=True):
        panes.append(Decal(rectangle((a, low), (b, high)), GLASS, detail))
        panes.append(
            Decal([(a, low + 0.6 * tall), (b, low + 0.75 * tall), (b, high), (a, high)],
                  (92, 108, 120), 40),
        )  # fmt: skip
    return panes


def make_bus(rng: np.random.Generator) -> Vehicle:
    """Build a city bus: one long box with a row of large windows, doors and a lit destination."""
    paint = _BUS_PAINTS[rng.integers(len(_BUS_PAINTS))]
    length, top, w = rng.uniform(10.5, 12.5), rng.uniform(2.95, 3.15), 1.26
    e = length / 2
    body = Solid(
        [(-e, 0.35), (-e, 1.35), (-e + 0.06, 1.4), (-e + 0.1, top - 0.25), (-e + 0.25, top),
         (e - 0.3, top), (e - 0.1, top - 0.3), (e, 1.1), (e, 0.32)],
        1.3, w, w - 0.08, paint, glass=(2, 6),
    )  # fmt: skip
    body.sides += [
        Decal(rectangle((-e, 0.32), (e, 0.55)), shade(paint, 0.5), 10),
        Decal(rectangle((-e + 0.15, 1.3), (e - 0.15, top - 0.42)), (30, 34, 38), 6),
        *_window_row(-e + 0.3, e - 0.3, 1.36, top - 0.48, 7, 14),
        Decal(rectangle((-e, top - 0.34), (e - 0.3, top - 0.26)), shade(paint, 1.3), 30),
        *[
            Decal(rectangle((z, 0.42), (z + 1.15, top - 0.5)), (44, 52, 58), 24)
            for z in (-0.6, e - 1.9)
        ],
        *[
            Decal(rectangle((z + 0.55, 0.42), (z + 0.6, top - 0.5)), (150, 154, 156), 50)
            for z in (-0.6, e - 1.9)
        ],
    ]
    amber: Color = (255, 176, 40)
    body.front += [
        Decal(rectangle((-w, 0.32), (w, 0.55)), shade(paint, 0.5), 10),
        Decal(rectangle((-w * 0.8, top - 0.62), (w * 0.8, top - 0.34)), (18, 18, 20), 12),
        Decal(rectangle((-w * 0.6, top - 0.55), (w * 0.5, top - 0.41)), amber, 18),
        *_mirrored([Decal(rectangle((w * 0.62, 0.62), (w * 0.95, 0.84)), (240, 240, 228), 8)]),
        Decal(rectangle((-0.26, 0.42), (0.26, 0.53)), (226, 226, 218), 40),
    ]
    body.rear += [
        Decal(rectangle((-w, 0.35), (w, 0.55)), shade(paint, 0.5), 10),
        Decal(rectangle((-w * 0.7, 0.66), (w * 0.7, 1.2)), shade(paint, 0.62), 24),
        *_mirrored([Decal(rectangle((w * 0.8, 0.7), (w * 0.98, 1.3)), (200, 28, 24), 8)]),
        Decal(rectangle((-w * 0.4, top - 0.5), (w * 0.4, top - 0.32)), amber, 24),
    ]
    wheels = [Wheel(-e + 2.9, 0.48, 0.3), Wheel(e - 2.6, 0.48, 0.3)]
    return Vehicle("bus", length, 2 * w, top, [body], wheels, bottom=0.34)


def make_train(rng: np.random.Generator) -> Vehicle:
    """Build a tram of two or three cars: low skirts that hide the wheels, stripe, slanted nose."""
    paint = _TRAM_PAINTS[rng.integers(len(_TRAM_PAINTS))]
    stripe: Color = (196, 34, 38) if paint[0] > 220 else (240, 240, 234)
    count = int(rng.integers(2, 4))
    each, top, w = rng.uniform(8.0, 9.5), 3.45, 1.2
    length = count * each
    solids = []
    for index in range(count):
        a = -length / 2 + index * each + (0.12 if index else 0.0)
        b = -length / 2 + (index + 1) * each - (0.12 if index + 1 < count else 0.0)
        rear: list[Point2] = [(a, 0.22), (a, top)]
        nose: list[Point2] = [(b, top), (b, 0.22)]
        glass: list[int] = []
        if index == 0:
            rear = [
                (a + 0.15, 0.22),
                (a, 1.1),
                (a + 0.05, 1.35),
                (a + 0.75, top - 0.2),
                (a + 1.0, top),
            ]
            glass.append(2)
        if index + 1 == count:
            nose = [
                (b - 1.0, top),
                (b - 0.75, top - 0.2),
                (b - 0.05, 1.35),
                (b, 1.1),
                (b - 0.15, 0.22),
            ]
            glass.append(len(rear) + 1)
        body = Solid([*rear, *nose], 1.2, w, w - 0.1, paint, glass=glass)
        left, right = a + (0.9 if index == 0 else 0.15), b - (0.9 if index + 1 == count else 0.15)
        door, eaves = (a + b) / 2, shade(paint, 0.72)
        body.sides += [
            Decal(rectangle((a, 0.22), (b, 0.42)), (58, 60, 62), 8),
            Decal(rectangle((a + 0.02, 0.85), (b - 0.02, 1.12)), stripe, 8),
            Decal(rectangle((left, 1.32), (right, 2.72)), (28, 32, 36), 6),
            *_window_row(left + 0.1, right - 0.1, 1.4, 2.66, 5, 14),
            Decal(rectangle((left + 0.1, top - 0.3), (right - 0.1, top - 0.05)), eaves, 16),
            Decal(rectangle((door - 0.65, 0.45), (door + 0.65, 2.72)), (52, 60, 66), 24),
            Decal(rectangle((door - 0.02, 0.45), (door + 0.02, 2.72)), stripe, 50),
        ]  # fmt: skip
        lamps = [Decal(rectangle((w * 0.6, 0.62), (w * 0.9, 0.8)), (246, 244, 226), 8)]
        tails = [Decal(rectangle((w * 0.6, 0.62), (w * 0.9, 0.8)), (206, 30, 26), 8)]
        skirt = Decal(rectangle((-w, 0.22), (w, 0.45)), (58, 60, 62), 8)
        band = Decal(rectangle((-w, 0.85), (w, 1.12)), stripe, 8)
        if index + 1 == count:
            body.front += [skirt, band, *_mirrored(lamps)]
            body.front.append(
                Decal(rectangle((-0.7, top - 0.52), (0.7, top - 0.28)), (255, 176, 40), 18)
            )
        if index == 0:
            body.rear += [skirt, band, *_mirrored(tails)]
        solids.append(body)
    return Vehicle("train", length, 2 * w, top, solids, [], bottom=0.2)
