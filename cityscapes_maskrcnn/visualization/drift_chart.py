"""How far each part of the backbone moved in training, as one picture."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from cityscapes_maskrcnn.modeling.drift import WHOLE, GroupDrift, format_percent
from cityscapes_maskrcnn.visualization.style import (
    BLUE,
    INK,
    ORANGE,
    new_figure,
    save_figure,
    style_axes,
)


def plot_drift(drift: Sequence[GroupDrift], output: str | os.PathLike[str]) -> None:
    """Draw a bar for each group of layers: its weights on the left, its statistics on the right.

    The two have scales of their own: the optimizer moves the weights, the images move the
    statistics, usually much further.

    Args:
        drift: from :func:`.modeling.drift.measure_drift`. An infinite number has no bar.
        output: the PNG file; it appears only when it is complete.

    Raises:
        InputError: ``output`` cannot be written.
    """
    figure = new_figure(9, 3.8, "How far the backbone moved from its start")
    left, right = figure.subplots(1, 2)
    groups = [row for row in drift if row.group != WHOLE]
    for axis, title, color, fractions in (
        (left, "weights", BLUE, [row.parameters for row in groups]),
        (right, "BatchNorm running statistics", ORANGE, [row.statistics for row in groups]),
    ):
        heights = [100 * each if math.isfinite(each) else 0.0 for each in fractions]
        bars = axis.bar([row.group for row in groups], heights, color=color, width=0.62)
        texts = [format_percent(each) for each in fractions]
        axis.bar_label(bars, texts, padding=3, color=INK, fontsize=9)
        style_axes(axis, title)
        # Without any movement the axis would reach below zero.
        axis.set_ylim(0, 1.12 * max(heights) or 1.0)
        axis.tick_params(axis="x", length=0)
    left.set_ylabel("‖end - start‖ / ‖start‖, %", fontsize=9)
    save_figure(figure, output)
