"""Street furniture of the synthetic scenes: trees, lamps, signals, signs, bins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.synthetic.backdrop import Light, noise_field
from cityscapes_maskrcnn.synthetic.canvas import (
    Array,
    Camera,
    Color,
    Part,
    blend,
    circle,
    shade,
)

_LEAVES: tuple[Color, ...] = ((78, 102, 46), (98, 118, 54), (66, 94, 58), (120, 124, 62))

Pieces = list[tuple[str, list[Part]]]


def leaf_sprites(rng: np.random.Generator, light: Light) -> list[npt.NDArray[np.float32]]:
    """Draw lobes of sunlit foliage: brightness (160, 160), 0 around the leaves."""
    size = 160
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = axis[None], axis[:, None]
    radius = np.sqrt(x * x + y * y)
    toward = -0.32 * y + 0.16 * x * np.float32(np.sign(light.sun[0]))
    sprites = []
    for _ in range(3):
        leaves = noise_field(rng, size, size, (12, 26, 50))
        tone = 0.86 + toward + (0.12 + 0.05 * light.strength) * leaves
        edge = 0.9 + 0.09 * noise_field(rng, size, size, (7, 18, 30))
        sprites.append(np.where(radius < edge, np.maximum(tone, 0.36), 0).astype(np.float32))
    return sprites


def tree_pieces(
    camera: Camera,
    place: tuple[float, float],
    tall: float,
    rng: np.random.Generator,
    light: Light,
    sprites: Sequence[npt.NDArray[np.float32]],
) -> Pieces:
    """Build a tree ``tall`` metres high at ``place`` (x, z): a trunk and a crown of leafy lobes."""
    x, z = place
    spread = tall * rng.uniform(0.26, 0.36)
    scale = camera.pixels_per_metre(z)
    amount = light.haze_at(z)
    leaf = shade(_LEAVES[rng.integers(len(_LEAVES))], rng.uniform(0.9, 1.15))
    bark = blend((84, 72, 60), light.haze, amount)
    lean = rng.uniform(-0.3, 0.3)
    foot, fork, middle = camera.project(
        [(x, 0.0, z), (x + lean, tall * 0.55, z), (x + lean / 2, tall * 0.68, z)]
    )
    half = np.array([max(0.02 * tall * scale, 0.6), 0.0])
    trunk = np.array([foot - half * 1.3, foot + half * 1.3, fork + half * 0.7, fork - half * 0.7])
    trunk_parts = [Part(trunk, shade(bark, 0.8)), Part(_sunny_half(trunk, light), bark, False)]
    crown = []
    count = 10
    for k in range(count):
        angle = 2 * np.pi * k / count + rng.uniform(-0.3, 0.3)
        reach = spread * scale * (rng.uniform(0.35, 0.72) if k else 0.0)
        offset = np.array([np.cos(angle), 0.85 * np.sin(angle)]) * reach
        radius = spread * scale * (rng.uniform(0.4, 0.6) if k else 0.72)
        # Lower lobes lie in the shade of the upper ones.
        factor = 0.98 - 0.26 * float(offset[1]) / (spread * scale) + rng.uniform(-0.05, 0.05)
        sprite = sprites[int(rng.integers(len(sprites)))]
        if rng.random() < 0.5:
            sprite = np.ascontiguousarray(sprite[:, ::-1])
        paint = blend(shade(leaf, factor), light.haze, amount)
        crown.append((offset[1], Part(circle(middle + offset, radius, 24), paint, sprite=sprite)))
    crown.sort(key=lambda lobe: -lobe[0])
    outline = [Part(_shrink(part.points), None) for _, part in crown]
    stamps = [Part(p.points, p.color, False, sprite=p.sprite) for _, p in crown]
    return [("vegetation", trunk_parts), ("vegetation", [*outline, *stamps])]


def _shrink(points: Array) -> Array:
    """A lobe's outline where its leaves end."""
    middle = points.mean(axis=0)
    return middle + (points - middle) * 0.9


def _sunny_half(mast: Array, light: Light) -> Array:
    """The half of an upright strip (corners: left, right, right, left) that faces the sun."""
    half = mast.copy()
    middle = (mast[[0, 3]] + mast[[1, 2]]) / 2
    half[[0, 3] if light.sun[0] > 0 else [1, 2]] = middle
    return half


def bin_pieces(camera: Camera, place: tuple[float, float], light: Light) -> Pieces:
    """Build a litter bin at ``place`` (x, z)."""
    x, z = place
    amount = light.haze_at(z)
    body = _upright(camera, x, z, 0.0, 0.92, 0.3)
    parts = [
        Part(body, blend((58, 70, 64), light.haze, amount)),
        Part(_sunny_half(body, light), blend((74, 88, 80), light.haze, amount), False),
        Part(_upright(camera, x, z, 0.92, 1.05, 0.33), blend((44, 52, 48), light.haze, amount)),
    ]
    return [("static", parts)]


def _upright(camera: Camera, x: float, z: float, low: float, high: float, half: float) -> Array:
    """A rectangle (4, 2) that faces the camera, ``low`` to ``high`` metres above the ground."""
    bottom, top = camera.project([(x, low, z), (x, high, z)])
    across = np.array([max(half * camera.pixels_per_metre(z), 0.55), 0.0])
    return np.array([bottom - across, bottom + across, top + across, top - across])


def pole_pieces(
    camera: Camera, x: float, z: float, rng: np.random.Generator, light: Light
) -> Pieces:
    """Build a street lamp, a traffic light or a pole with traffic signs."""
    amount = light.haze_at(z)
    grey = blend((104, 106, 108), light.haze, amount)
    scale = camera.pixels_per_metre(z)
    inward = -1.0 if x > 0 else 1.0
    kind = rng.choice(["lamp", "signal", "sign"], p=[0.3, 0.25, 0.45])
    tall = {"lamp": rng.uniform(6.5, 9.0), "signal": 3.6, "sign": rng.uniform(2.6, 3.3)}[str(kind)]
    half = {"lamp": 0.09, "signal": 0.08, "sign": 0.04}[str(kind)]
    mast = _upright(camera, x, z, 0.0, tall, half)
    lit = _sunny_half(mast, light)
    pole = [Part(mast, shade(grey, 0.75)), Part(lit, shade(grey, 1.15), False)]
    pieces: Pieces = []
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
