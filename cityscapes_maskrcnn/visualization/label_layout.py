"""Finding room for the labels of a picture: as many as fit, none over another.

Coordinates are pixels of the drawn picture, boxes ``(x0, y0, x1, y1)``, y growing downwards.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

# Sum of the shares that a label may hide of the boxes of others.
_MOST_HIDDEN = 0.9


def place_labels(
    boxes: FloatArray,
    anchors: FloatArray,
    sizes: FloatArray,
    picture_size: tuple[int, int],
) -> list[tuple[float, float] | None]:
    """Choose a place for every label, in the order given.

    Each label may lie over its object (centred at the anchor or along the top), above the box,
    below it or beside it. Places outside the picture or over an earlier label are ruled out; among
    the others the one that hides least of the other objects wins, and ties go to the earlier in
    that list.
    A label without a place left is dropped: it would only make two labels unreadable. So is one
    that would hide as much as a whole object everywhere.

    Args:
        boxes: shape (N, 4), the objects, most important label first.
        anchors: shape (N, 2), a point ``(x, y)`` well inside each object.
        sizes: shape (N, 2), ``(width, height)`` of each label.
        picture_size: ``(height, width)``.

    Returns:
        For each label the ``(x, y)`` of its upper left corner, or None where it was dropped.
    """
    height, width = picture_size
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    taken = np.zeros((0, 4))
    places: list[tuple[float, float] | None] = []
    for index, size in enumerate(sizes):
        labels = _candidates(boxes[index], anchors[index], size)
        inside = (labels >= 0).all(axis=1) & (labels[:, 2:] <= (width, height)).all(axis=1)
        free = labels[inside & ~_overlaps(labels, taken).any(axis=1)]
        if not len(free):
            places.append(None)
            continue
        # What they hide of the objects that are not larger, in shares of these. Rounded, so that
        # slivers do not outweigh the wish for the better place.
        others = (areas <= areas[index]) & (np.arange(len(boxes)) != index)
        shares = _overlaps(free, boxes[others]) / np.maximum(areas[others], 1)
        hidden = shares.sum(axis=1).round(1)
        if hidden.min() > _MOST_HIDDEN:
            places.append(None)
            continue
        best = free[np.argmin(hidden)]
        taken = np.vstack([taken, best])
        places.append((float(best[0]), float(best[1])))
    return places


def _candidates(box: FloatArray, anchor: FloatArray, size: FloatArray) -> FloatArray:
    """Boxes, shape (N, 4), where the label of one object may lie, most wanted first."""
    x0, y0, x1, y1 = box
    width, height = size
    centre, middle = (x0 + x1 - width) / 2, (y0 + y1 - height) / 2
    corners = [(centre, y0 - height), (centre, y1), (x1, middle), (x0 - width, middle)]
    # Over a large object a label hides nothing that matters; a small one it would hide whole.
    if x1 - x0 >= 1.3 * width and y1 - y0 >= 3 * height:
        on_anchor = (anchor[0] - width / 2, anchor[1] - height / 2)
        corners = [on_anchor, (centre, y0), *corners]
    upper_left = np.array(corners, dtype=np.float64)
    return np.hstack([upper_left, upper_left + size])


def _overlaps(first: FloatArray, second: FloatArray) -> FloatArray:
    """Areas, shape (N, M), in which N boxes overlap M others."""
    upper_left = np.maximum(first[:, None, :2], second[None, :, :2])
    lower_right = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.prod(np.clip(lower_right - upper_left, 0, None), axis=2)
