"""How far each part of the backbone moved in training, as one picture."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cityscapes_maskrcnn.modeling.drift import WHOLE, GroupDrift, format_percent
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write

_INK = "#222222"
_WEIGHTS, _STATISTICS = "#0072B2", "#E69F00"  # of Okabe and Ito's palette, as the curves


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
    groups = [row for row in drift if row.group != WHOLE]
    figure = Figure(figsize=(9, 3.8), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(
        "How far the backbone moved from its start", x=0.01, ha="left", fontsize=12, color=_INK
    )
    left, right = figure.subplots(1, 2)
    _plot(left, "weights", {row.group: row.parameters for row in groups}, _WEIGHTS)
    _plot(
        right,
        "BatchNorm running statistics",
        {row.group: row.statistics for row in groups},
        _STATISTICS,
    )
    left.set_ylabel("‖end - start‖ / ‖start‖, %", color=_INK, fontsize=9)
    try:
        with atomic_write(output) as file:
            figure.savefig(file, format="png", dpi=120)
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror}") from error


def _plot(axis: Axes, title: str, fractions: Mapping[str, float], color: str) -> None:
    heights = [100 * each if math.isfinite(each) else 0.0 for each in fractions.values()]
    bars = axis.bar(list(fractions), heights, color=color, width=0.62)
    texts = [format_percent(each) for each in fractions.values()]
    axis.bar_label(bars, texts, padding=3, color=_INK, fontsize=9)
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    # Without any movement the axis would reach below zero.
    axis.set_ylim(0, 1.12 * max(heights) or 1.0)
    axis.grid(axis="y", color="#dddddd", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=_INK, labelsize=9)
    axis.tick_params(axis="x", length=0)
