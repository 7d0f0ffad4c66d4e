"""Masks held as runs of pixels or inside their boxes; never as a full frame.

An instance covers a few percent of a 1024 x 2048 frame. Two forms hold only its pixels:
:class:`RunMask` lists its runs, which takes a few numbers for every column that it touches and is
what the scores are computed from; :class:`CroppedMask` has the pixels of its box.

Runs go down the columns, as in COCO: the pixel in column x and row y of a frame has the position
``x * height + y``, and a run may go on at the top of the next column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from cityscapes_maskrcnn.utils.errors import InputError

IntArray = npt.NDArray[np.int64]


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


@dataclass(frozen=True)
class RunMask:
    """A binary mask as runs of set pixels.

    Attributes:
        starts: shape (R,), dtype int64: position of every run's first pixel, ascending.
        ends: shape (R,), dtype int64: position after every run's last pixel. It is less than the
            next start: runs neither overlap nor touch.
        height: of the frame in pixels.
    """

    starts: IntArray
    ends: IntArray
    height: int

    def area(self) -> int:
        """Count the pixels of the mask."""
        return int((self.ends - self.starts).sum())

    @cached_property
    def cropped(self) -> CroppedMask:
        """The same mask as pixels in its tight box."""
        if not len(self.starts):
            return CroppedMask(0, 0, np.zeros((0, 0), dtype=bool))
        x0, x1 = int(self.starts[0] // self.height), int((self.ends[-1] - 1) // self.height) + 1
        edges = np.stack([self.starts, self.ends], axis=1).ravel()
        lengths = np.diff(edges, prepend=x0 * self.height, append=x1 * self.height)
        pixels = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
        inner = crop_mask(pixels.reshape(x1 - x0, self.height).T)
        return CroppedMask(x0 + inner.x0, inner.y0, inner.bitmap)

    @property
    def x0(self) -> int:
        """As in :class:`CroppedMask`."""
        return self.cropped.x0

    @property
    def y0(self) -> int:
        """As in :class:`CroppedMask`."""
        return self.cropped.y0

    @property
    def bitmap(self) -> npt.NDArray[np.bool_]:
        """As in :class:`CroppedMask`."""
        return self.cropped.bitmap


Mask: TypeAlias = CroppedMask | RunMask


def crop_mask(full: npt.NDArray[Any]) -> CroppedMask:
    """Cut a mask down to the smallest box that holds it.

    Args:
        full: shape (height, width) of the frame, any dtype; what is not zero belongs to the mask.

    Returns:
        The mask in its tight box, in memory of its own; an empty mask has a bitmap of shape (0, 0)
        at (0, 0).
    """
    y0, y1 = occupied_span(np.any(full, axis=1))
    x0, x1 = occupied_span(np.any(full[y0:y1], axis=0))
    # Compared inside the box only; a view would keep the whole frame alive.
    return CroppedMask(x0, y0, full[y0:y1, x0:x1] != 0)


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


def tight_box(mask: Mask) -> tuple[float, float, float, float]:
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


def to_runs(mask: Mask, height: int, width: int) -> RunMask:
    """List the runs of a mask.

    Args:
        mask: lies inside the frame.
        height: of the frame in pixels.
        width: of the frame in pixels.

    Raises:
        InputError: it does not lie inside.
    """
    if isinstance(mask, RunMask):
        if mask.height != height or (len(mask.ends) and mask.ends[-1] > height * width):
            raise InputError(f"a mask reaches out of the image's frame of {height} x {width}")
        return mask
    box_height, box_width = mask.bitmap.shape
    if not (0 <= mask.x0 <= width - box_width and 0 <= mask.y0 <= height - box_height):
        raise InputError(f"a mask reaches out of the image's frame of {height} x {width}")
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
    return RunMask(edges[0::2], edges[1::2], height)


def coco_rles(masks: Sequence[Mask], height: int, width: int) -> list[dict[str, Any]]:
    """Encode masks as COCO's compressed run-lengths of the full frame.

    Args:
        masks: inside the frame.
        height: of the frame in pixels.
        width: of the frame in pixels.

    Returns:
        ``{"size": [height, width], "counts": bytes}`` for every mask, equal to what
        ``pycocotools.mask.encode`` gives for the full frame.
    """
    if not masks:
        return []  # which pycocotools cannot encode
    uncompressed = []
    for mask in masks:
        runs = to_runs(mask, height, width)
        # Lengths of the runs of 0, 1, 0, ...; the last of 0 is left out when there is none.
        edges = np.stack([runs.starts, runs.ends], axis=1).ravel()
        lengths = np.diff(edges, prepend=0, append=height * width)
        if len(edges) and lengths[-1] == 0:
            lengths = lengths[:-1]
        uncompressed.append({"size": [height, width], "counts": lengths})
    encoded: list[dict[str, Any]] = coco_mask.frPyObjects(uncompressed, height, width)
    return encoded
