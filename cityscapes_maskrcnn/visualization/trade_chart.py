"""AP of a model in several forms, against time, file size and memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from cityscapes_maskrcnn.visualization.style import (
    GREY,
    INK,
    MARKERS,
    MIN_FONT,
    MUTED,
    PALETTE,
    About,
    new_figure,
    save_figure,
    style_axes,
)

# Points nearer to each other than this part of the axes share a label.
_NEAR: Final = (0.08, 0.045)
# Right ends of the key's columns, in parts of its width.
_COLUMNS: Final = (0.755, 0.825, 0.9, 1.0)
# Letters of a name; longer ones are smaller, so that they end before the values.
_LONGEST: Final = 56


class TradePoint(NamedTuple):
    """A form of a model that was measured.

    Attributes:
        name: of the form.
        group: what it is an example of; those of a group share colour and marker.
        ap: official AP in percent.
        milliseconds: an image.
        file_megabytes: of the file.
        memory_megabytes: of the process.
    """

    name: str
    group: str
    ap: float
    milliseconds: float
    file_megabytes: float
    memory_megabytes: float


def plot_trade(
    output: str | os.PathLike[str],
    points: Sequence[TradePoint],
    *,
    missing: Sequence[str] = (),
    about: About | None = None,
) -> None:
    """Draw a panel for each cost, and the key of the points' numbers.

    A dashed line joins the forms that no other one beats in both AP and cost.

    Args:
        output: the PNG file; it appears only when it is complete.
        points: one or more, numbered from 1 in their order.
        missing: names of forms that could not be measured.
        about: what was scored, and on what machine.

    Raises:
        InputError: ``output`` cannot be written.
    """
    title = "Accuracy and cost of the model in several forms"
    figure = new_figure(19, max(5.2, 1.4 + 0.27 * len(points)), title, about)
    panels = figure.subplots(1, 4, width_ratios=[1, 1, 1, 2.25])
    ap = np.array([point.ap for point in points])
    for axis, name, costs in (
        (panels[0], "time per image, ms", [point.milliseconds for point in points]),
        (panels[1], "file size, MB", [point.file_megabytes for point in points]),
        (panels[2], "peak memory, MB", [point.memory_megabytes for point in points]),
    ):
        _draw_panel(axis, points, np.array(costs), ap)
        axis.set_xlabel(name)
        style_axes(axis, grid="both")
    panels[0].set_ylabel("official mask AP, %")
    _draw_key(panels[3], points)
    remark = (
        "Upper left is better. Dashed line: forms for which no other has both a higher AP and a"
        " lower cost. Points that are close together share a label, from left to right."
    )
    if missing:
        remark += f"\nNot measured: {'; '.join(missing)}."
    figure.supxlabel(
        remark,
        x=0.01,
        ha="left",
        fontsize=10.5,
        color=MUTED,
    )
    save_figure(figure, output)


def undominated(costs: npt.NDArray[np.float64], ap: npt.NDArray[np.float64]) -> list[int]:
    """Find the forms that no other one beats, cheapest first.

    Args:
        costs: shape (N,); less is better.
        ap: shape (N,); more is better.

    Returns:
        Their indices; AP rises along them.
    """
    best: list[int] = []
    for index in np.lexsort((-ap, costs)):
        if not best or ap[index] > ap[best[-1]]:
            best.append(int(index))
    return best


def _styles(points: Sequence[TradePoint]) -> dict[str, tuple[str, str]]:
    """Colour and marker by group."""
    groups = dict.fromkeys(point.group for point in points)
    return dict(zip(groups, zip(PALETTE, MARKERS, strict=True), strict=False))


def _draw_panel(
    axis: Axes,
    points: Sequence[TradePoint],
    costs: npt.NDArray[np.float64],
    ap: npt.NDArray[np.float64],
) -> None:
    styles = _styles(points)
    chosen = undominated(costs, ap)
    axis.plot(costs[chosen], ap[chosen], "--", color=GREY, linewidth=1.2, zorder=1)
    for point, cost in zip(points, costs, strict=True):
        color, marker = styles[point.group]
        axis.plot(cost, point.ap, marker, color=color, markersize=8, markeredgecolor="white")
    # From 0: a part of the cost shall look like a part.
    right = 1.12 * costs.max()
    axis.set_xlim(0, right)
    spread = max(float(np.ptp(ap)), 1.0)
    axis.set_ylim(max(0.0, ap.min() - 0.12 * spread), ap.max() + 0.15 * spread)
    low, high = axis.get_ylim()
    for members in _near(np.stack([costs / right, (ap - low) / (high - low)], axis=1)):
        middle = (costs[members].min() + costs[members].max()) / 2
        axis.annotate(
            ", ".join(str(index + 1) for index in sorted(members, key=lambda each: costs[each])),
            (middle, ap[members].max()),
            textcoords="offset points",
            xytext=(0, 6),
            ha="right" if middle > 0.85 * right and len(members) > 2 else "center",
            fontsize=MIN_FONT,
            color=INK,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )


def _near(places: npt.NDArray[np.float64]) -> list[list[int]]:
    """Join points that lie together, directly or through others between them."""
    groups: list[list[int]] = []
    for index, place in enumerate(places):
        joined = [
            group
            for group in groups
            if (np.abs(places[group] - place) < np.array(_NEAR)).all(axis=1).any()
        ]
        groups = [group for group in groups if group not in joined]
        groups.append(sorted([index, *(member for group in joined for member in group)]))
    return groups


def _draw_key(axis: Axes, points: Sequence[TradePoint]) -> None:
    """List numbers, names and values."""
    axis.axis("off")
    axis.set_xlim(0, 1)
    axis.set_ylim(max(len(points), 12) - 0.5, -1.5)
    styles = _styles(points)
    columns = ("AP,\n%", "time,\nms", "file,\nMB", "memory,\nMB")
    for place, heading in zip(_COLUMNS, columns, strict=True):
        axis.text(place, -1, heading, ha="right", va="center", fontsize=MIN_FONT, color=MUTED)
    for index, point in enumerate(points):
        color, marker = styles[point.group]
        axis.plot(0.015, index, marker, color=color, markersize=8, markeredgecolor="white")
        axis.text(
            0.07, index, f"{index + 1}", ha="right", va="center", fontsize=MIN_FONT, color=INK
        )
        size = MIN_FONT * min(1.0, _LONGEST / len(point.name))
        axis.text(0.085, index, point.name, va="center", fontsize=size, color=INK)
        costs = (point.milliseconds, point.file_megabytes, point.memory_megabytes)
        values = (f"{point.ap:.1f}", *(f"{cost:,.{0 if cost >= 100 else 1}f}" for cost in costs))
        for place, value in zip(_COLUMNS, values, strict=True):
            axis.text(place, index, value, ha="right", va="center", fontsize=MIN_FONT, color=INK)
