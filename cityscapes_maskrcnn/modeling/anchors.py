"""Fit anchors to the boxes of a dataset by k-means, and measure how well anchors fit.

The intersection over union (IoU) of a box with an anchor is here that of the two centred on each
other: it compares their shapes and leaves out how well a network's grid of centres meets the box.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from tabulate import tabulate

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.object_limits import SIZE_LIMITS

Floats = npt.NDArray[np.float64]

# Boxes that refinement looks at; more of them change its result less than rounding does.
_REFINE_ON: Final = 10_000


@dataclass(frozen=True)
class Anchors:
    """The shapes of a region proposal network's anchors, as Detectron2 describes them.

    Attributes:
        sizes: square roots of areas in pixels of the network's input, one for each level of the
            feature pyramid, finest level first.
        ratios: height / width, shared by all levels.
    """

    sizes: tuple[float, ...]
    ratios: tuple[float, ...]

    def shapes(self) -> Floats:
        """Get width and height of every anchor: shape (sizes * ratios, 2), ratios run fastest."""
        sizes = np.array(self.sizes, np.float64)[:, None]
        roots = np.sqrt(np.array(self.ratios, np.float64))[None, :]
        return np.stack([sizes / roots, sizes * roots], axis=-1).reshape(-1, 2)


DETECTRON2_DEFAULT: Final = Anchors((32.0, 64.0, 128.0, 256.0, 512.0), (0.5, 1.0, 2.0))


@dataclass(frozen=True)
class AnchorFit:
    """How well anchors fit a group of boxes.

    Attributes:
        group: ``all``, or ``small``, ``medium``, ``large`` by :data:`.SIZE_LIMITS`, applied to the
            area of the box at network scale (COCO applies them to the mask in the file's image).
        boxes: how many.
        mean_iou: mean over the boxes of the IoU with the anchor that fits best.
        above_50: share of the boxes whose best IoU is more than 0.5.
        above_70: share of the boxes whose best IoU is more than 0.7.
    """

    group: str
    boxes: int
    mean_iou: float
    above_50: float
    above_70: float


def fit_anchors(
    boxes: npt.ArrayLike, num_sizes: int = 5, num_ratios: int = 3, seed: int = 0
) -> Anchors:
    """Find the sizes and ratios that fit boxes best.

    k-means over log sqrt(width * height) gives the sizes, k-means over log(height / width) the
    ratios. With logarithms a distance is the factor by which two shapes differ, on which their IoU
    depends; in pixels the clusters would go to the few large boxes, and the small ones would share
    one. Detectron2 combines every size with every ratio, which neither clustering knows, and
    k-means minimises squared distances, not IoU. So they are the start of a simplex search
    (Nelder-Mead) for the sizes and ratios with the highest mean best IoU.

    Args:
        boxes: width and height in pixels at network scale, shape (N, 2).
        num_sizes: how many sizes: one for each level of the feature pyramid.
        num_ratios: how many ratios; it is the number of anchors in every cell of a level.
        seed: of the starts of k-means, 0 to 2^32 - 1; the same seed and boxes give the same
            anchors.

    Returns:
        Both lists ascending, rounded to three significant digits (at most 0.5 %).

    Raises:
        InputError: a seed out of this range, no boxes, boxes that are not positive and finite, or
            fewer different ones than sizes or ratios.
    """
    if num_sizes < 1 or num_ratios < 1:
        raise InputError(f"anchors: {num_sizes} sizes and {num_ratios} ratios; at least 1 of each")
    if not 0 <= seed < 2**32:
        raise InputError(
            f"anchors: seed {seed}; give --seed, or the config's SEED, as a number from 0 to "
            f"{2**32 - 1}"
        )
    given = _checked(boxes)
    log_sizes = 0.5 * np.log(given[:, 0] * given[:, 1])
    log_ratios = np.log(given[:, 1] / given[:, 0])
    start = [
        _cluster(log_sizes, num_sizes, seed, "sizes"),
        _cluster(log_ratios, num_ratios, seed, "height/width ratios"),
    ]
    chosen = np.random.default_rng(seed).permutation(len(given))[:_REFINE_ON]
    refined = np.exp(_refine(given[chosen], np.concatenate(start), num_sizes))
    sizes, ratios = np.sort(refined[:num_sizes]), np.sort(refined[num_sizes:])
    return Anchors(
        sizes=tuple(float(f"{size:.3g}") for size in sizes),
        ratios=tuple(float(f"{ratio:.3g}") for ratio in ratios),
    )


def best_iou(boxes: npt.ArrayLike, anchors: Anchors) -> Floats:
    """Get the IoU of every box with the anchor that fits it best, both centred on each other.

    Args:
        boxes: width and height in pixels at network scale, shape (N, 2).
        anchors: the anchors.

    Returns:
        Shape (N,), between 0 and 1.
    """
    widths, heights = np.ascontiguousarray(np.asarray(boxes, np.float64).T)
    areas = widths * heights
    best = np.zeros(len(areas))
    # One anchor at a time: all at once would take gigabytes for a million boxes.
    for width, height in anchors.shapes():
        common = np.minimum(widths, width) * np.minimum(heights, height)
        np.maximum(best, common / (areas + width * height - common), out=best)
    return best


def measure_fit(boxes: npt.ArrayLike, anchors: Anchors) -> list[AnchorFit]:
    """Measure how well anchors fit boxes, overall and by size.

    Args:
        boxes: width and height in pixels at network scale, shape (N, 2).
        anchors: the anchors.

    Returns:
        An entry for ``all`` and one for each group of sizes that has boxes.

    Raises:
        InputError: no boxes, or boxes that are not positive and finite.
    """
    given = _checked(boxes)
    ious = best_iou(given, anchors)
    sizes = np.digitize(given[:, 0] * given[:, 1], list(SIZE_LIMITS.values())) - 1
    groups = {"all": ious, **{name: ious[sizes == i] for i, name in enumerate(SIZE_LIMITS)}}
    return [
        AnchorFit(
            group=name,
            boxes=len(chosen),
            mean_iou=float(chosen.mean()),
            above_50=float((chosen > 0.5).mean()),
            above_70=float((chosen > 0.7).mean()),
        )
        for name, chosen in groups.items()
        if len(chosen)
    ]


def format_fit(before: Sequence[AnchorFit], after: Sequence[AnchorFit]) -> str:
    """Lay out two results of :func:`measure_fit` on the same boxes as a Markdown table.

    Args:
        before: of the anchors to compare with, usually :data:`DETECTRON2_DEFAULT`.
        after: of the fitted anchors.
    """
    rows = [
        (
            new.group,
            f"{new.boxes:,}",
            f"{old.mean_iou:.3f} -> {new.mean_iou:.3f}",
            f"{100 * old.above_50:.1f} -> {100 * new.above_50:.1f}",
            f"{100 * old.above_70:.1f} -> {100 * new.above_70:.1f}",
        )
        for old, new in zip(before, after, strict=True)
    ]
    headers = ("boxes", "number", "mean best IoU", "best IoU > 0.5 (%)", "best IoU > 0.7 (%)")
    align = ("left", *["right"] * 4)
    return tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)


def read_boxes(path: str | os.PathLike[str]) -> Floats:
    """Read boxes from a text file: ``width,height`` a line, in pixels at network scale.

    A first line of words is taken as a header, empty lines are skipped.

    Returns:
        Shape (N, 2).

    Raises:
        InputError: the file cannot be read, a line is not two positive numbers, or there is none.
    """
    if not os.fspath(path):
        raise InputError("--boxes: the name is empty; give a file of width,height lines")
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), start=1) if row]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a text file of width,height lines: {error}") from error
    boxes = []
    for number, row in rows:
        try:
            width, height = map(float, row)
        except ValueError:
            if number == 1 and len(row) == 2:
                continue  # a header
            width = height = math.nan
        # Sides of less than a thousandth or more than a million pixels are no boxes.
        if not (1e-3 <= width <= 1e6 and 1e-3 <= height <= 1e6):
            raise InputError(
                f"{path}, line {number}: expected width,height, two positive numbers, found "
                f"{','.join(row)[:60]!r}"
            )
        boxes.append((width, height))
    if not boxes:
        raise InputError(f"{path}: no boxes in it; expected width,height in pixels, a box a line")
    return np.array(boxes, np.float64)


def _checked(boxes: npt.ArrayLike) -> Floats:
    """Get the boxes as an array of shape (N, 2), or raise."""
    array = np.asarray(boxes, np.float64)
    if not array.size:
        raise InputError("anchors: there are no boxes to fit them to")
    if array.ndim != 2 or array.shape[1] != 2:
        raise InputError(f"anchors: boxes must have the shape (N, 2), not {array.shape}")
    bad = np.flatnonzero(~(np.isfinite(array) & (array > 0)).all(axis=1))
    if len(bad):
        width, height = array[bad[0]]
        raise InputError(
            f"anchors: {len(bad)} of {len(array)} boxes have no area, first {width:g}x{height:g}"
        )
    return array


def _cluster(values: Floats, number: int, seed: int, what: str) -> Floats:
    """Get the centres of k-means in one dimension; shape (number,)."""
    # Imported where needed: it takes seconds, which every tool would wait for.
    from sklearn.cluster import KMeans

    # In steps of 1 %: anchors are rounded to three digits.
    distinct = len(np.unique(values.round(2)))
    if distinct < number:
        raise InputError(
            f"anchors: {len(values)} boxes have {distinct} different {what}, too few for {number} "
            "clusters; ask for fewer or give more boxes"
        )
    k_means = KMeans(number, n_init=10, random_state=seed).fit(values[:, None])
    return k_means.cluster_centers_[:, 0]


def _refine(boxes: Floats, start: Floats, num_sizes: int) -> Floats:
    """Move logarithms of sizes, then of ratios, to the nearest maximum of the mean best IoU."""
    from scipy.optimize import minimize  # here for the same reason as scikit-learn in _cluster

    def loss(logs: Floats) -> float:
        sizes, ratios = np.exp(logs[:num_sizes]), np.exp(logs[num_sizes:])
        return -float(best_iou(boxes, Anchors(tuple(sizes), tuple(ratios))).mean())

    # The first steps are of 22 %; the last ones of half a percent.
    simplex = np.vstack([start, start + 0.2 * np.eye(len(start))])
    options = {"initial_simplex": simplex, "adaptive": True, "xatol": 0.005, "fatol": 1e-4}
    return minimize(loss, start, method="Nelder-Mead", options=options).x
