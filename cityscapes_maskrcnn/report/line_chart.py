"""Line charts as the coordinates of an SVG drawing, whose colours are the page's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator


class _Frame(NamedTuple):
    """Size of a drawing, and where in it the axes end, in its own units: pixels if it is narrow."""

    width: int = 400
    height: int = 220
    left: int = 54
    right: int = 392
    top: int = 10
    bottom: int = 180


#: Of every chart; the template draws the axes.
FRAME: Final = _Frame()
_MAX_POINTS: Final = 150
_MAX_MARKED: Final = 30


@dataclass(frozen=True)
class DrawnLine:
    """A line of a chart.

    Attributes:
        label: for the legend.
        kind: style: ``first``, ``second`` or ``dots``, which are not connected.
        path: the ``d`` of an SVG path.
        marks: centres of dots, few enough to be told apart.
    """

    label: str
    kind: str
    path: str
    marks: list[tuple[float, float]]


@dataclass(frozen=True)
class LineChart:
    """A chart to draw.

    Attributes:
        title: what the lines show, with its unit.
        x_label: what the horizontal axis counts.
        lines: from back to front.
        x_ticks: places and texts.
        y_ticks: places and texts.
        note: what the drawing leaves out; empty for nothing.
        summary: in words, for people who do not see the drawing.
    """

    title: str
    x_label: str
    lines: list[DrawnLine]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    note: str
    summary: str


def line_chart(
    title: str,
    curves: Mapping[str, Mapping[int, float]],
    *,
    kinds: Sequence[str] = (),
    x_label: str = "iteration",
    clip: bool = False,
) -> LineChart | None:
    """Lay out a chart whose vertical axis begins at 0.

    Args:
        title: what the lines show, with its unit.
        curves: by label, values by place; of a long one, means of neighbours are drawn.
        kinds: style of each curve; empty: the first is ``first``, the second ``second``.
        x_label: what the places are.
        clip: cut off what is far above all other values, as losses that explode.

    Returns:
        None if there is no finite value.

    Raises:
        ValueError: there are not as many kinds as curves.
    """
    finite = {
        label: {x: y for x, y in curve.items() if math.isfinite(y)}
        for label, curve in curves.items()
    }
    shown = {
        label: (kind, _thinned(curve))
        for (label, curve), kind in zip(
            finite.items(), kinds or ("first", "second")[: len(finite)], strict=True
        )
        if curve
    }
    if not shown:
        return None
    values = np.array([y for _, points in shown.values() for _, y in points])
    places = np.array([x for _, points in shown.values() for x, _ in points])
    top = float(values.max())
    if clip:
        # A few exploding losses must not flatten all others.
        top = min(top, 4 * float(np.percentile(values, 90)))
    top = top if top > 0 else max(float(values.max()), 1e-9)
    note = f"values up to {values.max():.3g} are cut off" if values.max() > top else ""
    low = min(0.0, float(values.min()))
    y_ticks = [tick for tick in MaxNLocator(4).tick_values(low, 1.05 * top) if tick >= low]
    high = max(y_ticks[-1], top)
    first, last = min(0.0, float(places.min())), float(places.max())
    x_ticks = [
        tick
        for tick in MaxNLocator(4, integer=True).tick_values(first, last)
        if first <= tick <= last
    ]

    def at(x: float, y: float) -> tuple[float, float]:
        share = (x - first) / (last - first) if last > first else 0.5
        height = (min(y, high) - low) / (high - low)
        return (
            round(FRAME.left + share * (FRAME.right - FRAME.left), 1),
            round(FRAME.bottom - height * (FRAME.bottom - FRAME.top), 1),
        )

    lines = []
    for label, (kind, points) in shown.items():
        ends = [at(x, y) for x, y in points]
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in ends) if kind != "dots" else ""
        marks = ends if len(ends) <= _MAX_MARKED or kind == "dots" else []
        lines.append(DrawnLine(label, kind, path, marks))
    ends_in = [
        f"{label}: {points[0][1]:.3g} at {x_label} {points[0][0]:g}, "
        f"{points[-1][1]:.3g} at {points[-1][0]:g}"
        for label, (_, points) in shown.items()
    ]
    return LineChart(
        title=title,
        x_label=x_label,
        lines=lines,
        x_ticks=[(at(tick, 0)[0], f"{tick:,.0f}") for tick in x_ticks],
        y_ticks=[(at(first, tick)[1], f"{tick:g}") for tick in np.round(y_ticks, 10)],
        note=note,
        summary="; ".join(ends_in),
    )


def _thinned(curve: Mapping[int, float]) -> list[tuple[float, float]]:
    """Average neighbours until no more than ``_MAX_POINTS`` are left."""
    points = np.array(sorted(curve.items()), dtype=float)
    if len(points) > _MAX_POINTS:
        parts = np.array_split(points, _MAX_POINTS)
        points = np.array([part.mean(axis=0) for part in parts])
    return [(float(x), float(y)) for x, y in points]
