"""Pictures of a model's errors, drawn from the tables that an evaluation writes."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.style import (
    INK,
    ORANGE,
    PALETTE,
    PINK,
    SKY,
    new_figure,
    save_figure,
    style_axes,
)

# Fill and text.
_CAUSE_COLORS = ((SKY, INK), (PINK, INK), (ORANGE, INK), ("#666666", "white"))
# Between cells. They end at whole pixels and axes do not: a line clipped there would leave a rest.
_GAP: dict[str, Any] = {
    "color": "white",
    "linewidth": 5,
    "clip_on": False,
    "solid_capstyle": "projecting",
    "in_layout": False,
}

Row = dict[str, str]
Counts = npt.NDArray[np.int64]


def plot_errors(folder: str | os.PathLike[str]) -> list[Path]:
    """Draw the tables of an evaluation: one PNG beside each CSV.

    Args:
        folder: holds what :func:`.evaluation.error_analysis.write_error_tables` writes.

    Returns:
        ``precision_recall.png``, ``confusion.png``, ``false_positives.png``, ``misses.png``.

    Raises:
        InputError: a table is missing or damaged, or a picture cannot be written.
    """
    folder = Path(folder)
    per_class = _read(folder / "per_class.csv")
    try:
        threshold = float(per_class[0]["confidence_threshold"])
        figures = {
            "precision_recall": _precision_recall(
                _read(folder / "precision_recall.csv"), per_class, threshold
            ),
            "confusion": _confusion(_read(folder / "confusion.csv"), threshold),
            "false_positives": _false_positives(_read(folder / "false_positives.csv"), threshold),
            "misses": _misses(_read(folder / "misses.csv"), threshold),
        }
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"{folder}: not the tables of an evaluation: {error!r}") from error
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]


def _precision_recall(rows: list[Row], per_class: list[Row], threshold: float) -> Figure:
    """One curve a class, with a dot where the other pictures' threshold lies on it."""
    figure = new_figure(8.2, 5.4, "Precision and recall at IoU 0.5")
    axis = figure.subplots()
    for color, scores in zip(PALETTE, per_class, strict=False):
        points = [
            (float(row["recall"]), float(row["precision"]), float(row["confidence"]))
            for row in rows
            if row["class"] == scores["class"]
        ]
        if not points:
            axis.plot([], [], color=color, linewidth=2, label=f"{scores['class']}  no objects")
            continue
        recall, precision, confidence = np.array(points).T
        label = f"{scores['class']}  AP50 {float(scores['AP50']):.1f}"
        axis.plot(recall, precision, color=color, linewidth=1.8, label=label)
        # The first point from there upwards; the last one is at infinity: no predictions.
        at = int(np.searchsorted(confidence, threshold))
        if at < len(confidence) - 1:
            axis.plot(recall[at], precision[at], "o", color=color, markersize=6, clip_on=False)
    axis.plot([], [], "o", color=INK, markersize=6, label=f"confidence {threshold:g}")
    axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    style_axes(axis, grid="both")
    axis.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=10)
    return figure


def _confusion(rows: list[Row], threshold: float) -> Figure:
    """A row for the class in the ground truth, a column for the predicted one."""
    columns = list(rows[0])[1:]
    counts = np.array([[int(row[column]) for column in columns] for row in rows])
    totals = counts.sum(axis=1)
    figure = new_figure(9.4, 6.6, f"Predicted class of each object (confidence ≥ {threshold:g})")
    axis = figure.subplots()
    classes = [next(iter(row.values())) for row in rows]
    names = [f"{name}\nn = {total:,}" for name, total in zip(classes, totals, strict=True)]
    _heat_map(axis, counts, np.broadcast_to(totals[:, None], counts.shape), names, columns)
    # Not part of the classes' square: objects and predictions without a partner of any class.
    axis.axhline(len(rows) - 1.5, **_GAP)
    axis.axvline(len(columns) - 1.5, **_GAP)
    axis.set_ylabel("ground truth")
    axis.set_xlabel("prediction (% of the row); unmatched: no IoU above 0.5")
    return figure


def _false_positives(rows: list[Row], threshold: float) -> Figure:
    """A bar a class, shared out among the causes."""
    causes = list(rows[0])[1:]
    counts = _with_total(np.array([[int(row[cause]) for cause in causes] for row in rows]))
    totals = counts.sum(axis=1)
    names = ["all classes", *(row["class"] for row in rows)]
    figure = new_figure(
        9.4, 4.8, f"Why predictions are false positives (confidence ≥ {threshold:g})"
    )
    axis = figure.subplots()
    shares = 100 * counts / np.maximum(totals, 1)[:, None]
    left = np.zeros(len(names))
    for cause, (color, ink), widths in zip(causes, _CAUSE_COLORS, shares.T, strict=True):
        bars = axis.barh(names, widths, left=left, color=color, height=0.68, label=cause)
        texts = [f"{width:.0f}" if width >= 6 else "" for width in widths]
        axis.bar_label(bars, texts, label_type="center", color=ink, fontsize=9)
        left += widths
    for row, total in enumerate(totals):
        axis.text(101, row, f"{total:,}", va="center", fontsize=10, color=INK)
    axis.text(101, -0.78, "number", va="bottom", fontsize=9, color=INK)
    axis.axhline(0.5, color=INK, linewidth=0.8)
    axis.set(xlim=(0, 100), xlabel="% of the class's false positives")
    axis.invert_yaxis()
    style_axes(axis, grid="")
    axis.tick_params(axis="y", length=0)
    axis.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=len(causes), frameon=False, fontsize=10
    )
    return figure


def _misses(rows: list[Row], threshold: float) -> Figure:
    """How many of the objects of a size, or of an occlusion, are not found."""
    figure = new_figure(11, 5.6, f"Missed objects (IoU 0.5, confidence ≥ {threshold:g})")
    axes = figure.subplots(1, 2)
    titles = {
        "size": "by size (limits 32² and 96² pixels)",
        "occlusion": "by share of the box that closer objects\nocclude (limits 1% and 35%)",
    }
    for axis, (kind, title) in zip(axes, titles.items(), strict=True):
        chosen = [row for row in rows if row["by"] == kind]
        classes = list(dict.fromkeys(row["class"] for row in chosen))
        groups = list(dict.fromkeys(row["group"] for row in chosen))
        missed, objects = (
            _with_total(np.array([int(row[key]) for row in chosen]).reshape(-1, len(groups)))
            for key in ("missed", "objects")
        )
        _heat_map(axis, missed, objects, ["all classes", *classes], groups, with_numbers=True)
        axis.axhline(0.5, **_GAP)
        axis.set_title(title, loc="left", fontsize=11, color=INK)
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
    with_numbers: bool = False,
) -> None:
    """Draw shares of totals as coloured cells with percentages; a total of 0 is an empty cell."""
    shares = counts / np.where(totals, totals, np.nan)
    axis.imshow(np.ma.masked_invalid(shares), cmap="Blues", vmin=0, vmax=1.1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        # Zeros would drown the numbers that matter.
        if np.isnan(share) or (not with_numbers and not share):
            continue
        text = f"{100 * share:.0f}" if 100 * share >= 1 or not share else "<1"
        if with_numbers:
            text += f"%\n{counts[row, column]:,} of {totals[row, column]:,}"
        color = "white" if share > 0.55 else INK
        axis.text(column, row, text, ha="center", va="center", fontsize=9, color=color)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    style_axes(axis, grid="")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _read(path: Path) -> list[Row]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
