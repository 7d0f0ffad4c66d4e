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
        folder: holds what :func:`.evaluation.error_tables.write_error_tables` writes.

    Returns:
        ``precision_recall.png``, ``confusion.png``, ``false_positives.png``, ``misses.png``.

    Raises:
        InputError: a table is missing or damaged, or a picture cannot be written.
    """
    folder = Path(folder)
    per_class = _read(folder / "per_class.csv")
    figures = {}
    try:
        threshold = float(per_class[0]["confidence_threshold"])
        for name, draw in [
            ("precision_recall", _precision_recall),
            ("confusion", _confusion),
            ("false_positives", _false_positives),
            ("misses", _misses),
        ]:
            figures[name] = draw(_read(folder / f"{name}.csv"), per_class, threshold)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"{folder}: not the tables of an evaluation: {error!r}") from error
    written = []
    for name, figure in figures.items():
        written.append(folder / f"{name}.png")
        save_figure(figure, written[-1])
    return written


def _precision_recall(rows: list[Row], per_class: list[Row], threshold: float) -> Figure:
    """One curve a class, with a dot where the other pictures' threshold lies on it."""
    figure, (axis,) = _figure(8.2, 5.4, 1, "Precision and recall at IoU 0.5")
    for color, scores in zip(PALETTE, per_class, strict=True):
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


def _confusion(rows: list[Row], _per_class: list[Row], threshold: float) -> Figure:
    """A row for the class in the ground truth, a column for the predicted one."""
    columns = list(rows[0])[1:]
    counts = np.array([[int(row[column]) for column in columns] for row in rows])
    figure, (axis,) = _figure(
        9.4, 6.6, 1, f"Predicted class of each object (confidence ≥ {threshold:g})"
    )
    names = [
        f"{row['truth']}\nn = {total:,}"
        for row, total in zip(rows, counts.sum(axis=1).tolist(), strict=True)
    ]
    _heat_map(axis, _shares(counts, counts.sum(axis=1, keepdims=True)), names, columns)
    # Not part of the classes' square: objects and predictions without a partner of any class.
    axis.axhline(len(rows) - 1.5, **_GAP)
    axis.axvline(len(columns) - 1.5, **_GAP)
    axis.set_ylabel("ground truth")
    axis.set_xlabel("prediction (% of the row); unmatched: no IoU above 0.5")
    return figure


def _false_positives(rows: list[Row], _per_class: list[Row], threshold: float) -> Figure:
    """A bar a class, shared out among the causes."""
    causes = list(rows[0])[1:]
    counts = np.array([[int(row[cause]) for cause in causes] for row in rows])
    counts = np.concatenate([counts.sum(axis=0, keepdims=True), counts])
    totals = counts.sum(axis=1)
    names = ["all classes", *(row["class"] for row in rows)]
    figure, (axis,) = _figure(
        9.4, 4.8, 1, f"Why predictions are false positives (confidence ≥ {threshold:g})"
    )
    shares = 100 * np.nan_to_num(_shares(counts, totals[:, None]))
    left = np.zeros(len(names))
    for cause, (color, ink), widths in zip(causes, _CAUSE_COLORS, shares.T, strict=True):
        bars = axis.barh(names, widths, left=left, color=color, height=0.68, label=cause)
        texts = [f"{width:.0f}" if width >= 6 else "" for width in widths]
        axis.bar_label(bars, texts, label_type="center", color=ink, fontsize=9)
        left += widths
    for row, total in enumerate(totals.tolist()):
        axis.text(101, row, f"{total:,}", va="center", fontsize=10, color=INK)
    axis.text(101, -0.78, "number", va="bottom", fontsize=9, color=INK)
    axis.axhline(0.5, color=INK, linewidth=0.8)
    axis.set(xlim=(0, 100), xlabel="% of the class's false positives")
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)
    axis.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=len(causes), frameon=False, fontsize=10
    )
    return figure


def _misses(rows: list[Row], _per_class: list[Row], threshold: float) -> Figure:
    """How many of the objects of a size, or of an occlusion, are not found."""
    figure, axes = _figure(11, 5.6, 2, f"Missed objects (IoU 0.5, confidence ≥ {threshold:g})")
    titles = {
        "size": "by size (limits 32² and 96² pixels)",
        "occlusion": "by share of the box that closer objects\nocclude (limits 1% and 35%)",
    }
    for axis, (kind, title) in zip(axes, titles.items(), strict=True):
        chosen = [row for row in rows if row["by"] == kind]
        classes = list(dict.fromkeys(row["class"] for row in chosen))
        groups = list(dict.fromkeys(row["group"] for row in chosen))
        table = np.array([(int(row["missed"]), int(row["objects"])) for row in chosen])
        table = table.reshape(len(classes), len(groups), 2)
        missed, objects = np.moveaxis(
            np.concatenate([table.sum(axis=0, keepdims=True), table]), 2, 0
        )
        names = ["all classes", *classes]
        texts = [
            [f"{m:,} of {n:,}" for m, n in zip(*pair, strict=True)]
            for pair in zip(missed.tolist(), objects.tolist(), strict=True)
        ]
        _heat_map(axis, _shares(missed, objects), names, groups, texts)
        axis.axhline(0.5, **_GAP)
        axis.set_title(title, loc="left", fontsize=11, color=INK)
    axes[1].set_yticklabels([])
    return figure


def _heat_map(
    axis: Axes,
    shares: npt.NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    details: Sequence[Sequence[str]] | None = None,
) -> None:
    """Draw shares, 0 to 1, as coloured cells with percentages; NaN is an empty cell."""
    axis.imshow(np.ma.masked_invalid(shares), cmap="Blues", vmin=0, vmax=1.1, aspect="auto")
    for row, column in np.ndindex(shares.shape):
        share = shares[row, column]
        # Zeros would drown the numbers that matter.
        if np.isnan(share) or (details is None and not share):
            continue
        percent = f"{100 * share:.0f}" if 100 * share >= 1 or not share else "<1"
        text = percent if details is None else f"{percent}%\n{details[row][column]}"
        color = "white" if share > 0.55 else INK
        axis.text(column, row, text, ha="center", va="center", fontsize=9, color=color)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _shares(counts: Counts, totals: Counts) -> npt.NDArray[np.float64]:
    """Counts divided by their totals; NaN where there is nothing."""
    shares: npt.NDArray[np.float64] = np.where(totals > 0, counts / np.maximum(totals, 1), np.nan)
    return shares


def _figure(
    width: float, height: float, columns: int, title: str
) -> tuple[Figure, npt.NDArray[np.object_]]:
    """A figure of some inches with axes side by side."""
    figure = new_figure(width, height, title)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        style_axes(axis, grid="")
    return figure, axes


def _read(path: Path) -> list[Row]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
