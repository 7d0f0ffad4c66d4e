"""Pictures of a model's errors, beside the tables that an evaluation writes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cityscapes_maskrcnn.data.labels import THING_CLASSES, THING_COLORS
from cityscapes_maskrcnn.utils.error_summary import CAUSES, ErrorSummary, PrecisionRecall
from cityscapes_maskrcnn.utils.object_limits import (
    OCCLUSION_LIMITS,
    OCCLUSION_NAMES,
    OCCLUSION_RANGES,
    SIZE_LIMITS,
    SIZE_RANGES,
)
from cityscapes_maskrcnn.utils.text import counted
from cityscapes_maskrcnn.visualization.style import (
    EMPTY,
    INK,
    MIN_FONT,
    MUTED,
    ORANGE,
    PINK,
    SKY,
    About,
    class_color,
    new_figure,
    save_figure,
    style_axes,
)

# Fill and text.
_CAUSE_COLORS = ((SKY, INK), (PINK, INK), (ORANGE, INK), ("#666666", "white"))
# Of a cell of a heat map, whose neighbours are 1 apart, and between the classes and the rest.
_CELL, _GAP = 0.97, 0.12
# Of recall and precision.
_TICKS = (0, 0.2, 0.4, 0.6, 0.8, 1)
_RANGES = {**SIZE_RANGES, **OCCLUSION_RANGES}

Counts = npt.NDArray[np.int64]


def plot_errors(
    folder: str | os.PathLike[str],
    summary: ErrorSummary,
    ap: npt.NDArray[np.float64],
    categories: Sequence[int],
    about: About | None = None,
) -> list[Path]:
    """Draw a model's errors.

    Args:
        folder: of the pictures; created when missing.
        summary: the errors of all images.
        ap: shape (8, 10), of the same images: by class and IoU threshold, of which the first is
            0.5; NaN for a class without objects.
        categories: the classes to draw, at least one: contiguous class ids, 0 to 7.
        about: what was evaluated.

    Returns:
        ``precision_recall.png``, ``confusion.png``, ``false_positives.png``, ``misses.png``.

    Raises:
        InputError: a picture cannot be written.
    """
    folder, chosen = Path(folder), list(categories)
    figures = {
        "precision_recall": _precision_recall(summary, ap, chosen, about),
        "confusion": _confusion(summary, chosen, about),
        "false_positives": _false_positives(summary, chosen, about),
        "misses": _misses(summary, chosen, about),
    }
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]


def _precision_recall(
    summary: ErrorSummary, ap: npt.NDArray[np.float64], chosen: list[int], about: About | None
) -> Figure:
    """A panel a class: its curve, and a dot where the other pictures' threshold lies on it."""
    columns = min(4, len(chosen))
    lines = -(-len(chosen) // columns)
    width = max(6.5, 3.1 * columns)
    figure = new_figure(width, 1.1 + 2.4 * lines, "Precision and recall at IoU 0.5", about)
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, category in zip(axes, chosen, strict=False):
        curve = summary.curves[category]
        if curve is None:
            axis.text(0.5, 0.5, "no objects", ha="center", va="center", fontsize=11, color=MUTED)
        else:
            objects = int(summary.by_size[category, :, 0].sum())
            text = f"AP50 {100 * ap[category, 0]:.1f}, n = {objects:,}"
            axis.set_title(text, loc="right", fontsize=10.5, color=INK)
            color = class_color(THING_COLORS[category])
            _plot_curve(axis, curve, objects, summary.score_thresh, color)
        # A little more than 0 to 1: lines along the borders are seen whole. To choose ticks for
        # eight panels anew in every pass of the layout takes longer than all else.
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04), xticks=_TICKS, yticks=_TICKS)
        style_axes(axis, THING_CLASSES[category], grid="both")
    for axis in axes[len(chosen) :]:
        axis.axis("off")
    figure.supxlabel(
        f"recall (dot: detections with a score of at least {summary.score_thresh:g}; area: AP50;"
        " n: objects)",
        fontsize=10.5,
        color=INK,
    )
    figure.supylabel("precision", fontsize=10.5, color=INK)
    return figure


def _plot_curve(
    axis: Axes, curve: PrecisionRecall, objects: int, threshold: float, color: str
) -> None:
    recall, precision = curve.recall, curve.precision
    if not recall.any():
        text = f"none of {counted(objects, 'object')}\nfound at any score"
        axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=11, color=MUTED)
        return
    # The first point from there upwards; the last one is at infinity: no predictions.
    at = int(np.searchsorted(curve.confidences, threshold))
    dot = (recall[at], precision[at]) if at < len(recall) - 1 else None
    # Of the points at recall 0 only the last one has an area beside it; the first one, which the
    # official code adds, has precision 1 even if the best detections are false.
    end = np.flatnonzero(recall)[-1] + 2
    recall, precision = recall[:end], precision[:end]
    # Between two points the official area takes the one for the first half of the way, the other
    # for the second. A straight line would be no data.
    order = slice(None, None, -1)
    axis.plot(recall[order], precision[order], drawstyle="steps-mid", color=color, linewidth=2)
    axis.fill_between(
        recall[order], precision[order], step="mid", color=color, alpha=0.12, linewidth=0
    )
    if dot:
        axis.plot(*dot, "o", color=color, markersize=8, markeredgecolor="white")


def _confusion(summary: ErrorSummary, chosen: list[int], about: About | None) -> Figure:
    """A row for the class in the ground truth, a column for the predicted one."""
    with_unmatched = [*chosen, len(THING_CLASSES)]
    counts = summary.confusion[np.ix_(with_unmatched, with_unmatched)]
    totals = counts.sum(axis=1)
    title = f"Predicted class of each object (score ≥ {summary.score_thresh:g})"
    figure = new_figure(10.4, 7, title, about)
    axis = figure.subplots()
    classes = [THING_CLASSES[category] for category in chosen]
    rows = [*classes, "matches no object"]
    names = [f"{name}\nn = {total:,}" for name, total in zip(rows, totals, strict=True)]
    _heat_map(
        axis,
        counts,
        np.broadcast_to(totals[:, None], counts.shape),
        names,
        [*classes, "no match"],
        # Not part of the classes' square: objects and predictions without a partner of any class.
        row_gap=len(classes),
        column_gap=len(classes),
    )
    axis.set_ylabel("ground truth")
    axis.set_xlabel(
        "prediction, % of the row (pale: 0, grey: no objects); diagonal: found objects\n"
        "beside it: missed objects, by the class that matches them with an IoU above 0.5\n"
        "last row: false positives that match no ground truth, by their class"
    )
    return figure


def _false_positives(summary: ErrorSummary, chosen: list[int], about: About | None) -> Figure:
    """A bar a class, shared out among the causes."""
    counts = _with_total(summary.false_positives[chosen])
    totals = counts.sum(axis=1)
    names = ["all classes", *(THING_CLASSES[category] for category in chosen)]
    title = f"Why predictions are false positives (score ≥ {summary.score_thresh:g})"
    figure = new_figure(9.4, 4.8, title, about)
    axis = figure.subplots()
    shares = 100 * counts / np.maximum(totals, 1)[:, None]
    left = np.zeros(len(names))
    for cause, (color, ink), widths in zip(CAUSES, _CAUSE_COLORS, shares.T, strict=True):
        bars = axis.barh(names, widths, left=left, color=color, height=0.68, label=cause)
        texts = [f"{width:.0f}" if width >= 6 else "" for width in widths]
        axis.bar_label(bars, texts, label_type="center", color=ink, fontsize=MIN_FONT)
        left += widths
    for row, total in enumerate(totals):
        axis.text(101, row, f"{total:,}", va="center", fontsize=MIN_FONT, color=INK)
        if not total:
            axis.text(1, row, "no false positives", va="center", fontsize=MIN_FONT, color=MUTED)
    axis.text(101, -0.68, "number", va="bottom", fontsize=MIN_FONT, color=INK)
    axis.axhline(0.5, color=INK, linewidth=0.8)
    axis.set(xlim=(0, 100), xlabel="% of the class's false positives")
    axis.invert_yaxis()
    style_axes(axis, grid="")
    axis.tick_params(axis="y", length=0)
    axis.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=len(CAUSES), frameon=False, fontsize=MIN_FONT
    )
    return figure


def _misses(summary: ErrorSummary, chosen: list[int], about: About | None) -> Figure:
    """How many of the objects of a size, or of an occlusion, are not found."""
    title = f"Missed objects (IoU 0.5, score ≥ {summary.score_thresh:g})"
    figure = new_figure(11.5, 6, title, about)
    axes = figure.subplots(1, 2)
    classes = [THING_CLASSES[category] for category in chosen]
    panels: list[tuple[str, Iterable[str], Counts]] = [
        ("by size: visible area in the image", SIZE_LIMITS, summary.by_size),
        (
            "by occlusion: share of the box behind closer objects",
            OCCLUSION_LIMITS,
            summary.by_occlusion,
        ),
    ]
    for axis, (heading, groups, table) in zip(axes, panels, strict=True):
        objects, missed = (_with_total(table[chosen, :, index]) for index in range(2))
        names = [OCCLUSION_NAMES.get(group, group) for group in groups]
        columns = [f"{name}\n{_RANGES[group]}" for name, group in zip(names, groups, strict=True)]
        shown = np.flatnonzero(objects.any(axis=0))
        if 0 < len(shown) < len(names):
            empty = [name for name, count in zip(names, objects[0], strict=True) if not count]
            heading += f"\n(no objects: {', '.join(empty)})"
            missed, objects = missed[:, shown], objects[:, shown]
            columns = [columns[index] for index in shown.tolist()]
        _heat_map(
            axis, missed, objects, ["all classes", *classes], columns, with_numbers=True, row_gap=1
        )
        axis.set_title(heading, loc="left", fontsize=11.5, color=INK)
    axes[1].set_yticklabels([])
    return figure


def _with_total(counts: Counts) -> Counts:
    """Put the sum of all rows above them."""
    return np.vstack([counts.sum(axis=0), counts])


def _heat_map(
    axis: Axes,
    counts: Counts,
    totals: Counts,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    with_numbers: bool = False,
    row_gap: int = 0,
    column_gap: int = 0,
) -> None:
    """Draw shares of totals as coloured cells with percentages; grey where the total is 0.

    Rows from ``row_gap`` and columns from ``column_gap`` on are set apart; 0: none.
    """
    shares = counts / np.where(totals, totals, np.nan)
    middles_y, middles_x = (
        [place + _GAP * (0 < gap <= place) for place in range(number)]
        for number, gap in ((len(rows), row_gap), (len(columns), column_gap))
    )
    blues = colormaps["Blues"]
    for (row, column), share in np.ndenumerate(shares):
        x, y = middles_x[column], middles_y[row]
        color = EMPTY if np.isnan(share) else blues(share / 1.1)
        corner = (x - _CELL / 2, y - _CELL / 2)
        axis.add_patch(Rectangle(corner, _CELL, _CELL, facecolor=color, linewidth=0))
        ink = "white" if share > 0.64 else INK
        if np.isnan(share):
            text, ink = "no objects" * with_numbers, MUTED
        elif not share and not with_numbers:
            # Zeros would drown the numbers that matter.
            text = ""
        else:
            text = f"{100 * share:.0f}" if 100 * share >= 1 or not share else "<1"
        if with_numbers and not np.isnan(share):
            text += f" %\n{counts[row, column]:,} of {totals[row, column]:,}"
        axis.text(x, y, text, ha="center", va="center", fontsize=MIN_FONT, color=ink)
    axis.set_xticks(middles_x, columns)
    axis.set_yticks(middles_y, rows)
    axis.set_xlim(-0.5, middles_x[-1] + 0.5)
    axis.set_ylim(middles_y[-1] + 0.5, -0.5)
    style_axes(axis, grid="")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
