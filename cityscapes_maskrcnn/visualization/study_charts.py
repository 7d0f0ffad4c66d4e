"""Pictures of a search: scores of its trials, and how they depend on the parameters."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from cityscapes_maskrcnn.utils.text import counted
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


@dataclass(frozen=True, kw_only=True)
class ScoredTrial:
    """A complete trial.

    Attributes:
        number: of the trial.
        score: of the objective.
        params: values by the name of the parameter.
    """

    number: int
    score: float
    params: Mapping[str, Any]


@dataclass(frozen=True)
class _Scale:
    """One parameter's values as numbers.

    Attributes:
        choices: of a parameter whose values are no numbers, in the order of their numbers.
        is_log: whether its numbers are read best on a logarithmic axis.
    """

    choices: list[str]
    is_log: bool

    def numbers(self, values: Sequence[Any]) -> npt.NDArray[np.float64]:
        """Get places on the axis."""
        if self.choices:
            return np.array([self.choices.index(str(value)) for value in values], np.float64)
        return np.array(values, np.float64)


def plot_study(
    trials: Sequence[ScoredTrial],
    folder: str | os.PathLike[str],
    *,
    label: str,
    maximize: bool,
    importances: Mapping[str, float],
    remark: str,
    about: About,
) -> list[str]:
    """Draw the course of the search, its parameters, and their importances.

    Args:
        trials: the complete ones, at least one.
        folder: for the PNG files.
        label: name of the score.
        maximize: whether the largest score is best.
        importances: fractions by parameter, the largest first; without any there is no picture.
        remark: what limits their meaning.
        about: the study.

    Returns:
        Names of the files.

    Raises:
        InputError: a file cannot be written.
    """
    by_score = sorted(trials, key=lambda trial: trial.score, reverse=maximize)
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    figures = {"history.png": _history(trials, by_score[0], label, maximize, about)}
    if importances:
        figures["importances.png"] = _importances(importances, remark, about)
    if names:
        figures["slices.png"] = _slices(by_score, names, label, about)
        figures["parallel_coordinates.png"] = _parallel(
            by_score,
            names,
            label=label,
            maximize=maximize,
            about=about,
        )
    for name, figure in figures.items():
        save_figure(figure, Path(folder, name))
    return list(figures)


def _history(
    trials: Sequence[ScoredTrial], best: ScoredTrial, label: str, maximize: bool, about: About
) -> Figure:
    figure = new_figure(9, 4.2, "Score of every trial", about)
    axis = figure.subplots()
    ordered = sorted(trials, key=lambda trial: trial.number)
    numbers = [trial.number for trial in ordered]
    scores = np.array([trial.score for trial in ordered])
    so_far = np.maximum.accumulate(scores) if maximize else np.minimum.accumulate(scores)
    axis.step(numbers, so_far, where="post", color=INK, linewidth=1.5, label="best so far")
    axis.plot(
        numbers, scores, "o", color=BLUE, markersize=6, label=counted(len(trials), "complete trial")
    )
    axis.plot(
        best.number,
        best.score,
        "o",
        color="none",
        markeredgecolor=RED,
        markeredgewidth=2,
        markersize=13,
        label=f"best: trial {best.number}, {best.score:.4g}",
    )
    axis.set_xlabel("trial")
    axis.set_ylabel(_plain(label))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.margins(0.05, 0.1)
    style_axes(axis, grid="y")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=MIN_FONT)
    return figure


def _importances(importances: Mapping[str, float], remark: str, about: About) -> Figure:
    figure = new_figure(8.5, 1.6 + 0.5 * len(importances), "Importance of the parameters", about)
    axis = figure.subplots()
    names = [_wrap(name, 26) for name in importances]
    shares = [100 * share for share in importances.values()]
    bars = axis.barh(range(len(names)), shares, color=BLUE, height=0.65)
    axis.bar_label(
        bars, [f"{share:.0f} %" for share in shares], padding=4, fontsize=MIN_FONT, color=INK
    )
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlim(0, 112)
    axis.set_xticks(range(0, 101, 20))
    axis.set_xlabel("share of the variance of the score, % (fANOVA)\n" + textwrap.fill(remark, 90))
    style_axes(axis, grid="x")
    axis.tick_params(axis="y", length=0)
    return figure


def _slices(by_score: Sequence[ScoredTrial], names: list[str], label: str, about: About) -> Figure:
    """A panel a parameter: every trial's score over its value, the best marked."""
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    title = "Score over each parameter"
    figure = new_figure(max(7.0, 3.3 * columns), 0.9 + 3.1 * lines, title, about)
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for axis, name in zip(axes, names, strict=False):
        having = [trial for trial in by_score if name in trial.params]
        scale = _scale(by_score, name)
        places = scale.numbers([trial.params[name] for trial in having])
        scores = [trial.score for trial in having]
        axis.plot(places, scores, "o", color=BLUE, alpha=0.6, markersize=6)
        if having and having[0] is by_score[0]:
            best = {"markeredgecolor": RED, "markeredgewidth": 2, "markersize": 13}
            axis.plot(places[0], scores[0], "o", color="none", **best)
        axis.set_xlabel(_wrap(name, 26))
        style_axes(axis, grid="both")
        _set_ticks(axis, scale, places)
    axes[0].set_ylabel(_plain(label))
    for axis in axes[columns::columns]:
        axis.set_ylabel(_plain(label))
    for axis in axes[len(names) :]:
        axis.axis("off")
    text = f"{counted(len(by_score), 'complete trial')}; ring: the best"
    figure.supxlabel(text, fontsize=MIN_FONT, color=MUTED)
    return figure


def _set_ticks(axis: Axes, scale: _Scale, places: npt.NDArray[np.float64]) -> None:
    if scale.choices:
        axis.set_xticks(
            range(len(scale.choices)),
            [_wrap(choice, 10) for choice in scale.choices],
            fontsize=MIN_FONT,
        )
        axis.set_xlim(-0.6, len(scale.choices) - 0.4)
        return
    if scale.is_log:
        axis.set_xscale("log")
        low, high = places.min(), places.max()
        first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
        powers = range(first, last + 1, 1 + (last - first) // 4)
        axis.xaxis.set_major_locator(FixedLocator([10.0**power for power in powers]))
        axis.xaxis.set_minor_locator(NullLocator())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(3))
    axis.xaxis.set_major_formatter("{x:g}")


def _parallel(
    by_score: Sequence[ScoredTrial],
    names: list[str],
    *,
    label: str,
    maximize: bool,
    about: About,
) -> Figure:
    """A line a trial through an axis a parameter, the best one marked and on top."""
    # A parameter that only some trials have would leave gaps in the lines.
    names = [name for name in names if all(name in trial.params for trial in by_score)]
    width = max(7.0, 2.0 * (len(names) + 1) + 1.6)
    figure = new_figure(width, 4.6, "Parameters of the complete trials", about)
    axis = figure.subplots()
    scores = np.array([trial.score for trial in by_score])
    columns = [(_Scale([], False), scores)]
    for name in names:
        scale = _scale(by_score, name)
        columns.append((scale, scale.numbers([trial.params[name] for trial in by_score])))
    heights = np.array([_relative(scale, values) for scale, values in columns])
    # Dark is good.
    shade = Normalize(*_span(scores if maximize else -scores))
    # Without the palest third, which would not be seen on white.
    blues = colormaps["Blues"]
    for trial in range(len(by_score))[::-1]:
        color = blues(0.3 + 0.7 * shade(scores[trial] if maximize else -scores[trial]))
        axis.plot(heights[:, trial], color=color, linewidth=1.4, zorder=2)
    axis.plot(heights[:, 0], color=RED, linewidth=2.4, zorder=3)
    for place, (scale, values) in enumerate(columns):
        axis.axvline(place, color=INK, linewidth=1, zorder=4)
        for height, text in _numbers(scale, values):
            axis.text(
                place + 0.03,
                height,
                text,
                va="center",
                fontsize=MIN_FONT,
                color=INK,
                bbox=PAPER,
                zorder=5,
            )
    axis.set_xticks(range(len(columns)), [_wrap(name, 20) for name in (label, *names)])
    axis.set_xlim(-0.1, len(columns) - 0.5)
    axis.set_ylim(-0.06, 1.06)
    style_axes(axis, grid="")
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.tick_params(axis="x", length=0)
    text = f"orange: the best of {counted(len(by_score), 'trial')}; darker lines: better scores"
    figure.supxlabel(text, fontsize=MIN_FONT, color=MUTED)
    return figure


def _scale(trials: Sequence[ScoredTrial], name: str) -> _Scale:
    values = [trial.params[name] for trial in trials if name in trial.params]
    is_number = [
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in values
    ]
    if not all(is_number):
        return _Scale(sorted({str(value) for value in values}), False)
    return _Scale([], min(values) > 0 and max(values) > 50 * min(values))


def _span(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _relative(scale: _Scale, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Get heights from 0, the smallest value, to 1."""
    numbers = np.log(values) if scale.is_log else values
    low, high = _span(numbers)
    return (numbers - low) / (high - low)


def _numbers(scale: _Scale, values: npt.NDArray[np.float64]) -> list[tuple[float, str]]:
    """Get heights and texts that explain an axis: all choices, or both ends and the middle."""
    if scale.choices:
        places = np.arange(len(scale.choices), dtype=np.float64)
        heights = _relative(scale, places)
        return [(h, _wrap(text, 14)) for h, text in zip(heights, scale.choices, strict=True)]
    low, high = float(values.min()), float(values.max())
    if low == high:
        return [(0.5, f"{low:.3g}")]
    middle = np.sqrt(low * high) if scale.is_log else (low + high) / 2
    return [(0.0, f"{low:.3g}"), (0.5, f"{middle:.3g}"), (1.0, f"{high:.3g}")]


def _plain(text: str) -> str:
    """Keep a dollar sign from beginning a formula."""
    return text.replace("$", r"\$")


def _wrap(name: str, width: int) -> str:
    """Break a name into lines at spaces and underscores."""
    return _plain(textwrap.fill(name.replace("_", "_ "), width).replace("_ ", "_"))
