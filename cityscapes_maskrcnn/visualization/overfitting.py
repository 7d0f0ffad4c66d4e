"""Training and validation loss of several runs in one chart, with the gap between them."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.training_metrics import (
    TOTAL_LOSS,
    VALIDATION_LOSS,
    Curve,
    Gap,
    find_gap,
    smooth,
    without_imitation,
)
from cityscapes_maskrcnn.visualization.style import (
    BLUE,
    INK,
    MIN_FONT,
    MUTED,
    PAPER,
    RED,
    About,
    new_figure,
    save_figure,
    style_axes,
)

_TRAINING, _VALIDATION = BLUE, RED


def plot_overfitting(
    runs: Mapping[str, Mapping[str, Curve]],
    output: str | os.PathLike[str],
    about: About | None = None,
) -> dict[str, Gap]:
    """Draw a panel a run: both losses, and an arrow where they end apart.

    All panels have one axis, from 0 on, so that gaps can be compared by eye.

    The validation loss is that of the weights at a moment, without augmentation; the training loss
    is that of the batches on the way there, smoothed. A gap that grows while the training loss
    falls is overfitting.

    Args:
        runs: by title, the curves of :func:`.training_metrics.read_curves`; ``total_loss`` and
            ``validation/total_loss`` are drawn, the former without losses of imitation.
        output: the PNG file; it appears only when it is complete.
        about: the runs.

    Returns:
        The gaps, of the runs that have both losses.

    Raises:
        InputError: no run has a loss, or ``output`` cannot be written.
    """
    drawn = {
        title: (without_imitation(curves), curves.get(VALIDATION_LOSS, {}))
        for title, curves in runs.items()
        if curves.get(TOTAL_LOSS)
    }
    if not drawn:
        raise InputError(f"{output}: there is no loss to draw")
    title = "Training and validation loss of every stage"
    figure = new_figure(3.4 * len(drawn) + 0.6, 4.2, title, about)
    axes = figure.subplots(1, len(drawn), squeeze=False, sharey=True)[0]
    top = max(_top(*losses) for losses in drawn.values())
    axes[0].set_ylim(0, 1.2 * top)
    gaps = {}
    for axis, (title, (training, validation)) in zip(axes, drawn.items(), strict=True):
        gap = find_gap(training, validation)
        _plot(axis, title, training, validation, gap)
        highest = max(filter(np.isfinite, training.values()), default=0.0)
        if highest > 1.2 * top:
            _note(axis, 0.88, f"training up to {highest:.3g}, cut off", _TRAINING)
        if gap:
            gaps[title] = gap
    axes[0].set_ylabel("total loss")
    handles, labels = max(
        (axis.get_legend_handles_labels() for axis in axes), key=lambda h: len(h[1])
    )
    figure.legend(
        handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=MIN_FONT
    )
    save_figure(figure, output)
    return gaps


def _top(training: Curve, validation: Curve) -> float:
    """The highest loss of a run, without first iterations that lie far above all others."""
    finite = [each for each in (*training.values(), *validation.values()) if np.isfinite(each)]
    if not finite:
        return 1.0
    usual = max(2.5 * float(np.median(finite)), *validation.values(), 1e-12)
    return max(finite) if max(finite) <= 2 * usual else usual


def _plot(axis: Axes, title: str, training: Curve, validation: Curve, gap: Gap | None) -> None:
    steps, losses = list(training), np.array(list(training.values()))
    axis.plot(steps, losses, color=_TRAINING, lw=0.8, alpha=0.35)
    marker = "o" if len(steps) == 1 else ""
    smoothed = smooth(losses)
    axis.plot(steps, smoothed, color=_TRAINING, lw=2, marker=marker, label="training (smoothed)")
    if validation:
        axis.plot(
            list(validation),
            list(validation.values()),
            color=_VALIDATION,
            lw=1.8,
            marker="o",
            markersize=4.5,
            label="validation",
        )
    style_axes(axis, title)
    axis.set_xlabel("iteration")
    end = max(*training, *validation, 1) + 1
    # To the right of the end is the gap's label, as wide as "(+1,000 %)".
    axis.set_xlim(0, (1.05 if gap is None else 1.55) * end)
    ticks = MaxNLocator(4, integer=True).tick_values(0, end)
    axis.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if tick <= end]))
    if gap is None:
        _note(axis, 0.98, "no validation loss", MUTED)
        return
    _mark_gap(axis, gap)


def _mark_gap(axis: Axes, gap: Gap) -> None:
    """Draw an arrow from the training loss up (or down) to the validation loss, with its length."""
    place, difference = 1.05 * gap.last, gap.validation - gap.training
    low, high = axis.get_ylim()
    # Where its two heads would overlap, the lines at its ends are enough.
    if abs(difference) > 0.06 * (high - low):
        axis.annotate(
            "",
            xy=(place, gap.validation),
            xytext=(place, gap.training),
            arrowprops={"arrowstyle": "<->", "color": INK, "shrinkA": 0, "shrinkB": 0, "lw": 1.4},
        )
    for level in (gap.training, gap.validation):
        axis.hlines(level, 0.97 * gap.last, 1.08 * gap.last, color=INK, lw=1)
    middle = (gap.training + gap.validation) / 2
    # Three lines, of which none shall lie over the axis.
    is_low = middle < low + 0.2 * (high - low)
    axis.annotate(
        f"gap\n{difference:+.2g}\n({gap.percent:+.0f} %)",
        xy=(1.11 * gap.last, low if is_low else middle),
        xytext=(0, 4 if is_low else 0),
        textcoords="offset points",
        va="bottom" if is_low else "center",
        fontsize=MIN_FONT,
        color=INK,
        bbox=PAPER,
    )
    if gap.lowest is not None:
        _note(axis, 0.98, f"validation lowest {gap.lowest_when}", _VALIDATION)


def _note(axis: Axes, height: float, text: str, color: str) -> None:
    """Write a line at the right, below a share of the panel's height."""
    axis.text(
        0.98,
        height,
        text,
        transform=axis.transAxes,
        ha="right",
        va="top",
        fontsize=MIN_FONT,
        color=color,
        bbox=PAPER,
    )
