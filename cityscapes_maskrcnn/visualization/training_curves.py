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
    BLUE,
    MUTED,
    PALETTE,
    RED,
    About,
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
_TOTAL = "total_loss"
_TOTAL_TITLE, _PARTS_TITLE, _RATE_TITLE = "total loss", "parts of the loss", "learning rate"
_AP_TITLE = "average precision, %"
_HEIGHTS = {_TOTAL_TITLE: 2.4, _PARTS_TITLE: 2.2, _RATE_TITLE: 1.5}
_DASHED = {_PARTS_TITLE: "dashed: validation", _AP_TITLE: "dashed: AP50"}
# What Detectron2's keys stand for.
_LOSSES = {
    "loss_cls": "box class",
    "loss_box_reg": "box position",
    "loss_mask": "mask",
    "loss_mask_point": "mask points",
    "loss_rpn_cls": "RPN objectness",
    "loss_rpn_loc": "RPN box position",
    "loss_sem_seg": "semantic labels",
}
_TASKS = {
    "segm": "official masks",
    "coco_segm": "COCO-style masks",
    "coco_bbox": "COCO-style boxes",
}


def plot_training_curves(
    metrics_json: str | os.PathLike[str],
    output: str | os.PathLike[str],
    about: About | None = None,
) -> None:
    """Draw losses, scores (average precision or mean IoU) and learning rate over the iterations.

    Args:
        metrics_json: what Detectron2 writes while it trains: a JSON object a line.
        output: the PNG file; it appears only when it is complete.
        about: the run.

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
    heights = [_HEIGHTS.get(title, 2.0) for title in rows]
    figure = new_figure(10, sum(heights) + 0.8, "Course of training", about)
    axes = figure.subplots(len(rows), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (title, names) in zip(axes, rows.items(), strict=True):
        _plot(axis, title, {name: curves[name] for name in names})
    axes[-1].set_xlabel("iteration")
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
        key=lambda name: ("/" in name, name),
    )
    parts = [name for name in losses if _metric(name) != _TOTAL]
    # A single loss, as of stage 0, is the total under another name.
    if len({_metric(name) for name in parts}) == 1 and _TOTAL in losses:
        parts = []
    precisions = sorted(
        (name for name in curves if _metric(name) in ("AP", "AP50")),
        key=lambda name: ([*_TASKS, _task(name)].index(_task(name)), name),
    )
    return {
        _TOTAL_TITLE: [name for name in losses if _metric(name) == _TOTAL],
        _PARTS_TITLE: parts,
        _AP_TITLE: precisions,
        "mean IoU, %": [name for name in curves if _metric(name) in _MEAN_IOUS],
        _RATE_TITLE: [name for name in curves if name == "lr"],
    }


def _metric(name: str) -> str:
    """``loss_mask`` for ``validation/loss_mask``."""
    return name.rpartition("/")[2]


def _task(name: str) -> str:
    """``coco_segm`` for ``cityscapes_instance_val/coco_segm/AP``."""
    return name.rpartition("/")[0].rpartition("/")[2]


def _label(name: str) -> str:
    """Name a curve for people; curves of one label have one colour."""
    metric, task = _metric(name), _task(name)
    if metric in ("AP", "AP50"):
        dataset = name.rpartition("/")[0].rpartition("/")[0]
        return " ".join(filter(None, (dataset, _TASKS.get(task, task))))
    if metric == _TOTAL:
        return "validation" if task else "training"
    if "loss" in metric:
        return _LOSSES.get(metric) or metric.removeprefix("loss_").replace("_", " ")
    return "mean" if metric in _MEAN_IOUS else name


def _plot(axis: Axes, title: str, curves: Mapping[str, Curve]) -> None:
    labels = list(dict.fromkeys(map(_label, curves)))
    colors = (
        dict(zip(labels, (BLUE, RED), strict=False))
        if title == _TOTAL_TITLE
        else {label: PALETTE[number % len(PALETTE)] for number, label in enumerate(labels)}
    )
    named = set()
    for name, curve in curves.items():
        label = _label(name)
        is_dashed = title in _DASHED and ("/" in name if "loss" in name else name.endswith("AP50"))
        axis.plot(
            list(curve),
            list(curve.values()),
            # A colour is named once.
            label="_" * (label in named) + label,
            color=colors[label],
            linewidth=2.0 if title != _PARTS_TITLE else 1.5,
            linestyle="--" if is_dashed else "-",
            # Few points, as of evaluations, would be invisible as a line.
            marker="o" if len(curve) <= 30 else "",
            markersize=4,
        )
        named.add(label)
    style_axes(axis, title)
    if title in _DASHED and any(line.get_linestyle() == "--" for line in axis.lines):
        axis.set_title(_DASHED[title], loc="right", fontsize=10, color=MUTED)
    values = np.array([value for curve in curves.values() for value in curve.values()])
    finite = values[np.isfinite(values)]
    if len(finite):
        # A few exploding losses must not flatten all others.
        is_loss = title in (_TOTAL_TITLE, _PARTS_TITLE)
        top = min(finite.max(), 4 * np.percentile(finite, 95)) if is_loss else finite.max()
        axis.set_ylim(min(0.0, finite.min()), 1.08 * max(top, 1e-12))
        if finite.max() > 1.08 * top:
            text = f"up to {finite.max():.3g}, cut off"
            axis.set_title(text, loc="center", fontsize=10, color=MUTED)
    axis.yaxis.set_major_formatter("{x:.4g}")
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(labels) > 1 or title == _TOTAL_TITLE:
        axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=10)
