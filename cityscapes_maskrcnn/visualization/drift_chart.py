"""How far each part of the backbone moved in training, as one picture."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from cityscapes_maskrcnn.modeling.drift import WHOLE, GroupDrift, format_percent
from cityscapes_maskrcnn.visualization.style import (
    BLUE,
    INK,
    MIN_FONT,
    ORANGE,
    About,
    new_figure,
    save_figure,
    style_axes,
)


def plot_drift(
    drift: Sequence[GroupDrift], output: str | os.PathLike[str], about: About | None = None
) -> None:
    """Draw a bar for each group of layers: its weights on the left, its statistics on the right.

    The two have scales of their own: the optimizer moves the weights, the images move the
    statistics, usually much further. A backbone without statistics has the left half alone.

    Args:
        drift: from :func:`.modeling.drift.measure_drift`. An infinite number has no bar.
        output: the PNG file; it appears only when it is complete.
        about: the run.

    Raises:
        InputError: ``output`` cannot be written.
    """
    groups = [row for row in drift if row.group != WHOLE]
    panels = [("Weights", BLUE, [row.parameters for row in groups])]
    statistics = [row.statistics for row in groups]
    if not all(map(math.isnan, statistics)):
        panels.append(("BatchNorm statistics (another scale)", ORANGE, statistics))
    # One panel is a little wider than half of two, for the title.
    width = 9.0 if len(panels) == 2 else 5.0
    figure = new_figure(width, 3.8, "How far training moved the backbone", about)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, color, fractions) in zip(axes, panels, strict=True):
        heights = [100 * each if math.isfinite(each) else 0.0 for each in fractions]
        bars = axis.bar([row.group for row in groups], heights, color=color, width=0.62)
        texts = [format_percent(each) for each in fractions]
        axis.bar_label(bars, texts, padding=3, color=INK, fontsize=MIN_FONT)
        style_axes(axis, title)
        # Without any movement the axis would reach below zero.
        axis.set_ylim(0, 1.12 * max(heights) or 1.0)
        axis.tick_params(axis="x", length=0)
    axes[0].set_ylabel("‖end - start‖ / ‖start‖, %")
    save_figure(figure, output)
