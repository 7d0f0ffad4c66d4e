"""Masks held inside their boxes, and their run-lengths.

An instance covers a few percent of a 1024 x 2048 frame. Everything here works on the part of the
frame that a mask occupies; the full frame is never made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask


@dataclass(frozen=True)
class CroppedMask:
    """A binary mask cut down to a box of its frame; outside the box it is empty.

    Attributes:
        x0: column of the box's first pixel in the frame, from 0.
        y0: row of the box's first pixel in the frame, from 0.
        bitmap: what is inside the box, shape (height, width) of the box, dtype bool. Shape (0, 0)
            stands for an empty mask.
    """

    x0: int
    y0: int
    bitmap: npt.NDArray[np.bool_]

    def area(self) -> int:
        """Count the pixels of the mask."""
        return int(np.count_nonzero(self.bitmap))


def crop_mask(full: npt.NDArray[np.bool_]) -> CroppedMask:
    """Cut a mask down to the smallest box that holds it.

    Args:
        full: shape (height, width) of the frame, dtype bool.

    Returns:
        The mask in its tight box, in memory of its own; an empty mask has a bitmap of shape (0, 0)
        at (0, 0).
    """
    rows = np.any(full, axis=1)
    y0, y1 = occupied_span(rows)
    x0, x1 = occupied_span(np.any(full[y0:y1], axis=0))
    # A view would keep the whole frame alive.
    return CroppedMask(x0, y0, full[y0:y1, x0:x1].copy())


def occupied_span(occupied: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Find where a row or column of flags begins and ends to be set.

    Args:
        occupied: shape (N,).

    Returns:
        Index of the first True and one past the last True; (0, 0) if there is none.
    """
    if not occupied.any():
        return 0, 0
    return int(occupied.argmax()), len(occupied) - int(occupied[::-1].argmax())


def tight_box(mask: CroppedMask) -> tuple[float, float, float, float]:
    """Find the smallest box around a mask's pixels, in COCO's form.

    Args:
        mask: any mask; its own box may be wider than its pixels.

    Returns:
        (x, y, width, height) in pixels, (x, y) being the upper left corner of the first pixel;
        all 0 when the mask is empty.
    """
    inner = crop_mask(mask.bitmap)
    height, width = inner.bitmap.shape
    if not height:
        return (0.0, 0.0, 0.0, 0.0)
    return (float(mask.x0 + inner.x0), float(mask.y0 + inner.y0), float(width), float(height))


def run_lengths(mask: CroppedMask, height: int, width: int) -> npt.NDArray[np.int64]:
    """Count the frame's pixels in runs of equal value, column by column.

    Args:
        mask: lies inside the frame.
        height: of the frame in pixels.
        width: of the frame in pixels.

    Returns:
        Lengths of the runs of 0, 1, 0, ... in column-major order, dtype int64. The first is 0 when
        the frame's first pixel is set; they add up to ``height * width``.
    """
    box_height, box_width = mask.bitmap.shape
    # With an empty row above and below, every run of a column has a start and an end.
    columns = np.zeros((box_width, box_height + 2), dtype=bool)
    columns[:, 1:-1] = mask.bitmap.T
    steps = np.flatnonzero(columns[:, 1:] != columns[:, :-1])
    column, row = np.divmod(steps, box_height + 1)
    # In every column starts and ends alternate, so in this order they do throughout.
    edges = (mask.x0 + column) * height + mask.y0 + row
    if box_height == height:
        # Where a run reaches the lower border and the next begins at the upper border of the next
        # column, an end and a start fall together: in column-major order they are one run.
        joined = np.flatnonzero(edges[1:-1:2] == edges[2::2])
        edges = np.delete(edges, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    lengths = np.diff(edges, prepend=0, append=height * width)
    return lengths[:-1] if len(lengths) > 1 and lengths[-1] == 0 else lengths


def coco_rle(mask: CroppedMask, height: int, width: int) -> dict[str, Any]:
    """Encode a mask as COCO's compressed run-lengths of the full frame.

    Args:
        mask: lies inside the frame.
        height: of the frame in pixels.
        width: of the frame in pixels.

    Returns:
        ``{"size": [height, width], "counts": bytes}``, equal to what ``pycocotools.mask.encode``
        gives for the full frame.
    """
    uncompressed = {"size": [height, width], "counts": run_lengths(mask, height, width)}
    encoded: dict[str, Any] = coco_mask.frPyObjects(uncompressed, height, width)
    return encoded
