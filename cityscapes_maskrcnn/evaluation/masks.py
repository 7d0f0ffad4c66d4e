"""Masks as runs of pixels.

An instance takes a few percent of a 1024 x 2048 frame, so a mask is a list of runs, a few numbers
for every column that it touches. Runs go down the columns, as in COCO: the pixel in column x and
row y of a frame has the position ``x * height + y``, and a run may go on at the top of the next
column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.utils.errors import InputError

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RunMask:
    """A binary mask as runs of set pixels.

    Attributes:
        starts: shape (R,), dtype int64: position of every run's first pixel, ascending.
        ends: shape (R,), dtype int64: position after every run's last pixel. It is less than the
            next start: runs neither overlap nor touch.
        height: of the frame in pixels.
        width: of the frame in pixels.
    """

    starts: IntArray
    ends: IntArray
    height: int
    width: int

    def area(self) -> int:
        """Count the pixels of the mask."""
        return int((self.ends - self.starts).sum())

    def box(self) -> tuple[int, int, int, int]:
        """Find the smallest box: (x0, y0, x1, y1), the last two exclusive; all 0 when empty."""
        if not len(self.starts):
            return 0, 0, 0, 0
        columns, rows = np.divmod(self.starts, self.height)
        last_columns, last_rows = np.divmod(self.ends - 1, self.height)
        # A run that goes on in the next column touches both borders.
        is_joined = last_columns > columns
        y0 = 0 if is_joined.any() else int(rows.min())
        y1 = self.height if is_joined.any() else int(last_rows.max()) + 1
        return int(columns[0]), y0, int(last_columns[-1]) + 1, y1

    def run_lengths(self) -> IntArray:
        """Get the lengths of the runs of 0, 1, 0, ... over the frame; the first may be 0."""
        edges = np.stack([self.starts, self.ends], axis=1).ravel()
        return np.diff(edges, prepend=0, append=self.height * self.width)

    def frame(self) -> npt.NDArray[np.uint8]:
        """Get the full frame, shape (height, width), dtype uint8: 0 and 1."""
        lengths = self.run_lengths()
        pixels = np.repeat((np.arange(len(lengths)) % 2).astype(np.uint8), lengths)
        return _transpose(pixels.reshape(self.width, self.height))

    def crop(self) -> tuple[int, int, npt.NDArray[np.uint8]]:
        """Get the part of the frame inside :meth:`box`, without the rest of the frame.

        Returns:
            Column and row of its upper left pixel, and the pixels, 0 and 1; all empty when empty.
        """
        x0, y0, x1, y1 = self.box()
        edges = np.stack([self.starts, self.ends], axis=1).ravel() - x0 * self.height
        lengths = np.diff(edges, prepend=0, append=(x1 - x0) * self.height)
        pixels = np.repeat((np.arange(len(lengths)) % 2).astype(np.uint8), lengths)
        return x0, y0, _transpose(pixels.reshape(x1 - x0, self.height)[:, y0:y1])


def mask_from_bitmap(
    bitmap: npt.NDArray[Any],
    *,
    x0: int = 0,
    y0: int = 0,
    height: int | None = None,
    width: int | None = None,
) -> RunMask:
    """List the runs of a bitmap, the full frame or a part of it.

    Args:
        bitmap: two dimensions, any dtype; what is not zero belongs to the mask.
        x0: column of the frame where the bitmap begins.
        y0: row of the frame where the bitmap begins.
        height: of the frame in pixels; None: it ends with the bitmap.
        width: of the frame in pixels; None: it ends with the bitmap.

    Raises:
        InputError: the bitmap does not lie inside the frame.
    """
    height = y0 + bitmap.shape[0] if height is None else height
    width = x0 + bitmap.shape[1] if width is None else width
    if min(x0, y0) < 0 or y0 + bitmap.shape[0] > height or x0 + bitmap.shape[1] > width:
        raise InputError(f"a mask reaches out of the image's frame of {height} x {width}")
    top, bottom = occupied_span(np.any(bitmap, axis=1))
    left, right = occupied_span(np.any(bitmap[top:bottom], axis=0))
    # With an empty row above and below, every run of a column has a start and an end.
    rows = np.zeros((bottom - top + 2, right - left), dtype=np.uint8)
    np.not_equal(bitmap[top:bottom, left:right], 0, out=rows[1:-1].view(bool))
    steps = np.flatnonzero(_transpose(rows[1:] ^ rows[:-1]).view(bool))
    column, row = np.divmod(steps, bottom - top + 1)
    # In every column starts and ends alternate, so in this order they do throughout.
    edges = (x0 + left + column) * height + y0 + top + row
    if bottom - top == height:
        # Where a run reaches the lower border and the next begins at the upper border of the next
        # column, an end and a start fall together: in column-major order they are one run.
        joined = np.flatnonzero(edges[1:-1:2] == edges[2::2])
        edges = np.delete(edges, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    return RunMask(starts=edges[0::2], ends=edges[1::2], height=height, width=width)


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


def _transpose(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Transpose in memory: OpenCV takes a tenth of NumPy's time, but nothing empty."""
    if not pixels.size:
        return pixels.T
    transposed: npt.NDArray[np.uint8] = cv2.transpose(pixels)
    return transposed


def coco_rles(masks: Sequence[RunMask]) -> list[dict[str, Any]]:
    """Encode masks of one image as COCO's compressed run-lengths of the full frame.

    Returns:
        ``{"size": [height, width], "counts": bytes}`` for every mask, equal to what
        ``pycocotools.mask.encode`` gives for the full frame.
    """
    # Here, because most of this file works without the package.
    from pycocotools import mask as coco_mask

    if not masks:
        return []  # which pycocotools cannot encode
    height, width = masks[0].height, masks[0].width
    uncompressed = []
    for mask in masks:
        lengths = mask.run_lengths()
        # COCO leaves out a last run of 0 pixels.
        if len(lengths) > 1 and lengths[-1] == 0:
            lengths = lengths[:-1]
        uncompressed.append({"size": [height, width], "counts": lengths})
    encoded: list[dict[str, Any]] = coco_mask.frPyObjects(uncompressed, height, width)
    return encoded
