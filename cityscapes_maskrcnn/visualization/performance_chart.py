"""The performance table as one picture for a talk: the table itself, and two bar charts."""

from __future__ import annotations

import os
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write

_INK = "#222222"
_OURS, _OTHERS, _PALE = "#0072B2", "#999999", "#e8eef4"

_WARNING = "The protocols give the same predictions different numbers: compare within a chart only."

# Name, AP in percent, whether it is one of this run's.
Bar = tuple[str, float, bool]


def plot_performance(
    headings: Sequence[str],
    cells: Sequence[Sequence[str]],
    official: Sequence[Bar],
    coco_style: Sequence[Bar],
    remark: str,
    output: str | os.PathLike[str],
) -> None:
    """Draw the table of a run and its place among others, each protocol in a chart of its own.

    Args:
        headings: of the table's columns.
        cells: the table, row by row, as text.
        official: bars of the official protocol, top to bottom.
        coco_style: bars of the COCO-style protocol.
        remark: a line at the bottom; empty for none.
        output: the PNG file; it appears only when it is complete.

    Raises:
        InputError: ``output`` cannot be written.
    """
    table_height = 0.34 * (len(cells) + 1) + 0.5
    chart_height = max(2.2, 0.3 * max(len(official), len(coco_style)) + 0.8)
    size = (14.0, table_height + chart_height + 0.9)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle("Performance by stage", x=0.01, ha="left", fontsize=15, color=_INK)
    top, bottom = figure.subfigures(2, 1, height_ratios=[table_height, chart_height])
    _draw_table(top.subplots(), headings, cells)
    left, right = bottom.subplots(1, 2, width_ratios=[1.25, 1])
    rows = max(len(official), len(coco_style))
    _draw_bars(left, "Official protocol: mask AP, %", official, rows)
    _draw_bars(right, "COCO-style protocol: mask AP, %", coco_style, rows)
    figure.text(0.99, 0.02, _WARNING, ha="right", fontsize=10, color="#666666")
    if remark:
        figure.supxlabel(remark, x=0.01, ha="left", fontsize=9, color="#b00000")
    try:
        with atomic_write(output) as file:
            figure.savefig(file, format="png", dpi=140)
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror}") from error


def _draw_table(axis: Axes, headings: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    axis.axis("off")
    if not cells:
        return
    # A long heading takes two lines; a column is as wide as its longest word asks for.
    titles = [heading.replace(" ", "\n", 1) for heading in headings]
    widths = [
        max([1.25 * len(line) for line in title.split("\n")] + [len(text) for text in column]) + 2
        for title, column in zip(titles, zip(*cells, strict=True), strict=True)
    ]
    table = axis.table(
        [list(row) for row in cells],
        colLabels=titles,
        colWidths=[width / sum(widths) for width in widths],
        cellLoc="center",
        bbox=Bbox.unit(),
    )
    table.auto_set_font_size(False)
    table.set_fontsize(10)
    for (row, _), cell in table.get_celld().items():
        cell.set_edgecolor("#cccccc")
        cell.set_text_props(color=_INK, weight="bold" if row == 0 else "normal")
        cell.set_facecolor(_PALE if row == 0 else "white")
        cell.set_height(cell.get_height() * (1.6 if row == 0 else 1))


def _draw_bars(axis: Axes, title: str, bars: Sequence[Bar], rows: int) -> None:
    """Draw bars from the top down, in a chart with room for ``rows`` of them."""
    axis.set_title(title, loc="left", fontsize=12, fontweight="bold", color=_INK)
    names = [name for name, _, _ in bars]
    scores = [score for _, score, _ in bars]
    drawn = axis.barh(
        range(len(bars)),
        scores,
        color=[_OURS if ours else _OTHERS for *_, ours in bars],
        height=0.7,
    )
    axis.bar_label(drawn, [f"{score:.1f}" for score in scores], padding=4, fontsize=9.5, color=_INK)
    axis.set_yticks(range(len(bars)), names)
    axis.set_ylim(max(rows, 1) - 0.4, -0.6)
    axis.set_xlim(0, 1.12 * max(scores, default=1.0) or 1.0)
    axis.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axis.tick_params(axis="x", bottom=False, labelbottom=False)
    axis.tick_params(axis="y", length=0, labelsize=10, colors=_INK)
    for label, (*_, ours) in zip(axis.get_yticklabels(), bars, strict=True):
        label.set_fontweight("bold" if ours else "normal")
