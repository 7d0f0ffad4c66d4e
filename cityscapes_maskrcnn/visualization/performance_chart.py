"""The performance table as one picture for a talk: the table itself, and two bar charts."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from cityscapes_maskrcnn.visualization.style import (
    BLUE,
    GREY,
    INK,
    RED,
    new_figure,
    save_figure,
    style_axes,
)

_PALE = "#e8eef4"

_WARNING = (
    "The protocols give the same predictions different numbers: compare within a chart only. "
    "Published: all 500 images of Cityscapes val or 1,525 of test."
)

# Letters in a line at the bottom that fit the picture's width, also if many of them are wide.
_LINE = 140
# Percent that the axes reach at least: a bar of 0.0 shall not look like a full one.
_LEAST_AXIS = 5.0

# Name, AP in percent, whether it is one of this run's.
Bar = tuple[str, float, bool]


def plot_performance(
    output: str | os.PathLike[str],
    *,
    headings: Sequence[str],
    cells: Sequence[Sequence[str]],
    official: Sequence[Bar],
    coco_style: Sequence[Bar],
    by_size: Sequence[Bar],
    caution: str,
    remark: str,
) -> None:
    """Draw the table of a run and its place among others, each protocol in a chart of its own.

    Args:
        output: the PNG file; it appears only when it is complete.
        headings: of the table's columns.
        cells: the table, row by row, as text.
        official: bars of the official protocol, top to bottom.
        coco_style: bars of the COCO-style protocol.
        by_size: bars of the COCO-style protocol for small, medium and large objects.
        caution: a line below the title that nobody may overlook; empty for none.
        remark: one or more lines at the bottom; longer ones are wrapped, and the picture is higher
            by what they take. Empty for none.

    Raises:
        InputError: ``output`` cannot be written.
    """
    table_height = 0.42 * (len(cells) + 1) + 0.3 + (0.3 if caution else 0)
    rows = max(len(official), len(coco_style) + len(by_size) + 2, 4)
    remarks = [part for line in remark.splitlines() for part in textwrap.wrap(line, _LINE)]
    height = table_height + 0.3 * rows + 1.7 + 0.17 * max(0, len(remarks) - 1)
    figure = new_figure(14.5, height, "Performance by stage")
    top, bottom = figure.subfigures(2, 1, height_ratios=[table_height, 0.3 * rows + 1.0])
    if caution:
        top.suptitle(caution, x=0.01, ha="left", fontsize=13, fontweight="bold", color=RED)
    _draw_table(top.subplots(), headings, cells)
    left, right = bottom.subfigures(1, 2, width_ratios=[1.1, 1])
    _draw_bars(left.subplots(), "Official protocol: mask AP, %", official)
    first, second = right.subplots(
        2, 1, height_ratios=[max(1, len(coco_style)), max(1, len(by_size))]
    )
    _draw_bars(first, "COCO-style protocol: mask AP, %", coco_style)
    _draw_bars(second, "COCO-style: mask AP by size, %", by_size)
    figure.supxlabel(
        "\n".join([_WARNING, *remarks]), x=0.01, ha="left", fontsize=10, color="#555555"
    )
    save_figure(figure, output)


def _draw_table(axis: Axes, headings: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    axis.axis("off")
    if not cells:
        return
    # A long text takes two lines; a column is as wide as its longest line asks for.
    titles = [heading.replace(" ", "\n", 1) for heading in headings]
    texts = [[text.replace(" (", "\n(") for text in row] for row in cells]
    widths = [
        max(
            *(1.25 * len(line) for line in title.split("\n")),
            *(1.1 * len(line) for text in column for line in text.split("\n")),
        )
        + 2
        for title, column in zip(titles, zip(*texts, strict=True), strict=True)
    ]
    table = axis.table(
        texts,
        colLabels=titles,
        colWidths=[width / sum(widths) for width in widths],
        cellLoc="center",
        bbox=Bbox.unit(),
    )
    table.auto_set_font_size(False)
    table.set_fontsize(10)
    for (row, _), cell in table.get_celld().items():
        cell.set_edgecolor("#cccccc")
        cell.set_text_props(color=INK, weight="bold" if row == 0 else "normal")
        cell.set_facecolor(_PALE if row == 0 else "white")
        cell.set_height(cell.get_height() * (1.6 if row == 0 else 1))


def _draw_bars(axis: Axes, title: str, bars: Sequence[Bar]) -> None:
    style_axes(axis, title, grid="")
    names = [name for name, _, _ in bars]
    scores = [score for _, score, _ in bars]
    drawn = axis.barh(
        range(len(bars)),
        scores,
        color=[BLUE if ours else GREY for *_, ours in bars],
        height=0.7,
    )
    axis.bar_label(drawn, [f"{score:.1f}" for score in scores], padding=4, fontsize=9.5, color=INK)
    axis.set_yticks(range(len(bars)), names)
    axis.set_ylim(max(len(bars), 1) - 0.4, -0.6)
    axis.set_xlim(0, 1.12 * max([_LEAST_AXIS, *scores]))
    axis.spines[["bottom", "left"]].set_visible(False)
    axis.tick_params(axis="x", bottom=False, labelbottom=False)
    axis.tick_params(axis="y", length=0, labelsize=10)
    for label, (*_, ours) in zip(axis.get_yticklabels(), bars, strict=True):
        label.set_fontweight("bold" if ours else "normal")
