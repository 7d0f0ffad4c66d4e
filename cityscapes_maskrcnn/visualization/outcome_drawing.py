"""Draw objects and detections by outcome (found, missed, ...), with a legend of the outlines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cityscapes_maskrcnn.data.labels import THING_CLASSES, THING_COLORS
from cityscapes_maskrcnn.visualization.drawing import RgbImage, draw_objects
from cityscapes_maskrcnn.visualization.outcome_legend import legend_strip
from cityscapes_maskrcnn.visualization.outlines import DrawnObject, Edge, frame_contours


def outcome_object(
    mask: Any,
    category: int,
    outcome: str,
    edges: Mapping[str, Edge],
    score: float | None = None,
    is_group: bool = False,
) -> DrawnObject:
    """Prepare an instance for :func:`draw_outcomes`.

    Args:
        mask: a :class:`.masks.RunMask`, not empty.
        category: contiguous class id, 0 to 7.
        outcome: a key of ``edges``.
        edges: :data:`.PREDICTION_EDGES` or :data:`.GROUND_TRUTH_EDGES`.
        score: of a detection, 0 to 1.
        is_group: of the ground truth: several objects annotated as one.
    """
    words = [THING_CLASSES[category]]
    if score is not None:
        words.append(f"{score:.0%}")
    if is_group:
        words.append("group")
    elif outcome not in ("found", "not counted"):
        words.append(outcome)
    return DrawnObject(
        category=category,
        contours=frame_contours(mask),
        label=" ".join(words),
        is_group=is_group,
        edge=None if outcome == "found" else edges[outcome],
    )


def draw_outcomes(
    image_rgb: RgbImage,
    objects: Iterable[DrawnObject],
    edges: Mapping[str, Edge],
    title: str,
    warning: str = "",
) -> RgbImage:
    """Draw instances over their image, and below it what the outlines mean.

    Args:
        image_rgb: shape (H, W, 3), uint8.
        objects: of :func:`outcome_object`.
        edges: the outlines to explain.
        title: the first line below the image.
        warning: at its end, in red.

    Returns:
        The picture, shape (H' + strip, W', 3), uint8, RGB: (H', W') as
        :func:`.drawing.draw_ground_truth`, the strip always as high for the same W'.
    """
    picture = draw_objects(image_rgb, list(objects), THING_COLORS)
    strip = legend_strip(picture.shape[1], edges, title, warning)
    return np.concatenate([picture, strip])
