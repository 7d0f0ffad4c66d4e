"""The look of every chart: figures without pyplot's global state, colours, axes and saving."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from cityscapes_maskrcnn.utils.files import atomic_write

INK: Final = "#222222"
MUTED: Final = "#555555"
GRID: Final = "#dddddd"
# Of what there is nothing to measure.
EMPTY: Final = "#ececec"
# Okabe and Ito's palette, which colour-blind people can tell apart, with two more at its end.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, PURPLE, GREY = "#56B4E9", "#D55E00", "#8C6BB1", "#999999"
PALETTE: Final = (BLUE, ORANGE, GREEN, PINK, SKY, RED, PURPLE, GREY)
#: Markers of as many lines, for those who see no colours.
MARKERS: Final = "osD^vP*X"
#: What every picture of a generated scene says.
GENERATED_SCENE: Final = "GENERATED SCENE"
#: Points: the smallest letters that can be read where a picture is shown at half its size.
MIN_FONT: Final = 10
#: Behind notes that lines would cross.
PAPER: Final[dict[str, Any]] = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
_TITLE_SIZE: Final = 14
_ABOUT_SIZE: Final = MIN_FONT


@dataclass(frozen=True, kw_only=True)
class About:
    """What a picture shows, for the line below its title; what is unknown is empty.

    Attributes:
        dataset: name of the dataset, or of several.
        num_images: number of images that the numbers come from.
        generated: whether these are generated scenes.
        model: architecture, and the run or file with its weights.
        protocol: how the numbers were measured.
    """

    dataset: str = ""
    num_images: int | None = None
    generated: bool = False
    model: str = ""
    protocol: str = ""

    def __str__(self) -> str:
        parts = (
            "GENERATED SCENES, not Cityscapes" * self.generated,
            self.dataset,
            "" if self.num_images is None else _images(self.num_images),
            self.model,
            self.protocol,
        )
        return " · ".join(filter(None, parts))


def name_images(datasets: Iterable[tuple[str, int | None]]) -> tuple[str, int | None]:
    """Name datasets for a picture of all of them, each once, with their numbers of images.

    Args:
        datasets: names and numbers of images; None: not known. Those without a name are left out.

    Returns:
        The ``dataset`` and ``num_images`` of an :class:`About`. Of several datasets the name holds
        the numbers, as their sum would say nothing.
    """
    named = [each for each in dict.fromkeys(datasets) if each[0]]
    counted = {name for name, number in named if number is not None}
    named = [each for each in named if each[1] is not None or each[0] not in counted]
    if len(named) == 1:
        return named[0]
    texts = (name if n is None else f"{name}: {_images(n)}" for name, n in named)
    return "; ".join(texts), None


def _images(number: int) -> str:
    return f"{number:,} image{'s' * (number != 1)}"


def new_figure(width: float, height: float, title: str = "", about: About | None = None) -> Figure:
    """Create a white figure that pyplot does not know of.

    Args:
        width: inches.
        height: inches; the lines of ``about`` come on top.
        title: bold, at the upper left.
        about: below the title, in red if its data are generated. Needs a title.
    """
    figure = Figure(layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    # Letters of its size are about 0.078 inches wide.
    letters = int((width - 0.2) / 0.078)
    lines = textwrap.wrap(str(about), letters, break_on_hyphens=False) if about else []
    figure.set_size_inches(width, height + 0.18 * len(lines))
    if title:
        # Empty lines of the title, which the layout makes room for, hold the place of the others.
        figure.suptitle(
            title + "\n " * len(lines),
            x=0.01,
            ha="left",
            fontsize=_TITLE_SIZE,
            fontweight="bold",
            color=INK,
        )
    below_title = ScaledTranslation(0, -(1.55 * _TITLE_SIZE + 3) / 72, figure.dpi_scale_trans)
    if lines:
        figure.text(
            0.01,
            1,
            "\n".join(lines),
            transform=figure.transFigure + below_title,
            va="top",
            fontsize=_ABOUT_SIZE,
            linespacing=1.3,
            color=RED if about and about.generated else MUTED,
            in_layout=False,
        )
    return figure


def style_axes(axis: Axes, title: str = "", grid: Literal["both", "x", "y", ""] = "y") -> None:
    """Give axes their title, a pale grid behind the data, and no frame above and to the right.

    Args:
        axis: the axes; call this after plotting.
        title: bold, at the left.
        grid: direction of the values that grid lines mark; empty for no grid.
    """
    axis.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK)
    if grid:
        axis.grid(axis=grid, color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=INK, labelsize=MIN_FONT)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set_color(INK)
        label.set_fontsize(10.5)


def class_color(rgb: Sequence[int]) -> str:
    """Write a class colour, RGB from 0 to 255, as matplotlib takes it: ``#dc143c``."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def save_figure(figure: Figure, output: str | os.PathLike[str]) -> None:
    """Write a PNG file that appears under its name only when it is complete.

    Raises:
        InputError: it cannot be written.
    """
    with atomic_write(output) as file:
        figure.savefig(file, format="png", dpi=120)
