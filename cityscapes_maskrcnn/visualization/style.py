"""The look of every chart: figures without pyplot's global state, colours, axes and saving."""

from __future__ import annotations

import os
from typing import Final, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cityscapes_maskrcnn.utils.files import atomic_write

INK: Final = "#222222"
GRID: Final = "#dddddd"
# Okabe and Ito's palette, which colour-blind people can tell apart, with two more at its end.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, PURPLE, GREY = "#56B4E9", "#D55E00", "#8C6BB1", "#999999"
PALETTE: Final = (BLUE, ORANGE, GREEN, PINK, SKY, RED, PURPLE, GREY)


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """Create a white figure of ``width`` x ``height`` inches that pyplot does not know of."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    return figure


def style_axes(axis: Axes, title: str = "", grid: Literal["both", "x", "y", ""] = "y") -> None:
    """Give axes their title, a pale grid behind the data, and no frame above and to the right.

    Args:
        axis: the axes; call this after plotting.
        title: bold, at the left.
        grid: direction of the values that grid lines mark; empty for no grid.
    """
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    if grid:
        axis.grid(axis=grid, color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=INK, labelsize=9)
    axis.xaxis.label.set_color(INK)
    axis.yaxis.label.set_color(INK)


def save_figure(figure: Figure, output: str | os.PathLike[str]) -> None:
    """Write a PNG file that appears under its name only when it is complete.

    Raises:
        InputError: it cannot be written.
    """
    with atomic_write(output) as file:
        figure.savefig(file, format="png", dpi=120)
