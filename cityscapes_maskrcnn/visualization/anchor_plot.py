"""Boxes with anchors drawn over them, and how well the anchors fit, as one picture."""

from __future__ import annotations

import math
import os

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from cityscapes_maskrcnn.modeling.anchors import DETECTRON2_DEFAULT, Anchors, Floats, best_iou
from cityscapes_maskrcnn.visualization.style import (
    GRID,
    INK,
    MIN_FONT,
    RED,
    About,
    new_figure,
    save_figure,
    style_axes,
)

_BEFORE, _AFTER = "#8a8a8a", RED
_BLUES = ("#eaf2f9", "#9ac4e3", "#2b7bba", "#0b4a86")  # few to many boxes


def plot_anchors(
    boxes: npt.ArrayLike,
    anchors: Anchors,
    output: str | os.PathLike[str],
    about: About | None = None,
) -> None:
    """Draw boxes by width and height, fitted and default anchors, and histograms of the best IoU.

    Args:
        boxes: width and height in pixels at network scale, shape (N, 2).
        anchors: the fitted anchors.
        output: the PNG file; it appears only when it is complete.
        about: where the boxes are from.

    Raises:
        InputError: no boxes, or boxes without area; or ``output`` cannot be written.
    """
    given = np.asarray(boxes, np.float64)
    figure = new_figure(12, 6, "Anchors fitted to the boxes", about)
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.07})
    _plot_shapes(left, given, anchors)
    _plot_ious(right, best_iou(given, DETECTRON2_DEFAULT), best_iou(given, anchors))
    save_figure(figure, output)


def _plot_shapes(axis: Axes, boxes: Floats, anchors: Anchors) -> None:
    shapes, default = anchors.shapes(), DETECTRON2_DEFAULT.shapes()
    # The same range in both directions: squares lie on the diagonal. A few odd boxes do not set it.
    everything = np.concatenate(
        [np.percentile(boxes, [0.1, 99.9]), shapes.ravel(), default.ravel()]
    )
    low, high = everything.min() / 1.25, everything.max() * 1.25
    span = (np.log10(low), np.log10(high))
    inside = ((boxes > low) & (boxes < high)).all(axis=1)
    cells = axis.hexbin(
        *boxes[inside].T,
        xscale="log",
        yscale="log",
        gridsize=(44, 26),
        extent=(*span, *span),
        bins="log",
        mincnt=1,
        cmap=LinearSegmentedColormap.from_list("blues", _BLUES),
        linewidths=0.2,
    )
    bar = axis.figure.colorbar(cells, ax=axis, pad=0.01, aspect=35, format="{x:g}")
    bar.set_ticks(_counts(*cells.get_clim()))
    bar.minorticks_off()
    bar.set_label("boxes in a cell", color=INK, fontsize=MIN_FONT)
    bar.ax.spines["outline"].set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=MIN_FONT)
    axis.plot([low, high], [low, high], color=INK, linewidth=0.7, linestyle=(0, (1, 4)))
    axis.plot(
        *default.T, "x", color=INK, markersize=7, markeredgewidth=1.4, label="Detectron2's default"
    )
    by_size = shapes.reshape(len(anchors.sizes), -1, 2)
    for level, line in zip(anchors.sizes, by_size, strict=True):
        axis.plot(*line.T, color=_AFTER, linewidth=1.2, zorder=3)
        # To the right of the widest anchor of the size.
        axis.annotate(
            f"{level:.3g} px",
            line[0],
            xytext=(7, -4),
            textcoords="offset points",
            color=_AFTER,
            fontsize=MIN_FONT,
            fontweight="bold",
            bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.75, "lw": 0},
            zorder=5,
        )
    axis.plot(
        *shapes.T,
        "o",
        color=_AFTER,
        markersize=8,
        markeredgecolor="white",
        markeredgewidth=1.2,
        label="fitted, with their sizes",
        zorder=4,
    )
    axis.set_xlim(low, high)
    axis.set_ylim(low, high)
    axis.set_aspect("equal")
    ticks = [number for number in 2.0 ** np.arange(0, 16) if low <= number <= high]
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_locator(FixedLocator(ticks))
        one.set_minor_locator(NullLocator())
        one.set_major_formatter("{x:g}")
    axis.set_xlabel("width, pixels of the network's input")
    axis.set_ylabel("height, pixels of the network's input")
    style_axes(axis, f"{len(boxes):,} boxes and the anchors", grid="both")
    axis.legend(
        loc="upper left", frameon=True, framealpha=0.85, edgecolor="none", fontsize=MIN_FONT
    )


def _counts(low: float, high: float) -> list[int]:
    """Numbers of boxes to write at the colour bar: 1, 2, 5, 10 and so on, or the two ends."""
    steps = [step * 10**power for power in range(10) for step in (1, 2, 5)]
    inside = [step for step in steps if low <= step <= high]
    # Where all cells have the same number the bar goes from a little below to a little above it.
    return inside if len(inside) > 1 else sorted({math.ceil(low), math.floor(high)})


def _plot_ious(axis: Axes, before: Floats, after: Floats) -> None:
    edges = np.linspace(0, 1, 21).tolist()  # 0.5 and 0.7, which the tables count from, are edges
    histograms = ((before, _BEFORE, "Detectron2's default"), (after, _AFTER, "fitted"))
    for ious, color, name in histograms:
        weights = np.full(len(ious), 1 / len(ious))
        label = f"{name}: mean {ious.mean():.3f}"
        axis.hist(ious, edges, weights=weights, color=color, alpha=0.25)
        axis.hist(ious, edges, weights=weights, color=color, histtype="step", lw=1.8, label=label)
    # They end below the legend, which has the room above the highest bar.
    highest = axis.get_ylim()[1]
    for ious, color, _ in histograms:
        axis.plot([ious.mean()] * 2, [0, highest], color=color, linewidth=1.4, linestyle="--")
    axis.plot([], [], color=INK, linewidth=1.4, linestyle="--", label="mean of each")
    axis.set_xlim(0, 1)
    axis.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axis.set_xlabel("IoU of a box with the anchor that fits it best")
    axis.set_ylabel("share of the boxes")
    style_axes(axis, "How well they fit", grid="both")
    axis.set_ylim(0, 1.22 * highest)
    axis.legend(loc="upper left", framealpha=1, edgecolor=GRID, fontsize=MIN_FONT)
