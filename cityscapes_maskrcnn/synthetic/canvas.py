"""Camera, paint and outlines for the synthetic street scenes.

World coordinates are metres: X to the right of the camera, Y up from the road, Z forward. Image
coordinates are continuous pixels of the final image: pixel ``i`` is ``[i, i + 1)``. Everything
visible is a list of :class:`Part`, so that image and annotation come from the same numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Color = tuple[float, float, float]

NEAREST_Z = 0.8
_FARTHEST = 30000.0  # keeps OpenCV's fixed point from overflowing
_SHIFT = 4
_UNIT = 1 << _SHIFT


@dataclass(frozen=True)
class Camera:
    """Pinhole camera that looks along +Z, parallel to the ground.

    Attributes:
        height, width: size of the final image in pixels.
        focal: focal length in pixels.
        center: image position (u, v) of the point at infinity straight ahead.
        elevation: metres above the road.
    """

    height: int
    width: int
    focal: float
    center: tuple[float, float]
    elevation: float

    def project(self, points: npt.ArrayLike) -> Array:
        """Map world points (N, 3) in metres to image points (N, 2) in continuous pixels.

        Points nearer than ``NEAREST_Z`` are pushed there, so that nothing passes behind the camera.
        """
        world = np.asarray(points, dtype=np.float64)
        scale = self.focal / np.maximum(world[:, 2], NEAREST_Z)
        image = np.empty((len(world), 2))
        image[:, 0] = self.center[0] + world[:, 0] * scale
        image[:, 1] = self.center[1] + (self.elevation - world[:, 1]) * scale
        return image.clip(-_FARTHEST, _FARTHEST)

    def pixels_per_metre(self, depth: float) -> float:
        """Get the length in pixels of one metre across the line of sight, ``depth`` metres away."""
        return self.focal / max(depth, NEAREST_Z)


@dataclass(frozen=True)
class Part:
    """One flat-coloured area of the image.

    Attributes:
        points: (N, 2) outline in continuous pixels, or the path of a line if ``line`` is positive.
        color: RGB, 0 to 255; None for what only belongs to the outline (the air between spokes).
        solid: whether it belongs to the outline of the object.
        line: 0 to fill; otherwise the width in pixels of a line along ``points``.
        sprite: (S, S) float32 brightness, 0 where transparent, stretched over the bounding box of
            ``points`` instead of filling them.
    """

    points: Array
    color: Color | None
    solid: bool = True
    line: float = 0.0
    sprite: npt.NDArray[np.float32] | None = None


def shade(color: Color, factor: float) -> Color:
    """Multiply an RGB colour (0 to 255) by ``factor`` and clip it to the valid range."""
    r, g, b = (min(255.0, max(0.0, c * factor)) for c in color)
    return r, g, b


def blend(a: Color, b: Color, weight: float) -> Color:
    """Mix two RGB colours; ``weight`` 0 gives ``a``, 1 gives ``b``."""
    return (
        a[0] + (b[0] - a[0]) * weight,
        a[1] + (b[1] - a[1]) * weight,
        a[2] + (b[2] - a[2]) * weight,
    )


@functools.lru_cache
def unit_circle(count: int) -> Array:
    """Get points (count, 2) on the circle of radius 1 around 0. Read only."""
    angles = np.arange(count) * (2 * np.pi / count)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points.flags.writeable = False
    return points


def circle(center: Array, radius: float, count: int = 14) -> Array:
    """Get points (count, 2) on a circle around image point ``center``; ``radius`` in pixels."""
    return unit_circle(count) * radius + center


def convex_hull(points: Array) -> Array:
    """Compute the convex hull (M, 2) of image points (N, 2)."""
    hull = cv2.convexHull(points.astype(np.float32))
    return hull.reshape(-1, 2).astype(np.float64)


def balls(
    camera: Camera, centers: npt.ArrayLike, radii: Sequence[float], color: Color, solid: bool = True
) -> Part:
    """Build the convex hull of balls in space: a limb, a torso, a head.

    Args:
        camera: projects the balls.
        centers: (N, 3) metres.
        radii: N radii in metres; drawn at least 0.45 pixels wide.
        color: RGB.
        solid: see :class:`Part`.
    """
    world = np.asarray(centers, dtype=np.float64)
    image = camera.project(world)
    scale = camera.focal / np.maximum(world[:, 2], NEAREST_Z)
    sizes = np.maximum(np.asarray(radii) * scale, 0.45)
    unit = unit_circle(10 if sizes.max() < 6 else 18)
    rims = image[:, None] + sizes[:, None, None] * unit
    return Part(convex_hull(rims.reshape(-1, 2)), color, solid)


def _fixed(points: Array, scale: float) -> npt.NDArray[np.int32]:
    """Continuous pixels to OpenCV's fixed point, whose whole numbers are pixel centres."""
    return np.rint(points * (scale * _UNIT) - 0.5 * _UNIT).astype(np.int32)


class Canvas:
    """An RGB image that is painted larger than needed and scaled down at the end.

    Args:
        height: rows of the final image.
        width: columns of the final image.
        oversampling: painted pixels per final pixel, along each axis.
    """

    def __init__(self, height: int, width: int, oversampling: int) -> None:
        self.height = height
        self.width = width
        self.oversampling = oversampling
        self.pixels = np.zeros((height * oversampling, width * oversampling, 3), dtype=np.uint8)

    def fill(self, polygons: Sequence[Array] | Array, color: Color) -> None:
        """Fill polygons (each (N, 2) continuous pixels) that do not overlap each other."""
        if len(polygons):
            shapes = [_fixed(polygon, self.oversampling) for polygon in polygons]
            cv2.fillPoly(self.pixels, shapes, color, cv2.LINE_8, _SHIFT)

    def paint(self, parts: Sequence[Part]) -> None:
        """Paint parts in order."""
        for part in parts:
            if part.color is None:
                continue
            if part.sprite is not None:
                self._stamp(part, part.color)
            elif part.line:
                thickness = max(1, round(part.line * self.oversampling))
                path = [_fixed(part.points, self.oversampling)]
                cv2.polylines(self.pixels, path, False, part.color, thickness, cv2.LINE_8, _SHIFT)
            else:
                self.fill([part.points], part.color)

    def _stamp(self, part: Part, color: Color) -> None:
        """Paint the sprite of a part over the bounding box of its points."""
        low = np.floor(part.points.min(axis=0) * self.oversampling).astype(int)
        high = np.ceil(part.points.max(axis=0) * self.oversampling).astype(int)
        columns, rows = (int(n) for n in np.maximum(high - low, 1))
        x0, y0 = (int(n) for n in np.maximum(low, 0))
        x1 = min(low[0] + columns, self.pixels.shape[1])
        y1 = min(low[1] + rows, self.pixels.shape[0])
        if x0 >= x1 or y0 >= y1:
            return
        assert part.sprite is not None
        tone = cv2.resize(part.sprite, (columns, rows), interpolation=cv2.INTER_LINEAR)
        tone = tone[y0 - low[1] : y1 - low[1], x0 - low[0] : x1 - low[0]]
        region = self.pixels[y0:y1, x0:x1]
        opaque = tone > 0.4
        tone = np.maximum(tone, 0.55)  # or the rim, half transparent, would be a dark line
        for channel in range(3):
            shaded = np.minimum(tone * np.float32(color[channel]), 255).astype(np.uint8)
            np.copyto(region[:, :, channel], shaded, where=opaque)

    def finished(self) -> npt.NDArray[np.uint8]:
        """Get the image at its final size, (height, width, 3) uint8 RGB."""
        size = (self.width, self.height)
        return np.asarray(cv2.resize(self.pixels, size, interpolation=cv2.INTER_AREA))


def outline(parts: Sequence[Part], height: int, width: int) -> list[list[int]]:
    """Trace one polygon around all solid parts, in the integer pixels of the official annotation.

    The parts are drawn into a mask that reaches a little over the image border (as official
    polygons do) and the largest connected area is traced.

    Args:
        parts: any parts; those that are not solid are left out.
        height: rows of the image.
        width: columns of the image.

    Returns:
        ``[[x, y], ...]``, at least three points; empty if nothing of two pixels or more is near the
        image.
    """
    solid = [part for part in parts if part.solid]
    if not solid:
        return []
    border = max(3, width // 100)
    points = np.concatenate([part.points for part in solid])
    if not np.isfinite(points).all():
        return []
    x0, y0 = np.maximum(np.floor(points.min(axis=0)).astype(int) - 3, -border)
    x1, y1 = np.minimum(
        np.ceil(points.max(axis=0)).astype(int) + 3, (width + border, height + border)
    )
    if x1 - x0 < 2 or y1 - y0 < 2:
        return []
    mask = np.zeros((y1 - y0, x1 - x0), dtype=np.uint8)
    for part in solid:
        moved = part.points - np.array([x0, y0])
        if part.line:
            path = [_fixed(moved, 1)]
            thickness = max(1, round(part.line))
            cv2.polylines(mask, path, False, 1, thickness, cv2.LINE_8, _SHIFT)
        else:
            cv2.fillPoly(mask, [_fixed(moved, 1)], 1, cv2.LINE_8, _SHIFT)
    shorter = min(mask.shape)
    if shorter > 14:
        # One-pixel spurs would become polygon edges that run forth and back on themselves. The
        # two anchors differ, or a kernel of even size would move the mask by a pixel.
        kernel = np.ones((2, 2), np.uint8)
        opened = cv2.dilate(cv2.erode(mask, kernel, anchor=(0, 0)), kernel, anchor=(1, 1))
        mask = opened if opened.any() else mask
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return []
    largest = max(contours, key=cv2.contourArea)
    tolerance = 0.5 if shorter < 60 else min(1.5, 0.5 + shorter / 300)
    simple = cv2.approxPolyDP(largest, tolerance, True).reshape(-1, 2)
    if len(simple) < 3 or cv2.contourArea(simple) < 2:
        return []
    return [[int(x) + int(x0), int(y) + int(y0)] for x, y in simple]
