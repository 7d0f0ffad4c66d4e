"""Paste objects of one image into another: the pixels, and the outlines of hidden objects.

After Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance
Segmentation", CVPR 2021.

Polygons are float64 arrays [x0, y0, x1, y1, ...] in pixels of the image, the first pixel from 0 to
1; an object is the union of its polygons, each filled by COCO's rasterizer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pycocotools.mask as coco_mask

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Polygons = Sequence[npt.NDArray[np.float64]]


class Window(NamedTuple):
    """Pixels from (left, top) up to, but not including, (right, bottom)."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of an array of shape (height, width)."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def paste_objects(
    image: Pixels,
    objects: Sequence[Polygons],
    other_image: Pixels,
    other_objects: Sequence[Polygons],
    *,
    min_area: int,
    blend: float,
) -> tuple[Pixels, list[Polygons | None], list[int]]:
    """Paste objects of another image in front of an image's own, where they are in theirs.

    Args:
        image: shape (3, H, W), uint8; not changed.
        objects: the image's own.
        other_image: shape (3, H', W'), uint8; what lies beyond (H, W) is cut off.
        other_objects: those to paste, the last in front.
        min_area: fewest pixels, at least 1, that a pasted object must have, and one of which
            something was hidden must keep; others are not pasted, or have no outline any more.
        blend: standard deviation, in pixels, of the Gaussian by which the seam is smoothed; 0: a
            hard one.

    Returns:
        The new image; the outlines of the image's own objects, the same where nothing was hidden,
        one that has exactly the pixels that are still seen where something was, and None where too
        little is left; and the indices of what was pasted.
    """
    height, width = image.shape[1:]
    size = min(height, other_image.shape[1]), min(width, other_image.shape[2])
    image = image.copy()
    hidden = np.zeros((height, width), np.bool_)
    pasted = []
    for index, polygons in enumerate(other_objects):
        window = window_of(polygons, size)
        mask = rasterize(polygons, window)
        if mask.sum() < min_area:
            continue
        _paste_pixels(image, other_image, mask, window, size, blend)
        hidden[window.slices] |= mask
        pasted.append(index)
    left = [_cut(polygons, hidden, min_area) if pasted else polygons for polygons in objects]
    return image, left, pasted


def window_of(polygons: Polygons, size: tuple[int, int]) -> Window:
    """Find the pixels that polygons touch, inside an image of a height and width."""
    points = np.concatenate([np.empty(0), *polygons]).reshape(-1, 2)
    if not len(points):
        return Window(0, 0, 0, 0)
    # One more on each side: the rasterizer rounds.
    low = np.clip(np.floor(points.min(axis=0)) - 1, 0, size[::-1]).astype(int).tolist()
    high = np.clip(np.ceil(points.max(axis=0)) + 1, 0, size[::-1]).astype(int).tolist()
    return Window(*low, *high)


def rasterize(polygons: Polygons, window: Window) -> Mask:
    """Fill polygons inside a window, pixel by pixel as COCO does in the whole image."""
    shape = window.bottom - window.top, window.right - window.left
    if min(shape) <= 0:
        return np.zeros((max(shape[0], 0), max(shape[1], 0)), np.bool_)
    corner = np.array([window.left, window.top])
    moved = [(polygon.reshape(-1, 2) - corner).ravel() for polygon in polygons]
    encoded = coco_mask.merge(coco_mask.frPyObjects(moved, *shape))
    mask: Mask = coco_mask.decode(encoded).astype(np.bool_)
    return mask


def outline(mask: Mask, window: Window) -> list[npt.NDArray[np.float64]]:
    """Trace a mask along the borders of its pixels: filled, the polygons are the mask again.

    Args:
        mask: shape of the window.
        window: where the mask is in the image.

    Returns:
        A polygon for each part. Holes belong to it: a seam, there and back, leads to each, and what
        it encloses is counted twice, which is not inside.
    """
    # OpenCV goes through the middles of pixels. Of pixels enlarged to four, the first one of a row
    # or column is beside a border on its left, the second one beside one on its right.
    enlarged = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(enlarged, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    corner = np.array([window.left, window.top])
    polygons: dict[int, npt.NDArray[Any]] = {}
    # Parts before holes.
    parents = [] if hierarchy is None else hierarchy[0, :, 3].tolist()
    for index in sorted(range(len(contours)), key=lambda index: parents[index] >= 0):
        points = (contours[index][:, 0] + 1) // 2 + corner
        points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
        parent = parents[index]
        if parent < 0:
            polygons[index] = points
        else:
            around = polygons[parent]
            polygons[parent] = np.concatenate([around, points, points[:1], around[-1:]])
    return [points.astype(np.float64).ravel() for points in polygons.values()]


def _cut(polygons: Polygons, hidden: Mask, min_area: int) -> Polygons | None:
    """Take what is hidden out of an object; None: too little is left."""
    window = window_of(polygons, (hidden.shape[0], hidden.shape[1]))
    there = hidden[window.slices]
    if not there.any():
        return polygons
    mask = rasterize(polygons, window)
    seen = mask & ~there
    area = seen.sum()
    if area == mask.sum():
        return polygons
    return outline(seen, window) if area >= min_area else None


def _paste_pixels(
    image: Pixels,
    other_image: Pixels,
    mask: Mask,
    window: Window,
    size: tuple[int, int],
    blend: float,
) -> None:
    """Copy pixels of a mask, in place."""
    if not blend:
        rows, columns = window.slices
        np.copyto(image[:, rows, columns], other_image[:, rows, columns], where=mask)
        return
    margin = math.ceil(3 * blend)
    wide = Window(
        max(window.left - margin, 0),
        max(window.top - margin, 0),
        min(window.right + margin, size[1]),
        min(window.bottom + margin, size[0]),
    )
    share = np.zeros((wide.bottom - wide.top, wide.right - wide.left), np.float32)
    top, left = window.top - wide.top, window.left - wide.left
    share[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    share = cv2.GaussianBlur(share, (0, 0), blend, borderType=cv2.BORDER_REPLICATE)
    rows, columns = wide.slices
    ours, theirs = image[:, rows, columns], other_image[:, rows, columns]
    mixed = ours + share * (theirs.astype(np.float32) - ours)
    ours[:] = np.rint(mixed).clip(0, 255)
