"""What the outlines of objects and detections mean: their look, and a legend below a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from cityscapes_maskrcnn.visualization.outlines import HATCH, Edge
from cityscapes_maskrcnn.visualization.style import INK, ORANGE, PINK, RED, SKY

#: Width of an outline that means something, in widths of one that does not.
EDGE_WIDTH: Final = 2.6
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


def edge_look(edge: Edge, width: float) -> dict[str, Any]:
    """Describe an outline for matplotlib's patches: with a dark rim, to stand out anywhere.

    Args:
        edge: the outline.
        width: of its line, in points.
    """
    rim = withStroke(linewidth=1.7 * width, foreground="black")
    return {
        "edgecolor": edge.color,
        "linewidth": width,
        "linestyle": (0, edge.dashes) if edge.dashes else "-",
        "capstyle": "butt",
        "path_effects": [rim],
    }


def legend_height(width: int) -> int:
    """Pixels of the strip below a picture of :func:`.draw_outcomes` that is so wide."""
    return round(4.2 * _letter_height(width))


def _letter_height(width: int) -> float:
    # The outlines of predictions fill the width: larger letters have no room.
    return float(np.clip(width / 72, 16, 28))


def legend_strip(
    width: int, edges: Mapping[str, Edge], title: str, warning: str
) -> npt.NDArray[np.uint8]:
    """Draw two lines on white: a title and a warning; a sample of each outline.

    Args:
        width: pixels.
        edges: what is explained.
        title: at the left of the first line.
        warning: at its end, in red.

    Returns:
        Shape (``legend_height(width)``, ``width``, 3), uint8, RGB.
    """
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
