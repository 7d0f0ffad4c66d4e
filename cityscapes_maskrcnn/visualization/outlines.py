"""Outlines of objects to draw: what every picture of instances needs, without Detectron2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import contourpy
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

FILL_ALPHA: Final = 0.5
#: Of groups: several objects in one outline.
HATCH: Final = "///"
#: Shares of white mixed into the class colour of neighbouring instances, from left to right.
SHADES: Final = (0.0, 0.24, 0.1, 0.32)


@dataclass(frozen=True)
class Edge:
    """An outline that means something.

    Attributes:
        color: ``#rrggbb``.
        dashes: lengths of dashes and gaps in turn, in widths of the line; empty for none.
        is_hatched: whether what it surrounds is hatched.
    """

    color: str
    dashes: tuple[float, ...] = ()
    is_hatched: bool = False


@dataclass(frozen=True, eq=False)
class DrawnObject:
    """One object, in pixels of the image.

    Attributes:
        category: contiguous class id.
        contours: closed curves, each of shape (N, 2), as ``(x, y)``; holes run the other way round.
        label: the text beside it.
        is_group: several objects of a class that could not be told apart.
        edge: the outline; None: a light one in the colour of the class.
    """

    category: int
    contours: list[FloatArray]
    label: str
    is_group: bool = False
    edge: Edge | None = None

    @property
    def box(self) -> FloatArray:
        """The tight box ``(x0, y0, x1, y1)``."""
        points = np.concatenate(self.contours)
        return np.concatenate([points.min(axis=0), points.max(axis=0)])

    @property
    def area(self) -> float:
        """The area within the contours, less the holes."""
        return abs(sum(signed_area(contour) for contour in self.contours))


class _Cropped(Protocol):
    def crop(self) -> tuple[int, int, npt.NDArray[np.uint8]]:
        """Column and row of the upper left pixel of a part of the frame, and its pixels."""


def mask_contours(mask: npt.NDArray[np.bool_]) -> list[FloatArray]:
    """Trace the border of a mask.

    Args:
        mask: shape (H, W), bool.

    Returns:
        Closed curves, each of shape (N, 2), as ``(x, y)`` in pixels, the first pixel from 0 to 1;
        straight borders lie on the pixel borders. Holes run against their surroundings. Empty for
        an empty mask.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    crop = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.float64), 1)
    # Level 0.5 lies half-way between two pixel centres; the padding moved all by one pixel.
    lines = contourpy.contour_generator(z=crop).lines(0.5)
    shift = np.array([left - 0.5, top - 0.5])
    return [np.asarray(line, dtype=np.float64) + shift for line in lines]


def frame_contours(mask: _Cropped) -> list[FloatArray]:
    """Trace the border of a mask that knows its part of the frame; see :func:`mask_contours`.

    Args:
        mask: a :class:`.masks.RunMask`.

    Returns:
        Curves in pixels of the frame.
    """
    x, y, pixels = mask.crop()
    corner = np.array([x, y], dtype=np.float64)
    return [part + corner for part in mask_contours(pixels.astype(bool))]


def box_contour(box: npt.ArrayLike) -> FloatArray:
    """Get the corners of a box ``(x0, y0, x1, y1)``, of shape (4, 2), as ``(x, y)``."""
    x0, y0, x1, y1 = np.asarray(box, dtype=np.float64)
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def signed_area(contour: FloatArray) -> float:
    """The area within a closed curve; of one that runs the other way round it is negative."""
    x, y = contour.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
