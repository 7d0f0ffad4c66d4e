"""The course of a training run as one picture."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.style import (
    INK,
    PALETTE,
    new_figure,
    save_figure,
    style_axes,
)

logger = logging.getLogger(__name__)

# Iteration -> value, in order of iterations. As everywhere in Detectron2 the first one is 0: what
# is measured after 100 iterations is at 99, except for the scores at the end of training: at 100.
Curve = dict[int, float]

# This project's name for the mean over the classes, and that of Detectron2's own evaluator.
_MEAN_IOUS = ("IoU", "mIoU")


def plot_training_curves(
    metrics_json: str | os.PathLike[str], output: str | os.PathLike[str]
) -> None:
    """Draw losses, scores (average precision or mean IoU) and learning rate over the iterations.

    Args:
        metrics_json: what Detectron2 writes while it trains: a JSON object a line.
        output: the PNG file; it appears only when it is complete.

    Raises:
        InputError: ``metrics_json`` cannot be read or holds no metrics, or ``output`` cannot be
            written.
    """
    curves = read_curves(metrics_json)
    rows = {title: names for title, names in _select(curves).items() if names}
    if not rows:
        raise InputError(
            f"{metrics_json}: no loss, score or learning rate in it; did training start?"
        )
    heights = [3 if title == "loss" else 1.7 for title in rows]
    figure = new_figure(10, sum(heights) + 0.6)
    axes = figure.subplots(len(rows), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (title, names) in zip(axes, rows.items(), strict=True):
        _plot(axis, title, {name: curves[name] for name in names})
    axes[-1].set_xlabel("iteration", color=INK)
    save_figure(figure, output)


def read_curves(metrics_json: str | os.PathLike[str]) -> dict[str, Curve]:
    """Read Detectron2's ``metrics.json``.

    Args:
        metrics_json: a JSON object a line, with ``iteration`` and any metrics. An iteration may
            come twice, after a resume: the later value counts. Values may be a bare ``NaN``. Lines
            that are no JSON object, as an interruption leaves behind, are skipped with a warning.

    Returns:
        For every metric its values by iteration, in order of iterations.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        lines = Path(metrics_json).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"{metrics_json}: cannot be read: {error.strerror}") from error
    values: dict[str, Curve] = {}
    broken = 0
    for line in lines:
        try:
            entry = json.loads(line)
            iteration = int(entry.pop("iteration"))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            broken += bool(line.strip())
            continue
        for name, value in entry.items():
            # A float cannot hold larger whole numbers.
            if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63):
                values.setdefault(name, {})[iteration] = float(value)
    if broken:
        logger.warning("%s: %d lines are no metrics and were skipped", metrics_json, broken)
    return {name: dict(sorted(curve.items())) for name, curve in values.items()}


def _select(curves: Mapping[str, Curve]) -> dict[str, list[str]]:
    """Get the rows of the picture: title -> names of curves, the most important curve first."""
    losses = sorted(
        (name for name in curves if "loss" in _metric(name)),
        key=lambda name: (_metric(name) != "total_loss", "/" in name, name),
    )
    for prefix in ("", "validation/"):
        parts = [name for name in losses if name.removesuffix(_metric(name)) == prefix]
        # A single loss, as of stage 0, is the total: a second line would hide the first.
        if len(parts) == 2 and f"{prefix}total_loss" in parts:
            losses.remove(parts[1])
    precisions = sorted(
        (name for name in curves if _metric(name) in ("AP", "AP50")),
        key=lambda name: (not name.startswith("segm/"), name),
    )
    return {
        "loss": losses,
        "average precision (%)": precisions,
        "mean IoU (%)": [name for name in curves if _metric(name) in _MEAN_IOUS],
        "learning rate": [name for name in curves if name == "lr"],
    }


def _metric(name: str) -> str:
    """``loss_mask`` for ``validation/loss_mask``."""
    return name.rpartition("/")[2]


def _plot(axis: Axes, title: str, curves: Mapping[str, Curve]) -> None:
    is_loss = title == "loss"
    # A loss has one colour, in training and (dashed) in validation.
    keys = sorted({_metric(name) for name in curves} - {"total_loss"}) if is_loss else list(curves)
    colors = {key: PALETTE[number % len(PALETTE)] for number, key in enumerate(keys)}
    for name, curve in curves.items():
        key = _metric(name) if is_loss else name
        axis.plot(
            list(curve),
            list(curve.values()),
            label=name,
            color=colors.get(key, INK),
            linewidth=1.3 if key in colors else 2.0,
            linestyle="--" if is_loss and "/" in name else "-",
            # Few points, as of evaluations, would be invisible as a line.
            marker="o" if len(curve) <= 30 else "",
            markersize=3.5,
        )
    style_axes(axis, title)
    values = np.array([value for curve in curves.values() for value in curve.values()])
    finite = values[np.isfinite(values)]
    if len(finite):
        # A few exploding losses must not flatten all others.
        top = min(finite.max(), 4 * np.percentile(finite, 95)) if is_loss else finite.max()
        axis.set_ylim(min(0.0, finite.min()), 1.05 * max(top, 1e-12))
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if title != "learning rate":
        axis.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9, handlelength=3.4
        )
