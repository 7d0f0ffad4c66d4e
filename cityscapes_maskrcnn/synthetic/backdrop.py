"""Background of the synthetic street scenes: light, sky, houses, grain, shadows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.synthetic.canvas import (
    Array,
    Camera,
    Canvas,
    Color,
    Part,
    blend,
    shade,
)

_FACADES: tuple[Color, ...] = (
    (190, 176, 150), (206, 190, 160), (172, 150, 120), (150, 92, 72), (198, 198, 192),
    (160, 158, 154), (204, 172, 122), (184, 146, 130), (142, 120, 104), (176, 188, 178),
)  # fmt: skip
_ROOFS: tuple[Color, ...] = ((118, 62, 48), (82, 66, 60), (70, 72, 78), (136, 80, 58))
ROOF_DEPTH = 5.5

_SHOPS: tuple[Color, ...] = (
    (150, 32, 34),
    (36, 70, 120),
    (40, 96, 70),
    (200, 160, 50),
    (60, 56, 54),
)


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
        """Get the share of haze at ``depth`` metres, 0 to 0.55."""
        return float(0.55 * (1 - np.exp(-depth / 190)))


def make_light(rng: np.random.Generator) -> Light:
    """Draw the weather."""
    azimuth, height = rng.uniform(-np.pi, np.pi), rng.uniform(0.5, 1.0)
    flat = np.cos(height)
    sun = np.array([np.sin(azimuth) * flat, np.sin(height), np.cos(azimuth) * flat])
    strength = float(rng.uniform(0.0, 1.0))
    top = blend((186, 194, 202), (112, 156, 208), strength)
    low = shade((222, 227, 230), rng.uniform(0.94, 1.04))
    return Light(sun, strength, shade(low, 0.92), (top, low))


@dataclass(frozen=True)
class Wall:
    """An upright plane from ``origin`` (x, z) along ``direction`` (x, z) for ``length`` metres.

    ``roof`` is the height of the roof above it, 0 for a flat one; its ridge is ROOF_DEPTH behind.
    """

    origin: tuple[float, float]
    direction: tuple[float, float]
    length: float
    height: float
    roof: float

    def quads(self, boxes: npt.ArrayLike) -> Array:
        """Get corners in space (N, 4, 3) of upright boxes (N, 4): from s, y to s, y, metres."""
        s0, y0, s1, y1 = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).T
        s = np.stack([s0, s1, s1, s0], axis=1)
        y = np.stack([y0, y0, y1, y1], axis=1)
        x = self.origin[0] + self.direction[0] * s
        z = self.origin[1] + self.direction[1] * s
        return np.stack([x, y, z], axis=2)


def noise_field(
    rng: np.random.Generator, height: int, width: int, octaves: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Draw smooth random values of zero mean and unit variance, (height, width).

    ``octaves`` are the numbers of random values along the shorter side.
    """
    total = np.zeros((height, width), dtype=np.float32)
    for cells in octaves:
        shape = (cells, max(1, cells * width // height))
        values = rng.standard_normal(shape, dtype=np.float32)
        total += cv2.resize(values, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray((total - total.mean()) / max(float(total.std()), 1e-6), dtype=np.float32)


def paint_sky(canvas: Canvas, camera: Camera, rng: np.random.Generator, light: Light) -> None:
    """Paint a gradient with clouds, down to the horizon."""
    columns = canvas.pixels.shape[1]
    bottom = int(camera.center[1] * canvas.oversampling) + 2
    share = np.linspace(0, 1, 96, dtype=np.float32)[:, None]
    clouds = noise_field(rng, 96, 96, (3, 6, 12, 24)) * 0.5 + rng.uniform(-0.5, 0.5)
    cover = np.clip(clouds, 0, 1) * 0.8
    planes = [
        (high * (1 - share) + low * share) * (1 - cover) + 246 * cover
        for high, low in zip(*light.sky, strict=True)
    ]
    small = np.clip(np.stack(planes, axis=2), 0, 255).astype(np.uint8)
    canvas.pixels[:bottom] = cv2.resize(small, (columns, bottom), interpolation=cv2.INTER_CUBIC)


def shadow_map(
    camera: Camera, shadows: Sequence[tuple[Array, float]], light: Light
) -> npt.NDArray[np.float32]:
    """Compute how much light reaches the ground.

    Args:
        camera: gives the size of the image.
        shadows: outlines on the ground, (N, 3) metres, and how deep each shadow is, 0 to 1.
        light: the stronger the sun, the sharper the shadows.

    Returns:
        (height, width) float32 factors, 1 where nothing casts a shadow.
    """
    dark = np.zeros((camera.height, camera.width), dtype=np.uint8)
    for outline, depth in sorted(shadows, key=lambda shadow: shadow[1]):
        image = np.rint(camera.project(outline) * 16 - 8).astype(np.int32)
        hull = cv2.convexHull(image.reshape(-1, 1, 2))
        cv2.fillConvexPoly(dark, hull, round(255 * depth), cv2.LINE_8, 4)
    sigma = camera.height / 1024 * (7 - 4 * light.strength)
    return 1 - cv2.GaussianBlur(dark, (0, 0), max(sigma, 0.5)).astype(np.float32) / 255


def texture_ground(
    canvas: Canvas, camera: Camera, rng: np.random.Generator, shadows: npt.NDArray[np.float32]
) -> None:
    """Darken everything below the horizon by a grain that lies flat on the ground and by shadows.

    Args:
        canvas: what is painted so far.
        camera: where the ground is.
        rng: makes the grain.
        shadows: (height, width) factors, as from shadow_map.
    """
    tile = 256
    grain = noise_field(rng, tile, tile, (8, 24, 64, 256))
    top = max(0, int(np.ceil(camera.center[1])) + 1)
    v = np.arange(top, canvas.height, dtype=np.float32)[:, None] + np.float32(0.5)
    u = np.arange(canvas.width, dtype=np.float32)[None]
    depth = np.float32(camera.focal * camera.elevation) / (v - np.float32(camera.center[1]))
    across = (u - np.float32(camera.center[0])) * (depth / np.float32(camera.focal))
    scale = np.float32(tile / 7.0)
    along = np.broadcast_to(depth * scale * np.float32(0.5), across.shape)
    sampled = cv2.remap(
        grain, (across * scale) % tile, along % tile, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    factor = (1 + sampled * (0.065 * np.exp(-depth / 40))) * shadows[top:]
    # 8 bit factors, 128 being 1: OpenCV multiplies bytes many times faster than floats.
    coarse = np.clip(factor * 128, 0, 255).astype(np.uint8)
    ground = canvas.pixels[top * canvas.oversampling :]
    fine = cv2.resize(coarse, (ground.shape[1], ground.shape[0]), interpolation=cv2.INTER_LINEAR)
    cv2.multiply(ground, cv2.merge([fine, fine, fine]), ground, 1 / 128)


class _Front:
    """Collect upright boxes on a wall and paint them all with one projection."""

    def __init__(self, canvas: Canvas, camera: Camera, wall: Wall, light: Light) -> None:
        self.canvas = canvas
        self.camera = camera
        self.wall = wall
        middle = wall.origin[1] + wall.direction[1] * wall.length / 2
        self.scale = camera.pixels_per_metre(middle)
        self.light = light
        self.haze = light.haze_at(middle)
        self._groups: list[tuple[Array, Color]] = []

    def tone(self, color: Color) -> Color:
        """A colour as seen from the camera, through haze."""
        return blend(color, self.light.haze, self.haze)

    def draw(self, boxes: npt.ArrayLike, color: Color, detail: float = 0.0) -> None:
        """Boxes (N, 4) for :meth:`Wall.quads`; left out below ``detail`` pixels per metre."""
        found = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        if len(found) and self.scale >= detail:
            self._groups.append((found, self.tone(color)))

    def paint(self) -> None:
        """Paint what was drawn, in order, except boxes outside the image."""
        quads = self.wall.quads(np.concatenate([boxes for boxes, _ in self._groups]))
        image = self.camera.project(quads.reshape(-1, 3)).reshape(-1, 4, 2)
        low, high = image.min(axis=1), image.max(axis=1)
        size = (self.canvas.width, self.canvas.height)
        seen = (high > 0).all(axis=1) & (low < size).all(axis=1)
        start = 0
        for boxes, color in self._groups:
            end = start + len(boxes)
            self.canvas.fill(image[start:end][seen[start:end]], color)
            start = end


def _moved(boxes: Array, s0: float, y0: float, s1: float, y1: float) -> Array:
    """Boxes (N, 4) with their borders moved by so many metres."""
    return boxes + np.array([s0, y0, s1, y1])


def paint_wall(
    canvas: Canvas,
    camera: Camera,
    wall: Wall,
    rng: np.random.Generator,
    light: Light,
    brightness: float,
) -> list[Part]:
    """Paint a house front: rows of windows, cornice, shops or doors on the ground floor, a roof.

    Returns:
        Its parts, for the annotation.
    """
    color = shade(_FACADES[rng.integers(len(_FACADES))], brightness * rng.uniform(0.85, 1.08))
    roof_color = shade(_ROOFS[rng.integers(len(_ROOFS))], brightness)
    front = _Front(canvas, camera, wall, light)
    length, top = wall.length, wall.height
    parts = [Part(camera.project(wall.quads([(0, 0, length, top)])[0]), None)]
    if wall.roof:
        roof = wall.quads([(0, top, length, top)])[0]
        # It leans away from the street, or away from the camera at the end of the street.
        sideways = ROOF_DEPTH * np.sign(wall.origin[0])
        roof[2:] += (0, wall.roof, ROOF_DEPTH) if wall.direction[0] else (sideways, wall.roof, 0)
        image = camera.project(roof)
        canvas.fill([image], front.tone(roof_color))
        parts.append(Part(image, None))
        count = int(length // 5)
        if rng.random() < 0.5:
            s = np.linspace(0, length, count + 2)[1:-1]
            dormer = np.stack([s - 0.6, s * 0 + top, s + 0.6, s * 0 + top + 1.4], axis=1)
            front.draw(dormer, shade(color, 0.95))
            front.draw(_moved(dormer, 0.2, 0.3, -0.2, -0.2), (50, 58, 66))
    front.draw([(0, 0, length, top)], color)
    columns = max(2, int(length / rng.uniform(2.4, 3.4)))
    base = rng.uniform(3.6, 4.4)
    _upper_floors(front, rng, color, base, columns)
    _ground_floor(front, rng, color, base, columns)
    front.paint()
    return parts


def _upper_floors(
    front: _Front, rng: np.random.Generator, color: Color, base: float, columns: int
) -> None:
    """Draw windows with frames, curtains and balconies above ``base`` metres, and a cornice."""
    length, top = front.wall.length, front.wall.height
    storey = rng.uniform(2.9, 3.5)
    floors = max(1, int((top - base - 0.4) / storey))
    pitch = length / columns
    half = pitch * rng.uniform(0.2, 0.32)
    tall = storey * rng.uniform(0.5, 0.62)
    grid = np.meshgrid((np.arange(columns) + 0.5) * pitch, base + 0.75 + storey * np.arange(floors))
    s, y = (axis.ravel() for axis in grid)
    window = np.stack([s - half, y, s + half, y + tall], axis=1)
    trim = shade(color, 1.18)
    front.draw([(0, top - 0.45, length, top)], shade(color, 0.86))
    front.draw([(0, base - 0.25, length, base)], trim)
    front.draw(_moved(window, -0.14, -0.16, 0.14, 0.14), trim, 4)
    front.draw(window, (58, 66, 74))
    bright, curtain = rng.random(len(window)) < 0.35, rng.random(len(window)) < 0.2
    front.draw(_moved(window[bright], 0, tall * 0.4, 0, 0), (122, 134, 146))
    front.draw(_moved(window[curtain], 0, 0, -1.4 * half, 0), (196, 190, 178), 5)
    middle = np.stack([s - 0.04, y, s + 0.04, y + tall], axis=1)
    front.draw(middle, trim, 8)
    front.draw(_moved(window, -0.2, -0.2, 0.2, -tall - 0.08), shade(color, 1.3), 10)
    if rng.random() < 0.35:
        chosen = rng.random(len(window)) < 0.3
        front.draw(_moved(window[chosen], -0.3, -0.3, 0.3, 0.5 - tall), (74, 74, 76))


def _ground_floor(
    front: _Front, rng: np.random.Generator, color: Color, base: float, columns: int
) -> None:
    """Draw shop windows with a sign above, or plain windows and a door, below ``base`` metres."""
    length = front.wall.length
    pitch = length / columns
    front.draw([(0, 0, length, 0.5)], shade(color, 0.7))
    s = (np.arange(columns) + 0.5) * pitch
    zero = np.zeros(columns)
    if rng.random() < 0.55:
        panes = np.stack([s - pitch * 0.42, zero + 0.5, s + pitch * 0.42, zero + 2.7], axis=1)
        front.draw(panes, (48, 54, 60))
        lit = panes[rng.random(columns) < 0.5]
        front.draw(_moved(lit, 0.15, 0.2, -0.15, -0.5), (134, 122, 98))
        front.draw([(0.2, 2.75, length - 0.2, base - 0.4)], _SHOPS[rng.integers(len(_SHOPS))])
        letters = np.arange(1.0, length - 1.0, 0.55)
        text = np.stack([letters, letters * 0 + 2.95, letters + 0.3, letters * 0 + 3.2], axis=1)
        front.draw(text[rng.random(len(text)) < 0.6], (236, 230, 214), 10)
    else:
        panes = np.stack([s - pitch * 0.26, zero + 1.1, s + pitch * 0.26, zero + 2.8], axis=1)
        door = int(rng.integers(columns))
        front.draw(_moved(panes, -0.12, -0.12, 0.12, 0.12), shade(color, 1.15), 4)
        front.draw(panes, (54, 62, 70))
        front.draw(_moved(panes, 0, 0.9, 0, 0), (96, 108, 118), 8)
        front.draw([(s[door] - 0.6, 0, s[door] + 0.6, 2.9)], (80, 58, 44))
