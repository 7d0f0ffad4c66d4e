"""An Optuna study in pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write
from cityscapes_maskrcnn.visualization.wrapping import wrapped

_INK, _GREY = "#222222", "#b8b8b8"
_BLUE, _RED, _GOLD = "#0072B2", "#D55E00", "#E69F00"  # of Okabe and Ito's palette
_MAP = colormaps["viridis"]


def plot_history(
    trials: Sequence[FrozenTrial], label: str, maximize: bool, output: str | os.PathLike[str]
) -> None:
    """Draw the value of every trial in the order of the study, and the best so far.

    Args:
        trials: of any state. Pruned ones stand at the last value they reported, failed ones below.
        label: what the values are, with their unit.
        maximize: whether larger values are better.
        output: the PNG file; it appears only when it is complete.

    Raises:
        InputError: ``output`` cannot be written.
    """
    figure, axis = _figure(9, 4.2)
    complete = _complete(trials)
    pruned = [t for t in trials if t.state == TrialState.PRUNED and t.intermediate_values]
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    if pruned:
        axis.scatter(
            [trial.number for trial in pruned],
            [trial.intermediate_values[max(trial.intermediate_values)] for trial in pruned],
            s=26,
            facecolors="none",
            edgecolors="#8a8a8a",
            label="pruned, at its last score",
        )
    axis.scatter(*_numbers_and_values(complete), s=34, color=_BLUE, zorder=3, label="complete")
    numbers, values = _numbers_and_values(complete)
    order = np.argsort(numbers)
    accumulate = np.maximum.accumulate if maximize else np.minimum.accumulate
    so_far = accumulate(np.array(values)[order])
    end = max(trial.number for trial in trials)
    axis.step(
        [*np.array(numbers)[order], end],
        [*so_far, so_far[-1]],
        where="post",
        color=_INK,
        linewidth=1.6,
        label="best so far",
    )
    _star(axis, *max(zip(values, numbers, strict=True), key=_by_value(maximize))[::-1])
    if failed:
        # In the coordinates of the axis: a failed trial has no value.
        axis.plot(
            [trial.number for trial in failed],
            [0.02] * len(failed),
            "x",
            color=_RED,
            transform=axis.get_xaxis_transform(),
            label="failed",
        )
    _finish(axis, f"{label} of every trial")
    axis.set_xlabel("trial", color=_INK)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    _save(figure, output)


def plot_importances(
    importances: Mapping[str, float], remark: str, output: str | os.PathLike[str]
) -> None:
    """Draw a bar for the importance of every parameter.

    Args:
        importances: fractions that add up to 1, by name.
        remark: a line below the bars: on what they were measured, and what limits their meaning.
        output: the PNG file.

    Raises:
        InputError: ``output`` cannot be written.
    """
    ordered = sorted(importances.items(), key=lambda item: item[1])
    figure, axis = _figure(7.5, 1.3 + 0.42 * len(ordered))
    bars = axis.barh(
        range(len(ordered)),
        [100 * value for _, value in ordered],
        color=_BLUE,
        height=0.62,
    )
    axis.set_yticks(range(len(ordered)), [wrapped(name, 26, 2) for name, _ in ordered])
    axis.bar_label(
        bars, [f"{100 * value:.0f} %" for _, value in ordered], padding=4, color=_INK, fontsize=9
    )
    _finish(axis, "Importance: share of the variance of the score (fANOVA)")
    axis.grid(visible=False)
    axis.set_xlim(0, 112)
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    figure.supxlabel(remark, x=0.01, ha="left", fontsize=9, color=_INK)
    _save(figure, output)


def plot_slices(
    trials: Sequence[FrozenTrial], label: str, maximize: bool, output: str | os.PathLike[str]
) -> None:
    """Draw the values of the complete trials over each parameter.

    Args:
        trials: of any state.
        label: what the values are, with their unit.
        maximize: whether larger values are better.
        output: the PNG file.

    Raises:
        InputError: ``output`` cannot be written.
    """
    complete = _complete(trials)
    names = parameter_names(complete)
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    scales = [_Scale(name, complete) for name in names]
    titles = [wrapped(name, 24) for name in names]
    # Categories whose names do not fit side by side stand upright.
    upright = [scale.categories for scale in scales if sum(map(len, scale.categories)) > 22]
    longest = max(
        (len(line) for texts in upright for text in texts for line in text.split("\n")), default=0
    )
    height = 3.1 + 0.09 * longest + 0.17 * max(title.count("\n") for title in titles)
    figure = Figure(
        figsize=(max(5.0, 2.9 * columns + 0.9), height * rows),
        layout="constrained",
        facecolor="white",
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axis in grid.flat[len(names) :]:
        axis.set_axis_off()
    axes = list(grid.flat[: len(names)])
    last = max(1, max(trial.number for trial in complete))
    # Beginning below the first trial, whose colour would otherwise be white.
    norm = Normalize(-0.35 * last, last)
    for axis, name, title, ticks in zip(axes, names, titles, scales, strict=True):
        having = [trial for trial in complete if name in trial.params]
        places = np.array([ticks.position(trial.params[name]) for trial in having])
        if ticks.categories:
            # Side by side instead of one on top of the other.
            places = places + np.random.default_rng(0).uniform(-0.14, 0.14, len(places))
            axis.set_xticks(range(len(ticks.categories)), ticks.categories)
            if ticks.categories in upright:
                axis.tick_params(axis="x", rotation=90)
            axis.set_xlim(-0.6, len(ticks.categories) - 0.4)
        elif ticks.log:
            places = 10**places
            axis.set_xscale("log")
        axis.scatter(
            places,
            [trial.values[0] for trial in having],
            c=[trial.number for trial in having],
            cmap="Blues",
            norm=norm,
            s=34,
            edgecolors=_INK,
            linewidths=0.4,
        )
        best = max(range(len(having)), key=lambda i: having[i].values[0] * (1 if maximize else -1))
        _star(axis, places[best], having[best].values[0])
        _finish(axis, title)
        if not ticks.categories and not ticks.log:
            axis.xaxis.set_major_locator(MaxNLocator(4))
    for row in grid:
        row[0].set_ylabel(wrapped(label, 28), color=_INK)
    bar = figure.colorbar(ScalarMappable(norm, "Blues"), ax=axes, aspect=30)
    bar.ax.set_ylim(0, last)
    bar.ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    _label_bar(bar, "trial")
    _save(figure, output)


def plot_parallel_coordinates(
    trials: Sequence[FrozenTrial], label: str, maximize: bool, output: str | os.PathLike[str]
) -> None:
    """Draw every complete trial as a line through its parameters and its value.

    Args:
        trials: of any state.
        label: what the values are, with their unit.
        maximize: whether larger values are better: these lines are drawn last.
        output: the PNG file.

    Raises:
        InputError: ``output`` cannot be written.
    """
    complete = _complete(trials)
    names = parameter_names(complete)
    complete = [trial for trial in complete if all(name in trial.params for name in names)]
    # The best one last, which is drawn over the others; the earliest of equals.
    complete.sort(key=lambda trial: _by_value(maximize)((trial.values[0], trial.number)))
    values = np.array([trial.values[0] for trial in complete])
    scales = [_Scale(name, complete) for name in names]
    heights = [
        [scale.height(trial.params[name]) for trial in complete]
        for name, scale in zip(names, scales, strict=True)
    ]
    low, high = float(values.min()), float(values.max())
    span = high - low or 1.0
    lines = np.array([*heights, (values - low) / span if high > low else values * 0 + 0.5]).T
    figure, axis = _figure(max(7.0, 2.1 * len(names) + 2.6), 4.6)
    norm = Normalize(low, high if high > low else low + 1)
    collection = LineCollection(
        [list(enumerate(line)) for line in lines],
        colors=_MAP(norm(values)),
        linewidths=[1.1] * (len(lines) - 1) + [3.0],
        alpha=0.85,
    )
    axis.add_collection(collection)
    for place, scale in enumerate(scales):
        scale.label(axis, place)
    for text, height in ((f"{low:.4g}", 0.0), (f"{high:.4g}", 1.0)):
        _tick(axis, len(names), height if high > low else 0.5, text)
    axis.set_xticks(range(len(names) + 1), [wrapped(name, 23) for name in (*names, label)])
    axis.tick_params(axis="x", length=0, pad=14)
    axis.set_xlim(-0.25, len(names) + 0.4)
    axis.set_ylim(-0.04, 1.04)
    axis.set_yticks([])
    axis.vlines(range(len(names) + 1), 0, 1, color=_GREY, linewidth=1.2, zorder=0)
    _finish(axis, "Complete trials, the best one thick")
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(ScalarMappable(norm, _MAP), ax=axis, aspect=30, pad=0.02)
    _label_bar(bar, label)
    _save(figure, output)


def parameter_names(trials: Sequence[FrozenTrial]) -> list[str]:
    """Every parameter of some trials, in the order of their first use."""
    return list(dict.fromkeys(name for trial in trials for name in trial.params))


class _Scale:
    """Where the values of a parameter stand on its axis.

    Args:
        name: of the parameter.
        trials: that have it or not.
    """

    def __init__(self, name: str, trials: Sequence[FrozenTrial]) -> None:
        having = [trial for trial in trials if name in trial.params]
        distribution = having[0].distributions[name]
        self.log = bool(getattr(distribution, "log", False))
        # As they are and as they are written; both empty for numbers.
        self._choices: list[str] = []
        if isinstance(distribution, CategoricalDistribution):
            self._choices = [str(choice) for choice in distribution.choices]
        self.categories = [wrapped(choice, 20, 2) for choice in self._choices]
        places = [self.position(trial.params[name]) for trial in having]
        self._low, self._high = min(places), max(places)
        if self.categories:
            self._low, self._high = 0.0, len(self.categories) - 1.0

    def position(self, value: Any) -> float:
        """The value itself, its logarithm to base 10, or the number of a category."""
        if self.categories:
            return float(self._choices.index(str(value)))
        return float(np.log10(value)) if self.log else float(value)

    def height(self, value: Any) -> float:
        """Between 0 and 1; in the middle if there is one value only."""
        if self._high <= self._low:
            return 0.5
        return (self.position(value) - self._low) / (self._high - self._low)

    def label(self, axis: Axes, place: float) -> None:
        """Write the values at the ends, or all categories, beside a vertical axis."""
        if self.categories:
            count = len(self.categories)
            for number, text in enumerate(self.categories):
                _tick(axis, place, number / (count - 1) if count > 1 else 0.5, text)
            return
        ends = {0.0: self._low, 1.0: self._high} if self._high > self._low else {0.5: self._low}
        for height, end in ends.items():
            _tick(axis, place, height, f"{10**end if self.log else end:.3g}")


def _complete(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and np.isfinite(trial.values[0])
    ]


def _numbers_and_values(trials: Sequence[FrozenTrial]) -> tuple[list[int], list[float]]:
    return [trial.number for trial in trials], [trial.values[0] for trial in trials]


def _by_value(maximize: bool) -> Any:
    """Sort (value, number): the best value, of equal ones the earliest."""
    return lambda pair: (pair[0] if maximize else -pair[0], -pair[1])


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _star(axis: Axes, x: float, y: float) -> None:
    axis.plot(
        x,
        y,
        marker="*",
        markersize=15,
        color=_GOLD,
        markeredgecolor=_INK,
        linestyle="",
        zorder=4,
        label="best",
    )


def _tick(axis: Axes, place: float, height: float, text: str) -> None:
    axis.annotate(
        text,
        (place, height),
        xytext=(5, 0),
        textcoords="offset points",
        fontsize=8.5,
        color=_INK,
        va="center",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.0},
        zorder=5,
    )


def _finish(axis: Axes, title: str) -> None:
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    axis.grid(color="#e4e4e4", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=_INK, labelsize=9)


def _label_bar(bar: Colorbar, label: str) -> None:
    bar.set_label(label, color=_INK)
    bar.ax.spines[:].set_visible(False)


def _save(figure: Figure, output: str | os.PathLike[str]) -> None:
    try:
        with atomic_write(output) as file:
            figure.savefig(file, format="png", dpi=120)
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror}") from error
