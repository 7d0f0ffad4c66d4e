"""Draw objects and detections by outcome (found, missed, ...), with a legend of the outlines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cityscapes_maskrcnn.data.labels import THING_CLASSES, THING_COLORS
from cityscapes_maskrcnn.visualization.drawing import (
    EDGE_WIDTH,
    RgbImage,
    draw_objects,
    edge_look,
)
from cityscapes_maskrcnn.visualization.outlines import HATCH, DrawnObject, Edge, frame_contours
from cityscapes_maskrcnn.visualization.style import INK, ORANGE, PINK, RED, SKY

_NO_EDGE: Final = Edge("#ffffff")
_IGNORED: Final = Edge("#bbbbbb", (0.8, 1.6))
#: What a detection may be -> its outline; in colours that colour-blind people can tell apart, and
#: with dashes of their own. Found ones have the colour of their class alone.
PREDICTION_EDGES: Final[Mapping[str, Edge]] = {
    "found": _NO_EDGE,
    "duplicate": Edge(SKY, (1.0, 1.0)),
    "wrong class": Edge(PINK, (4.0, 1.2, 1.0, 1.2)),
    "poor mask": Edge(ORANGE, (3.0, 1.2)),
    "background": Edge("#F0E442"),
    "not counted": _IGNORED,
}
#: The same of an object of the ground truth.
GROUND_TRUTH_EDGES: Final[Mapping[str, Edge]] = {
    "found": _NO_EDGE,
    "missed": Edge("#F0E442"),
    "not counted": _IGNORED,
    "group, not counted": Edge(_IGNORED.color, _IGNORED.dashes, is_hatched=True),
}


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
        edges: :data:`PREDICTION_EDGES` or :data:`GROUND_TRUTH_EDGES`.
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
    strip = _legend_strip(picture.shape[1], edges, title, warning)
    return np.concatenate([picture, strip])


def legend_height(width: int) -> int:
    """Pixels of the strip below a picture of :func:`draw_outcomes` that is so wide."""
    return round(4.2 * _letter_height(width))


def _letter_height(width: int) -> float:
    # The outlines of predictions fill the width: larger letters have no room.
    return float(np.clip(width / 72, 16, 28))


def _legend_strip(width: int, edges: Mapping[str, Edge], title: str, warning: str) -> RgbImage:
    """Two lines on white: title and warning; a sample of each outline."""
    letter = _letter_height(width)
    dpi = 100
    points = 72 / dpi
    size = (width / dpi, legend_height(width) / dpi)
    figure = Figure(figsize=size, dpi=dpi, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    margin = letter / 2 / width
    text: dict[str, Any] = {"va": "center", "fontsize": letter * points}
    figure.text(margin, 0.74, title, color=INK, **text)
    figure.text(1 - margin, 0.74, warning, color=RED, ha="right", fontweight="bold", **text)
    line = EDGE_WIDTH * letter / 13 * points
    samples = [
        Patch(
            # Hatching has the colour of the edge, which has to stand out.
            facecolor="#777777" if edge.is_hatched else "#bbbbbb",
            label=name,
            hatch=HATCH if edge.is_hatched else None,
            **({"edgecolor": "#dddddd"} if edge is _NO_EDGE else edge_look(edge, line)),
        )
        for name, edge in edges.items()
    ]
    figure.legend(
        handles=samples,
        loc="center left",
        bbox_to_anchor=(0, 0.27),
        ncols=len(samples),
        frameon=False,
        fontsize=letter * points,
        labelcolor=INK,
        handlelength=2.2,
        handleheight=0.9,
        columnspacing=1.4,
        borderpad=0.2,
    )
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
