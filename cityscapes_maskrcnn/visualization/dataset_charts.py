"""Charts of the contents of one dataset, or of the differences between several."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from cityscapes_maskrcnn.data.dataset_statistics import DatasetStatistics
from cityscapes_maskrcnn.utils.object_limits import (
    OCCLUSION_LIMITS,
    OCCLUSION_NAMES,
    OCCLUSION_RANGES,
    SIZE_LIMITS,
    SIZE_RANGES,
)
from cityscapes_maskrcnn.visualization.style import (
    BLUE,
    GREEN,
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

#: How many datasets find room beside each other.
MAX_DATASETS = 4
_COLORS = (BLUE, ORANGE, GREEN, PINK)
# Light to dark with the size or the occlusion; fill and text.
_ORDERED = (("#cfe3f2", INK), (SKY, INK), (BLUE, "white"))

Datasets = Mapping[str, DatasetStatistics]


def plot_dataset(
    datasets: Datasets,
    colors: Sequence[Sequence[int]],
    about: About,
    folder: str | os.PathLike[str],
) -> list[Path]:
    """Draw classes, sizes, objects in an image, aspect ratios, visible shares and positions.

    Args:
        datasets: one to :data:`MAX_DATASETS`, by name, with the same classes.
        colors: RGB from 0 to 255 of every class.
        about: of all datasets together.
        folder: for the PNG files.

    Returns:
        The files.

    Raises:
        InputError: a file cannot be written.
    """
    figures = {
        "classes": _classes(datasets, colors, about),
        "sizes": _sizes(datasets, about),
        "objects_per_image": _objects_per_image(datasets, about),
        "aspect_ratios": _aspect_ratios(datasets, about),
        "visible_shares": _visible_shares(datasets, about),
        "positions": _positions(datasets, about),
    }
    files = [Path(folder, f"{name}.png") for name in figures]
    for file, figure in zip(files, figures.values(), strict=True):
        save_figure(figure, file)
    return files


def _classes(datasets: Datasets, colors: Sequence[Sequence[int]], about: About) -> Figure:
    """Bars of objects and of images, a class a row, on logarithmic and linear axes."""
    names = next(iter(datasets.values())).classes
    height = 2.2 + len(names) * max(0.42, 0.26 * len(datasets))
    figure = new_figure(12, height, "Objects and images of every class", about)
    objects, images = figure.subplots(1, 2, sharey=True)
    thickness = _thickness(datasets)
    for index, (dataset, stats) in enumerate(datasets.items()):
        # The classes' own colours, unless colours tell the datasets apart.
        fill = [class_color(color) for color in colors] if len(datasets) == 1 else _COLORS[index]
        rows = np.arange(len(names)) + _offset(index, datasets)
        counts = stats.objects_per_image.sum(axis=0)
        total = max(1, int(counts.sum()))
        texts = [f"{count:,} ({100 * count / total:.1f} %)" for count in counts.tolist()]
        bars = objects.barh(rows, counts, 0.92 * thickness, color=fill, label=dataset)
        objects.bar_label(bars, texts, padding=4, fontsize=MIN_FONT, color=INK)
        shares = (stats.objects_per_image > 0).mean(axis=0)
        bars = images.barh(rows, shares, 0.92 * thickness, color=fill)
        texts = [f"{100 * share:.0f} %" for share in shares]
        images.bar_label(bars, texts, padding=4, fontsize=MIN_FONT, color=INK)
    objects.set_yticks(range(len(names)), names)
    objects.invert_yaxis()
    highest = max(stats.objects_per_image.sum(axis=0).max() for stats in datasets.values())
    objects.set_xlim(0, 1.35 * max(1, highest))
    objects.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    images.set_xlim(0, 1.12)
    images.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    images.xaxis.set_major_locator(FixedLocator([0, 0.2, 0.4, 0.6, 0.8, 1]))
    objects.set_xlabel("objects (share of all objects)")
    images.set_xlabel("share of the images with an object of the class")
    for axis, title in ((objects, "Objects"), (images, "Images")):
        style_axes(axis, title, grid="x")
        axis.tick_params(axis="y", length=0, labelsize=11)
    _legend(figure, objects, datasets)
    return figure


def _sizes(datasets: Datasets, about: About) -> Figure:
    """Histograms of the square roots of areas, and the shares of COCO's sizes by class."""
    figure, curves, shares = _two_panels(datasets, "Size of the objects", about)
    sides = [stats.sides for stats in datasets.values()]
    limits = [np.sqrt(limit) for limit in list(SIZE_LIMITS.values())[1:]]
    everything = np.concatenate([*sides, limits])
    # A few objects of next to nothing do not set the range.
    low, high = max(1.0, 0.8 * float(np.percentile(everything, 0.5))), 1.1 * everything.max()
    clipped = [np.maximum(each, 1.001 * low) for each in sides]
    _histograms(curves, datasets, clipped, np.geomspace(low, high, 41))
    curves.set_xscale("log")
    _plain_ticks(curves, 2.0 ** np.arange(16), low, high)
    _mark_limits(curves, limits, tuple(SIZE_LIMITS))
    curves.set_xlabel("square root of the visible area in pixels (first bin: this size or smaller)")
    curves.set_ylabel("share of the objects")
    style_axes(curves, "All classes", grid="y")
    _stacked_shares(
        shares,
        datasets,
        lambda stats: stats.by_size(),
        (f"small: {SIZE_RANGES['small']}", "medium", f"large: {SIZE_RANGES['large']}"),
    )
    style_axes(shares, "By class", grid="")
    _legend(figure, curves, datasets)
    return figure


def _objects_per_image(datasets: Datasets, about: About) -> Figure:
    """A line a dataset: the share of images with so many objects."""
    figure = new_figure(9, 4.4, "Objects per image", about)
    axis = figure.subplots()
    counts = [stats.objects_per_image.sum(axis=1) for stats in datasets.values()]
    most = max(int(each.max()) for each in counts)
    # Bins of whole numbers.
    step = max(1, -(-(most + 1) // 50))
    edges = np.arange(0, most + 1 + step, step) - 0.5
    _histograms(axis, datasets, counts, edges)
    for index, each in enumerate(counts):
        color = _COLORS[index] if len(counts) > 1 else INK
        axis.axvline(each.mean(), color=color, linestyle="--", linewidth=1.6)
    texts = [
        f"{name}: mean {each.mean():.1f}, median {np.median(each):.0f}, most {each.max()}, "
        f"{(each == 0).sum()} images without any"
        for name, each in zip(datasets, counts, strict=True)
    ]
    axis.set_xlabel("objects per image" + f" (bars of {step})" * (step > 1))
    axis.set_ylabel("share of the images")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axis, grid="y")
    axis.set_xlim(edges[0], edges[-1])
    handles = axis.get_legend_handles_labels()[0]
    figure.legend(handles, texts, loc="outside lower left", frameon=False, fontsize=MIN_FONT)
    axis.set_title("dashed: mean", loc="right", fontsize=MIN_FONT, color=MUTED)
    return figure


def _aspect_ratios(datasets: Datasets, about: About) -> Figure:
    """Histograms of all classes together, and of every class a box of its quartiles."""
    figure, curves, boxes = _two_panels(datasets, "Shape of the objects' boxes", about)
    ratios = [stats.aspect_ratios for stats in datasets.values()]
    low, high = 1 / 8, 8.0
    clipped = [np.clip(each, 1.001 * low, 0.999 * high) for each in ratios]
    _histograms(curves, datasets, clipped, np.geomspace(low, high, 49))
    curves.set_ylabel("share of the objects")
    names = next(iter(datasets.values())).classes
    thickness = _thickness(datasets)
    for index, (stats, each) in enumerate(zip(datasets.values(), ratios, strict=True)):
        for row in range(len(names)):
            of_class = each[stats.categories == row]
            place = row + _offset(index, datasets)
            if not len(of_class):
                boxes.text(
                    1, place, "no objects", va="center", ha="center", fontsize=MIN_FONT, color=MUTED
                )
                continue
            ends = np.clip(np.percentile(of_class, [5, 25, 50, 75, 95]), low, high)
            boxes.hlines(place, ends[0], ends[-1], color=_COLORS[index], linewidth=1.2)
            boxes.hlines(
                place, ends[1], ends[3], color=_COLORS[index], linewidth=34 * thickness / 2
            )
            boxes.plot(ends[2], place, "o", color="white", markeredgecolor=INK, markersize=6)
    boxes.set_yticks(range(len(names)), names)
    boxes.set_ylim(len(names) - 0.5, -0.5)
    for axis, title in ((curves, "All classes"), (boxes, "By class")):
        axis.set_xscale("log")
        _plain_ticks(axis, 2.0 ** np.arange(-3, 4), low, high)
        axis.axvline(1, color=INK, linewidth=0.8, linestyle=":")
        axis.set_xlabel("height / width of the box (at the ends: this ratio or beyond)")
        style_axes(axis, title, grid="x")
        axis.xaxis.set_major_formatter("{x:g}")
    boxes.tick_params(axis="y", length=0, labelsize=11)
    boxes.set_title(
        "dot: median, bar: half, line: 90 %", loc="right", fontsize=MIN_FONT, color=MUTED
    )
    _legend(figure, curves, datasets)
    return figure


def _visible_shares(datasets: Datasets, about: About) -> Figure:
    """How much closer objects leave of the boxes, and the shares of occlusion by class."""
    figure, curves, shares = _two_panels(datasets, "How much of the objects is visible", about)
    visible = [stats.visible for stats in datasets.values()]
    _histograms(curves, datasets, visible, np.linspace(0, 1, 21))
    curves.set_xlim(0, 1)
    curves.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    curves.set_xlabel("share of the box that no closer object covers")
    curves.set_ylabel("share of the objects")
    limits = [1 - limit for limit in list(OCCLUSION_LIMITS.values())[2:]]
    _mark_limits(curves, limits, (OCCLUSION_NAMES["heavy"], "partly or not"))
    style_axes(curves, "All classes", grid="y")
    _stacked_shares(
        shares,
        datasets,
        lambda stats: stats.by_occlusion(),
        (
            f"{OCCLUSION_NAMES['none']}: {OCCLUSION_RANGES['none']}",
            "partly",
            f"heavily: {OCCLUSION_RANGES['heavy']}",
        ),
    )
    style_axes(shares, "By class", grid="")
    _legend(figure, curves, datasets)
    return figure


def _positions(datasets: Datasets, about: About) -> Figure:
    """Where in the image objects are: of one dataset each class, of several all classes."""
    if len(datasets) == 1:
        (stats,) = datasets.values()
        panels = list(zip(stats.classes, stats.coverage / stats.num_images, strict=False))
    else:
        panels = [(name, stats.coverage[-1] / stats.num_images) for name, stats in datasets.items()]
    # Classes differ by a hundredfold: each has its own scale. Datasets are compared on one.
    together = max(share.max() for _, share in panels) if len(datasets) > 1 else 0
    columns, panel_height = (4, 2.0) if len(datasets) == 1 else (2, 3.6)
    rows = -(-len(panels) // columns)
    figure = new_figure(13, 0.9 + rows * panel_height, "Positions of the objects", about)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (name, share) in zip(axes, panels, strict=False):
        # Relative coordinates, of images of the official shape.
        axis.imshow(
            share, cmap="Blues", vmin=0, vmax=together or share.max() or 1, extent=(0, 2, 1, 0)
        )
        style_axes(axis, name, grid="")
        most = f"most: {100 * share.max():.3g} %" if share.any() else "no objects"
        axis.set_title(most, loc="right", fontsize=MIN_FONT, color=MUTED)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(True)
        axis.spines[:].set_color("#bbbbbb")
    for axis in axes[len(panels) :]:
        axis.axis("off")
    most = f"{100 * together:.3g} %" if together else "the most of the class"
    figure.supxlabel(
        f"share of the images with an object at this position (white: none; darkest: {most})",
        fontsize=10.5,
        color=INK,
    )
    return figure


def _two_panels(datasets: Datasets, title: str, about: About) -> tuple[Figure, Axes, Axes]:
    names = next(iter(datasets.values())).classes
    height = 2.2 + len(names) * max(0.36, 0.26 * len(datasets))
    figure = new_figure(13, max(4.6, height), title, about)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1])
    return figure, left, right


def _thickness(datasets: Datasets) -> float:
    """Height of a bar, where rows are 1 apart and have one of every dataset."""
    return 0.8 / len(datasets)


def _offset(index: int, datasets: Datasets) -> float:
    """How far a dataset's bars are below the middle of their rows."""
    return (index - (len(datasets) - 1) / 2) * _thickness(datasets)


def _histograms(
    axis: Axes,
    datasets: Datasets,
    values: Sequence[npt.NDArray[Any]],
    edges: npt.NDArray[Any],
) -> None:
    """Draw the distribution of every dataset as shares."""
    for name, color, each in zip(datasets, _COLORS, values, strict=False):
        weights = np.full(len(each), 1 / max(1, len(each)))
        bins = edges.tolist()
        if len(datasets) == 1:
            axis.hist(each, bins, weights=weights, color=color, label=name)
        else:
            axis.hist(each, bins, weights=weights, color=color, alpha=0.12)
            axis.hist(each, bins, weights=weights, color=color, histtype="step", lw=2, label=name)
    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axis.set_ylim(0, 1.15 * max(axis.get_ylim()[1], 1e-3))


def _stacked_shares(
    axis: Axes,
    datasets: Datasets,
    measure: Callable[[DatasetStatistics], npt.NDArray[np.int64]],
    labels: Sequence[str],
) -> None:
    """Draw a bar a class and dataset that is shared out among ordered groups."""
    names = ["all classes", *next(iter(datasets.values())).classes]
    thickness = _thickness(datasets)
    for index, stats in enumerate(datasets.values()):
        counts = measure(stats)
        counts = np.vstack([counts.sum(axis=0), counts])
        shares = 100 * counts / np.maximum(counts.sum(axis=1), 1)[:, None]
        rows = np.arange(len(names)) + _offset(index, datasets)
        left = np.zeros(len(names))
        for label, (color, ink), widths in zip(labels, _ORDERED, shares.T, strict=True):
            bars = axis.barh(rows, widths, 0.92 * thickness, left=left, color=color)
            if not index:
                bars.set_label(label)
            texts = [f"{width:.0f}" if width >= 6 else "" for width in widths]
            axis.bar_label(bars, texts, label_type="center", color=ink, fontsize=MIN_FONT)
            left += widths
        for row, count in zip(rows, counts.sum(axis=1).tolist(), strict=True):
            text = f"n = {count:,}" if count else "no objects"
            axis.text(101, row, text, va="center", fontsize=MIN_FONT, color=INK)
            if len(datasets) > 1:
                axis.plot(-1.2, row, "s", color=_COLORS[index], markersize=6, clip_on=False)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlim(0, 100)
    axis.set_xlabel("% of the class's objects")
    axis.tick_params(axis="y", length=0, pad=8)
    axis.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=3,
        frameon=False,
        fontsize=MIN_FONT,
        columnspacing=1.2,
        handlelength=1.2,
    )


def _mark_limits(axis: Axes, limits: Sequence[float], names: Sequence[str]) -> None:
    """Draw lines at the limits, and the names of what lies between them at the top."""
    for limit in limits:
        axis.axvline(limit, color=INK, linewidth=1, linestyle="--")
    low, high = axis.get_xlim()
    ends = [low, *limits, high]
    is_log = axis.get_xscale() == "log"
    for name, start, stop in zip(names, ends, ends[1:], strict=False):
        place = np.sqrt(start * stop) if is_log else (start + stop) / 2
        position = axis.transAxes.inverted().transform(axis.transData.transform((place, 0)))[0]
        axis.text(
            # Not over the edges of the panel, where the last limit is close to them.
            min(max(position, 0.06), 0.94),
            0.99,
            name,
            transform=axis.transAxes,
            ha="center",
            va="top",
            fontsize=10.5,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )


def _plain_ticks(axis: Axes, ticks: npt.NDArray[Any], low: float, high: float) -> None:
    axis.set_xlim(low, high)
    axis.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")


def _legend(figure: Figure, axis: Axes, datasets: Datasets) -> None:
    """Name the datasets below the panels, if there are several."""
    if len(datasets) > 1:
        handles, labels = axis.get_legend_handles_labels()
        figure.legend(
            handles[: len(datasets)],
            labels,
            loc="outside lower center",
            ncols=2,
            frameon=False,
            fontsize=10.5,
        )
