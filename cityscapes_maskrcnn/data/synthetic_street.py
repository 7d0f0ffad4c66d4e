"""What stands still in the synthetic street scenes: sky, ground, buildings, trees, poles, signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.data.synthetic_canvas import (
    Array,
    Camera,
    Canvas,
    Color,
    Part,
    blend,
    circle,
    shade,
)

_FACADES: tuple[Color, ...] = (
    (190, 176, 150), (206, 190, 160), (172, 150, 120), (150, 92, 72), (198, 198, 192),
    (160, 158, 154), (204, 172, 122), (184, 146, 130), (142, 120, 104), (176, 188, 178),
)  # fmt: skip
_ROOFS: tuple[Color, ...] = ((118, 62, 48), (82, 66, 60), (70, 72, 78), (136, 80, 58))
_SHOPS: tuple[Color, ...] = (
    (150, 32, 34),
    (36, 70, 120),
    (40, 96, 70),
    (200, 160, 50),
    (60, 56, 54),
)
_LEAVES: tuple[Color, ...] = ((66, 88, 40), (84, 104, 46), (56, 80, 50), (104, 110, 52))


@dataclass(frozen=True)
class Light:
    """Weather of one scene.

    Attributes:
        sun: (3,) unit vector towards the sun.
        strength: 0 (overcast) to 1 (clear): how dark shadows are.
        haze: colour of far things.
        sky: colours at the top of the image and at the horizon.
    """

    sun: Array
    strength: float
    haze: Color
    sky: tuple[Color, Color]

    def haze_at(self, depth: float) -> float:
        """Share of haze at ``depth`` metres, 0 to 0.55."""
        return float(0.55 * (1 - np.exp(-depth / 190)))


@dataclass(frozen=True)
class Wall:
    """An upright plane: starts at ``origin`` on the ground, runs along ``direction`` for ``length``."""

    origin: tuple[float, float]
    direction: tuple[float, float]
    length: float
    height: float

    def quads(self, boxes: npt.ArrayLike) -> Array:
        """Corners in space (N, 4, 3) of upright boxes (N, 4): from s, y to s, y, in metres."""
        s0, y0, s1, y1 = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).T
        s = np.stack([s0, s1, s1, s0], axis=1)
        y = np.stack([y0, y0, y1, y1], axis=1)
        x = self.origin[0] + self.direction[0] * s
        z = self.origin[1] + self.direction[1] * s
        return np.stack([x, y, z], axis=2)


def project_quads(camera: Camera, quads: Array) -> list[Array]:
    """Image polygons of (N, M, 3) corners."""
    count, corners, _ = quads.shape
    return list(camera.project(quads.reshape(-1, 3)).reshape(count, corners, 2))


def noise_field(
    rng: np.random.Generator, height: int, width: int, octaves: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Smooth random values of zero mean and unit variance, (height, width).

    ``octaves`` are the numbers of random values along the shorter side.
    """
    total = np.zeros((height, width), dtype=np.float32)
    for cells in octaves:
        shape = (cells, max(1, cells * width // height))
        values = rng.standard_normal(shape, dtype=np.float32)
        total += cv2.resize(values, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray((total - total.mean()) / max(float(total.std()), 1e-6), dtype=np.float32)


def paint_sky(canvas: Canvas, camera: Camera, rng: np.random.Generator, light: Light) -> None:
    """A gradient with clouds, down to the horizon."""
    rows, columns = canvas.pixels.shape[:2]
    bottom = min(rows, max(1, int(camera.center[1] * canvas.oversampling) + 2))
    share = np.linspace(0, 1, bottom, dtype=np.float32)[:, None]
    clouds = noise_field(rng, 64, 128, (3, 6, 12, 24))
    cover = np.clip(clouds * 0.5 + rng.uniform(-0.4, 0.5), 0, 1)
    cover = cv2.resize(cover, (columns, bottom), interpolation=cv2.INTER_CUBIC)
    cover = np.clip(cover, 0, 1) * 0.75
    for channel in range(3):
        base = light.sky[0][channel] * (1 - share) + light.sky[1][channel] * share
        mixed = base + (244 - base) * cover
        canvas.pixels[:bottom, :, channel] = mixed.astype(np.uint8)


def texture_ground(canvas: Canvas, camera: Camera, rng: np.random.Generator) -> None:
    """Multiply everything below the horizon by a grain that lies flat on the ground."""
    tile = 256
    grain = noise_field(rng, tile, tile, (8, 24, 64, 256))
    top = max(0, int(np.ceil(camera.center[1])) + 1)
    v, u = np.mgrid[top : canvas.height, 0 : canvas.width].astype(np.float32)
    if v.size == 0:
        return
    depth = camera.focal * camera.elevation / np.maximum(v + 0.5 - camera.center[1], 0.5)
    across = (u - camera.center[0]) * depth / camera.focal
    scale = tile / 7.0
    sampled = cv2.remap(
        grain,
        np.mod(across * scale, tile).astype(np.float32),
        np.mod(depth * scale * 0.5, tile).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )
    factor = 1 + sampled * (0.065 * np.exp(-depth / 40)).astype(np.float32)
    size = (canvas.pixels.shape[1], (canvas.height - top) * canvas.oversampling)
    factor = cv2.resize(factor.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    ground = canvas.pixels[top * canvas.oversampling :]
    for channel in range(3):
        plane = ground[:, :, channel]
        plane[:] = np.clip(plane * factor, 0, 255).astype(np.uint8)


def paint_wall(
    canvas: Canvas,
    camera: Camera,
    wall: Wall,
    rng: np.random.Generator,
    light: Light,
    brightness: float,
) -> list[Part]:
    """A house front: rows of windows, cornice, shops or doors on the ground floor, a roof.

    Returns:
        What it covers, for the annotation.
    """
    color = shade(_FACADES[rng.integers(len(_FACADES))], brightness * rng.uniform(0.85, 1.08))
    roof_color = shade(_ROOFS[rng.integers(len(_ROOFS))], brightness)
    depth = max(4.0, wall.origin[1] + wall.direction[1] * wall.length / 2)
    amount = light.haze_at(depth)

    def tone(paint: Color) -> Color:
        return blend(paint, light.haze, amount)

    def draw(boxes: npt.ArrayLike, paint: Color) -> None:
        if np.size(boxes):
            canvas.fill(project_quads(camera, wall.quads(boxes)), tone(paint))

    length, top = wall.length, wall.height
    front = project_quads(camera, wall.quads([(0, 0, length, top)]))
    covered = [Part(front[0], None)]
    # The roof leans away from the street.
    away = (wall.direction[1] * 3.0, -wall.direction[0] * 3.0)
    sign = 1.0 if away[0] * wall.origin[0] > 0 or abs(wall.direction[0]) > 0.5 else -1.0
    if abs(wall.direction[0]) > 0.5:
        away = (0.0, 3.0)
        sign = 1.0
    rise = rng.uniform(1.6, 3.4)
    if rng.random() < 0.75:
        roof = wall.quads([(0, top, length, top)])[0]
        roof[2:, 0] += sign * away[0]
        roof[2:, 2] += sign * away[1]
        roof[2:, 1] += rise
        image = camera.project(roof)
        canvas.fill([image], tone(roof_color))
        covered.append(Part(image, None))
        count = int(length // 5)
        if count and rng.random() < 0.5:
            s = np.linspace(0, length, count + 2)[1:-1]
            dormer = np.stack([s - 0.6, s * 0 + top, s + 0.6, s * 0 + top + 1.4], axis=1)
            draw(dormer, shade(color, 0.95))
            draw(dormer + np.array([0.2, 0.3, -0.2, -0.2]), (50, 58, 66))
    canvas.fill(front, tone(color))
    ground_floor = rng.uniform(3.6, 4.4)
    storey = rng.uniform(2.9, 3.5)
    floors = max(1, int((top - ground_floor - 0.4) / storey))
    columns = max(2, int(length / rng.uniform(2.4, 3.4)))
    pitch = length / columns
    half = pitch * rng.uniform(0.2, 0.32)
    tall = storey * rng.uniform(0.5, 0.62)
    s, y = np.meshgrid(
        (np.arange(columns) + 0.5) * pitch, ground_floor + 0.75 + storey * np.arange(floors)
    )
    s, y = s.ravel(), y.ravel()
    window = np.stack([s - half, y, s + half, y + tall], axis=1)
    trim = shade(color, 1.18)
    draw([(0, top - 0.45, length, top)], shade(color, 0.86))
    draw([(0, ground_floor - 0.25, length, ground_floor)], trim)
    draw(window + np.array([-0.14, -0.16, 0.14, 0.14]), trim)
    glass: Color = (58, 66, 74)
    draw(window, glass)
    bright = rng.random(len(window)) < 0.35
    draw(window[bright] + np.array([0, tall * 0.4, 0, 0]), (122, 134, 146))
    curtain = rng.random(len(window)) < 0.2
    draw(window[curtain] + np.array([0, 0, -1.4 * half, 0]), (196, 190, 178))
    middle = window.copy()
    middle[:, 0], middle[:, 2] = s - 0.04, s + 0.04
    draw(middle, trim)
    if rng.random() < 0.35:
        chosen = rng.random(len(window)) < 0.3
        rail = window[chosen] + np.array([-0.3, -0.3, 0.3, -tall + 0.5])
        draw(rail, (74, 74, 76))
    _ground_floor(draw, rng, color, length, ground_floor, pitch, columns)
    return covered


def _ground_floor(draw, rng, color, length, ground_floor, pitch, columns) -> None:  # type: ignore[no-untyped-def]
    """Shop windows with a sign above, or plain windows and a door."""
    draw([(0, 0, length, 0.5)], shade(color, 0.7))
    s = (np.arange(columns) + 0.5) * pitch
    if rng.random() < 0.55:
        sign_color = _SHOPS[rng.integers(len(_SHOPS))]
        panes = np.stack([s - pitch * 0.42, s * 0 + 0.5, s + pitch * 0.42, s * 0 + 2.7], axis=1)
        draw(panes, (48, 54, 60))
        lit = panes[rng.random(columns) < 0.5]
        draw(lit + np.array([0.15, 0.2, -0.15, -0.5]), (128, 116, 92))
        draw([(0.2, 2.75, length - 0.2, ground_floor - 0.4)], sign_color)
        letters = np.arange(1.0, length - 1.0, 0.55)
        text = np.stack([letters, letters * 0 + 2.95, letters + 0.3, letters * 0 + 3.2], axis=1)
        draw(text[rng.random(len(text)) < 0.6], (236, 230, 214))
    else:
        panes = np.stack([s - pitch * 0.26, s * 0 + 1.1, s + pitch * 0.26, s * 0 + 2.8], axis=1)
        door = int(rng.integers(columns))
        draw(panes + np.array([-0.12, -0.12, 0.12, 0.12]), shade(color, 1.15))
        draw(panes, (54, 62, 70))
        draw([(s[door] - 0.6, 0, s[door] + 0.6, 2.9)], (80, 58, 44))


def tree_pieces(
    camera: Camera, x: float, z: float, rng: np.random.Generator, light: Light
) -> list[tuple[str, list[Part]]]:
    """A street tree: a trunk and a crown of leafy lobes."""
    tall = rng.uniform(5.0, 10.0)
    spread = tall * rng.uniform(0.26, 0.36)
    scale = camera.pixels_per_metre(z)
    amount = light.haze_at(z)
    leaf = shade(_LEAVES[rng.integers(len(_LEAVES))], rng.uniform(0.9, 1.15))
    bark = blend((78, 66, 54), light.haze, amount)
    foot, fork = camera.project([(x, 0.0, z), (x + rng.uniform(-0.3, 0.3), tall * 0.5, z)])
    half = max(0.13 * tall / 7 * scale, 0.6)
    trunk = np.array([
        foot + (-half * 1.3, 0), foot + (half * 1.3, 0), fork + (half * 0.7, 0), fork - (half * 0.7, 0),
    ])  # fmt: skip
    shadow = trunk.copy()
    shadow[[1, 2]] = (trunk[[1, 2]] + trunk[[0, 3]]) / 2
    sunny = shadow if light.sun[0] > 0 else trunk
    middle = camera.project([(x, tall * 0.68, z)])[0]
    lobes, dabs = [], []
    count = 9
    for k in range(count):
        angle = 2 * np.pi * k / count + rng.uniform(-0.3, 0.3)
        reach = spread * rng.uniform(0.3, 0.72) * scale
        at = middle + np.array([np.cos(angle) * reach, np.sin(angle) * reach * 0.85])
        radius = spread * rng.uniform(0.36, 0.58) * scale
        lobes.append((at, radius))
    lobes.append((middle, spread * 0.7 * scale))
    parts = [
        Part(_ragged(at, radius, rng), blend(shade(leaf, 0.72), light.haze, amount))
        for at, radius in lobes
    ]
    number = int(np.clip(scale * 3.2, 16, 150))
    for _ in range(number):
        at, radius = lobes[rng.integers(len(lobes))]
        angle, reach = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random()) * 0.86
        spot = at + radius * reach * np.array([np.cos(angle), np.sin(angle)])
        up = float(middle[1] - spot[1]) / max(spread * scale, 1e-6)
        side = float(spot[0] - middle[0]) / max(spread * scale, 1e-6) * np.sign(light.sun[0])
        factor = 0.92 + 0.26 * up + 0.14 * side + rng.uniform(-0.14, 0.14)
        size = radius * rng.uniform(0.1, 0.22)
        paint = blend(shade(leaf, factor), light.haze, amount)
        dabs.append(Part(circle(spot, size, 7), paint, False))
    trunk_parts = [Part(trunk, shade(bark, 0.85)), Part(sunny, shade(bark, 1.1), False)]
    return [("vegetation", trunk_parts), ("vegetation", parts + dabs)]


def _ragged(at: Array, radius: float, rng: np.random.Generator) -> Array:
    """A circle with a leafy edge."""
    rim = circle(at, radius, 16)
    factors = 1 + rng.uniform(-0.12, 0.1, size=(16, 1))
    return at + (rim - at) * factors


def _upright(camera: Camera, x: float, z: float, low: float, high: float, half: float) -> Array:
    """A rectangle (4, 2) that faces the camera, from ``low`` to ``high`` metres above the ground."""
    bottom, top = camera.project([(x, low, z), (x, high, z)])
    width = max(half * camera.pixels_per_metre(z), 0.55)
    return np.array([bottom - (width, 0), bottom + (width, 0), top + (width, 0), top - (width, 0)])


def pole_pieces(
    camera: Camera, x: float, z: float, rng: np.random.Generator, light: Light
) -> list[tuple[str, list[Part]]]:
    """A street lamp, a traffic light or a pole with traffic signs."""
    amount = light.haze_at(z)
    grey = blend((104, 106, 108), light.haze, amount)
    scale = camera.pixels_per_metre(z)
    inward = -1.0 if x > 0 else 1.0
    kind = rng.choice(["lamp", "signal", "sign"], p=[0.3, 0.25, 0.45])
    tall = {"lamp": rng.uniform(6.5, 9.0), "signal": 3.6, "sign": rng.uniform(2.6, 3.3)}[str(kind)]
    half = {"lamp": 0.09, "signal": 0.08, "sign": 0.04}[str(kind)]
    mast = _upright(camera, x, z, 0.0, tall, half)
    lit = mast.copy()
    lit[[1, 2]] = (mast[[1, 2]] + mast[[0, 3]]) / 2
    pole = [Part(mast, shade(grey, 0.75)), Part(lit, shade(grey, 1.15), False)]
    pieces: list[tuple[str, list[Part]]] = []
    top = camera.project([(x, tall, z)])[0]
    if kind == "lamp":
        arm = camera.project([(x, tall, z), (x + inward * 1.8, tall + 0.35, z)])
        pole.append(Part(arm, grey, True, max(0.1 * scale, 1.0)))
        head = camera.project([
            (x + inward * 1.5, tall + 0.28, z), (x + inward * 2.3, tall + 0.42, z),
            (x + inward * 2.3, tall + 0.56, z), (x + inward * 1.5, tall + 0.45, z),
        ])  # fmt: skip
        pole.append(Part(head, shade(grey, 0.8)))
        pieces.append(("pole", pole))
    elif kind == "signal":
        pieces.append(("pole", pole))
        box = _upright(camera, x, z, tall - 0.95, tall + 0.05, 0.19)
        lamps = [Part(box, (24, 26, 26))]
        on = int(rng.integers(3))
        colors: tuple[Color, ...] = ((40, 200, 110), (236, 176, 40), (226, 44, 34))
        for k in range(3):
            at = camera.project([(x, tall - 0.78 + 0.32 * k, z)])[0]
            paint = colors[k] if k == on else shade(colors[k], 0.3)
            lamps.append(Part(circle(at, 0.13 * scale, 12), paint, False))
        pieces.append(("traffic light", lamps))
    else:
        pieces.append(("pole", pole))
        pieces.append(("traffic sign", _sign(top, scale, rng)))
    return pieces


def _sign(at: Array, scale: float, rng: np.random.Generator) -> list[Part]:
    """The face of a traffic sign around an image point."""
    red, white, blue = (190, 30, 34), (232, 232, 228), (28, 78, 160)
    size = 0.36 * scale
    kind = int(rng.integers(6))
    if kind == 0:
        return [
            Part(circle(at, size, 18), red),
            Part(circle(at, size * 0.74, 18), white, False),
            Part(circle(at, size * 0.3, 4), (40, 40, 40), False),
        ]
    if kind == 1:
        return [
            Part(circle(at, size, 18), red),
            Part(at + np.array([(-0.6, -0.14), (0.6, -0.14), (0.6, 0.14), (-0.6, 0.14)]) * size,
                 white, False),
        ]  # fmt: skip
    if kind == 2:
        triangle = np.array([(0.0, -1.05), (1.05, 0.8), (-1.05, 0.8)])
        inner = at + triangle * size * 0.66 + (0, 0.06 * size)
        return [Part(at + triangle * size, red), Part(inner, white, False)]
    if kind == 3:
        diamond = circle(at, size * 1.1, 4)
        inner = circle(at, size * 0.75, 4)
        return [Part(diamond, white), Part(inner, (236, 186, 40), False)]
    if kind == 4:
        arrow = np.array([(-0.16, 0.6), (-0.16, -0.1), (-0.45, -0.1), (0, -0.65), (0.45, -0.1),
                          (0.16, -0.1), (0.16, 0.6)])  # fmt: skip
        return [Part(circle(at, size, 18), blue), Part(at + arrow * size, white, False)]
    square = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    letter = np.array(
        [(-0.35, -0.7), (0.4, -0.7), (0.4, 0.05), (-0.1, 0.05), (-0.1, 0.7), (-0.35, 0.7)]
    )
    return [Part(at + square * size, blue), Part(at + letter * size, white, False)]
