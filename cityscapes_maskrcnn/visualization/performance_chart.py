"""The performance table as one picture for a talk: the table itself, and bar charts."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.transforms import Bbox

from cityscapes_maskrcnn.visualization.style import (
    BLUE,
    GREY,
    INK,
    MIN_FONT,
    MUTED,
    RED,
    About,
    new_figure,
    save_figure,
    style_axes,
)

_PALE = "#e8eef4"

_PUBLISHED = "Published: all 500 images of Cityscapes val or 1,525 of test."
_WARNING = (
    "The protocols give different scores for the same predictions: compare only within a column."
)

# Letters in a line at the bottom that fit the picture's width, also if many of them are wide.
_LINE = 140
# Percent that the axes reach at least: a bar of 0.0 shall not look like a full one.
_LEAST_AXIS = 5.0
# Height of a panel's title, in bars.
_TITLE = 1.5

# Name, AP in percent (None: there is nothing to score), whether it is one of this run's.
Bar = tuple[str, float | None, bool]


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
    about: About | None = None,
) -> None:
    """Draw the table of a run and, a column each, its scores by protocol and by size.

    Others' scores have panels of their own below this run's, on the same scale.

    Args:
        output: the PNG file; it appears only when it is complete.
        headings: of the table's columns.
        cells: the table, row by row, as text.
        official: bars of the official protocol, top to bottom.
        coco_style: bars of the COCO-style protocol.
        by_size: bars of the COCO-style protocol for small, medium and large objects.
        caution: a line above the table that nobody may overlook; empty for none.
        remark: one or more lines at the bottom; longer ones are wrapped, and the picture is higher
            by what they take. Empty for none.
        about: the run.

    Raises:
        InputError: ``output`` cannot be written.
    """
    columns = [
        ("Official protocol: mask AP, %", official),
        ("COCO-style protocol: mask AP, %", coco_style),
        ("COCO-style protocol: mask AP by size, %", by_size),
    ]
    table_height = 0.42 * (len(cells) + 1) + 0.3 + (0.3 if caution else 0)
    rows = max(4.0, *(_rows(bars) for _, bars in columns))
    remarks = [part for line in remark.splitlines() for part in textwrap.wrap(line, _LINE)]
    has_others = any(not ours for _, bars in columns for *_, ours in bars)
    remarks = [f"{_WARNING} {_PUBLISHED}" if has_others else _WARNING, *remarks]
    chart_height = 0.34 * rows + 0.6
    height = table_height + chart_height + 1.1 + 0.17 * (len(remarks) - 1)
    figure = new_figure(16, height, "Performance by stage", about)
    top, bottom = figure.subfigures(2, 1, height_ratios=[table_height, chart_height])
    if caution:
        top.suptitle(caution, x=0.01, ha="left", fontsize=13, fontweight="bold", color=RED)
    _draw_table(top.subplots(), headings, cells)
    for part, (title, bars) in zip(bottom.subfigures(1, 3), columns, strict=True):
        _draw_column(part, title, bars, rows, with_titles=has_others)
    figure.supxlabel("\n".join(remarks), x=0.01, ha="left", fontsize=10.5, color=MUTED)
    save_figure(figure, output)


def _by_origin(bars: Sequence[Bar]) -> dict[str, list[Bar]]:
    """Separate this run's bars, which come first even if there are none, from others'."""
    parts = {"This run": [bar for bar in bars if bar[2]]}
    if others := [bar for bar in bars if not bar[2]]:
        parts["Others, for reference"] = others
    return parts


def _rows(bars: Sequence[Bar]) -> float:
    """Height of a column in bars, with a title for every panel."""
    return sum(max(1, len(part)) + _TITLE for part in _by_origin(bars).values())


def _draw_column(
    figure: SubFigure, title: str, bars: Sequence[Bar], rows: float, *, with_titles: bool
) -> None:
    """Draw a panel for this run and one for others, on one scale.

    A bar is as high in every column: what is left of ``rows`` stays empty at the bottom.
    """
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold", color=INK)
    parts = _by_origin(bars)
    lengths = [float(max(1, len(part))) for part in parts.values()]
    lengths[-1] += rows - _rows(bars)
    axes = figure.subplots(
        len(parts), 1, squeeze=False, height_ratios=[length + _TITLE for length in lengths]
    )[:, 0]
    highest = max([_LEAST_AXIS, *(score for _, score, _ in bars if score is not None)])
    for axis, length, (name, part) in zip(axes, lengths, parts.items(), strict=True):
        _draw_bars(axis, name if with_titles else "", part)
        axis.set_xlim(0, 1.15 * highest)
        axis.set_ylim(length - 0.4, -0.6)


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
    table.set_fontsize(MIN_FONT)
    for (row, _), cell in table.get_celld().items():
        cell.set_edgecolor("#cccccc")
        cell.set_text_props(color=INK, weight="bold" if row == 0 else "normal")
        cell.set_facecolor(_PALE if row == 0 else "white")
        cell.set_height(cell.get_height() * (1.6 if row == 0 else 1))


def _draw_bars(axis: Axes, title: str, bars: Sequence[Bar]) -> None:
    style_axes(axis, title, grid="")
    drawn = axis.barh(
        range(len(bars)),
        [score or 0.0 for _, score, _ in bars],
        color=[BLUE if ours else GREY for *_, ours in bars],
        height=0.7,
    )
    texts = ["no such objects" if score is None else f"{score:.1f}" for _, score, _ in bars]
    axis.bar_label(drawn, texts, padding=4, fontsize=MIN_FONT, color=INK)
    if not bars:
        axis.text(0, 0, "no scores", va="center", fontsize=10.5, color=MUTED)
    axis.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axis.spines[["bottom", "left"]].set_visible(False)
    axis.tick_params(axis="x", bottom=False, labelbottom=False)
    axis.tick_params(axis="y", length=0, labelsize=10.5)
