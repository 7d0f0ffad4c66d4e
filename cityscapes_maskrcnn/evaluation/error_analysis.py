"""Analysis of a model's errors, at IoU 0.5 and a score threshold.

The official score says how good a model is, not why. What is found here agrees with it: the area
under its curves is the official AP50, and found instances and false positives are
the true and false positives of the official protocol above the threshold.

Words used below:

* An *object* is a ground-truth instance that the protocol evaluates: no group, at least 100 pixels.
* A *detection* is a prediction with a mask and at least the threshold's score.
* A detection *matches* a ground truth if their IoU exceeds 0.5. Ground truth does not overlap, so
  it matches one at most.
* An object is *found* if a detection of its class matches it, else *missed*.

A false positive has one cause, the first of these that applies:

1. ``duplicate``: it matches an object of its class that a detection of a higher score has found.
2. ``wrong class``: it matches a ground truth of another class, be it a group or a small one.
3. ``poor mask``: its highest IoU with ground truth of its class is above 0.1 (and at most 0.5).
4. ``background``: all others.

As in the official protocol a prediction counts neither way if it matches a group or a small ground
truth of its class, or if more than half of it lies on void or such ground truth.

The *occlusion* of an object is the share of its box that closer things take. Of two things on a
street the closer one stands lower in the image, so those ground truths are taken for closer whose
box ends lower, groups and small ones among them. Poles, trees and other things without instances
hide objects too but do not count.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.evaluation.instance_ap import (
    ALL_CATEGORIES,
    FALSE,
    NOT_COUNTED,
    TRUE,
    FloatArray,
    GroundTruth,
    ImageMatches,
    IntArray,
    Prediction,
    common_pixels,
    judge_predictions,
    precision_recall_curves,
)
from cityscapes_maskrcnn.evaluation.masks import mask_from_bitmap
from cityscapes_maskrcnn.utils.error_summary import CAUSES, ErrorSummary
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import csv_text, write_text
from cityscapes_maskrcnn.utils.object_limits import OCCLUSION_LIMITS, SIZE_LIMITS

IOU_THRESHOLD: Final = 0.5
POOR_MASK_IOU: Final = 0.1
PER_CLASS_FILE: Final = "per_class.csv"
# Not "missed" or "background", which look at the classes.
UNMATCHED: Final = "unmatched"

_DUPLICATE, _WRONG_CLASS, _POOR_MASK, _BACKGROUND = range(len(CAUSES))
_NUM_CLASSES: Final = len(THING_CLASSES)


@dataclass(frozen=True)
class ImageErrors:
    """What is kept of an image: a few numbers for each of its G objects and F false positives.

    Attributes:
        categories: shape (G,), dtype int64: contiguous class ids of the objects.
        areas: shape (G,), dtype int64: pixels.
        occlusions: shape (G,), dtype float64: share of the object's box taken by closer things.
        found: shape (G,), dtype bool.
        pred_categories: shape (G,), dtype int64: the object's own class if it is found; else the
            class of the detection of the highest score that matches it; -1 if none does.
        false_categories: shape (F,), dtype int64: predicted classes of the false positives.
        causes: shape (F,), dtype int64: indices into :data:`CAUSES`.
    """

    categories: IntArray
    areas: IntArray
    occlusions: FloatArray
    found: npt.NDArray[np.bool_]
    pred_categories: IntArray
    false_categories: IntArray
    causes: IntArray


def analyse_image(
    gt: GroundTruth,
    predictions: Sequence[Prediction],
    matches: ImageMatches,
    score_thresh: float,
) -> ImageErrors:
    """Find the errors in one image.

    Only the masks of false positives are compared with the ground truth once more; what the others
    match is in ``matches``.

    Args:
        gt: of the image.
        predictions: of the image.
        matches: result of :func:`.instance_ap.match_image` for the two.
        score_thresh: lowest score of a detection.

    Raises:
        InputError: the threshold is NaN.
    """
    if np.isnan(score_thresh):
        raise InputError("the score threshold of the error analysis is NaN")
    masks = [prediction.mask for prediction in predictions if prediction.mask.area()]
    verdicts = judge_predictions(matches, IOU_THRESHOLD)
    is_detection = matches.confidences >= score_thresh
    is_match = matches.overlaps > IOU_THRESHOLD
    false = np.flatnonzero(is_detection & (verdicts == FALSE))

    # The ground truth, of any class, that each detection matches: its index, -1 for none.
    matched = np.where(is_match, matches.targets, -1)
    is_duplicate = is_match[false]
    others = false[~is_duplicate]
    other_masks = [masks[index] for index in others.tolist()]
    areas = np.array([mask.area() for mask in other_masks], dtype=np.int64)
    common = common_pixels(gt, other_masks)
    overlaps = common / (gt.areas + areas[:, None] - common)
    # A first column stands for no ground truth: it wins where no other exceeds the threshold.
    overlaps = np.concatenate([np.full((len(others), 1), IOU_THRESHOLD), overlaps], axis=1)
    matched[others] = overlaps.argmax(axis=1) - 1
    causes = np.select(
        [is_duplicate, matched[false] >= 0, matches.overlaps[false] > POOR_MASK_IOU],
        [_DUPLICATE, _WRONG_CLASS, _POOR_MASK],
        _BACKGROUND,
    )

    pred_categories = np.full(len(gt.ids), -1, dtype=np.int64)
    counted = np.flatnonzero(is_detection & (verdicts != NOT_COUNTED) & (matched >= 0))
    # Ascending, so that of several detections of one object the best score is written last.
    order = counted[np.argsort(-matches.confidences[counted], kind="stable")][::-1]
    pred_categories[matched[order]] = matches.categories[order]
    found = np.zeros(len(gt.ids), dtype=bool)
    found[matches.targets[is_detection & (verdicts == TRUE)]] = True
    # What is found counts as such, even if a detection of another class has a higher score.
    pred_categories[found] = gt.categories[found]

    objects = np.flatnonzero(gt.is_object)
    return ImageErrors(
        categories=gt.categories[objects],
        areas=gt.areas[objects],
        occlusions=_occlusions(gt, objects),
        found=found[objects],
        pred_categories=pred_categories[objects],
        false_categories=matches.categories[false],
        causes=causes.astype(np.int64),
    )


def summarise_errors(
    matches: Sequence[ImageMatches], errors: Sequence[ImageErrors], score_thresh: float
) -> ErrorSummary:
    """Add up the errors of all images.

    Args:
        matches: one per image.
        errors: one per image, in the same order, found with ``score_thresh``.
        score_thresh: lowest score of a detection.

    Returns:
        The sums, and the curves, which do not depend on the threshold.
    """

    def joined(name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        parts = [getattr(image, name) for image in errors]
        return np.concatenate([*parts, np.zeros(0, dtype)]).astype(dtype)

    categories, false_categories = joined("categories", int), joined("false_categories", int)
    causes, missed = joined("causes", int), ~joined("found", bool)
    confusion = np.zeros((_NUM_CLASSES + 1, _NUM_CLASSES + 1), dtype=np.int64)
    # Index -1, nothing matches the object, is the last column.
    np.add.at(confusion, (categories, joined("pred_categories", int)), 1)
    on_nothing = np.isin(causes, [_POOR_MASK, _BACKGROUND])
    np.add.at(confusion[-1], false_categories[on_nothing], 1)
    false_positives = np.zeros((_NUM_CLASSES, len(CAUSES)), dtype=np.int64)
    np.add.at(false_positives, (false_categories, causes), 1)

    def count(values: npt.NDArray[Any], limits: dict[str, Any]) -> IntArray:
        table = np.zeros((_NUM_CLASSES, len(limits), 2), dtype=np.int64)
        bins = np.digitize(values, list(limits.values())) - 1
        np.add.at(table[:, :, 0], (categories, bins), 1)
        np.add.at(table[:, :, 1], (categories[missed], bins[missed]), 1)
        return table

    return ErrorSummary(
        score_thresh=score_thresh,
        curves=precision_recall_curves(matches, IOU_THRESHOLD),
        confusion=confusion,
        false_positives=false_positives,
        by_size=count(joined("areas", int), SIZE_LIMITS),
        by_occlusion=count(joined("occlusions", float), OCCLUSION_LIMITS),
    )


def write_error_tables(
    folder: str | os.PathLike[str],
    summary: ErrorSummary,
    ap: FloatArray,
    categories: Sequence[int] = ALL_CATEGORIES,
) -> None:
    """Write the tables.

    * ``per_class.csv``: official AP and AP50 in percent; found and missed objects, false
      positives, precision and recall of the detections above ``confidence_threshold``.
    * ``precision_recall.csv``: the curves, a line per class and point.
    * ``confusion.csv``: rows ground truth (``truth``), columns prediction; found objects are on
      the diagonal, missed ones beside it, by the class of the detection that matches them;
      ``unmatched`` are objects that nothing matches, and detections that match nothing, of any
      class.
    * ``false_positives.csv``: by predicted class and cause.
    * ``misses.csv``: objects and missed ones by class and size, by class and occlusion.

    Args:
        folder: created when missing.
        summary: the errors of all images.
        ap: of the same images, from :func:`.instance_ap.average_precision`.
        categories: the classes to write: contiguous class ids, 0 to 7.

    Raises:
        InputError: a file cannot be written.
    """
    chosen = list(categories)
    classes = [THING_CLASSES[category] for category in chosen]
    ap, false_positives = ap[chosen], summary.false_positives[chosen]
    num_objects, num_missed = summary.by_size[chosen].sum(axis=1).T
    num_found, num_false = num_objects - num_missed, false_positives.sum(axis=1)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        precision, recall = num_found / (num_found + num_false), num_found / num_objects
    per_class: dict[str, Iterable[Any]] = {
        "class": classes,
        "AP": 100 * ap.mean(axis=1),
        "AP50": 100 * ap[:, 0],
        "confidence_threshold": [summary.score_thresh] * len(classes),
        "objects": num_objects,
        "found": num_found,
        "missed": num_missed,
        "false_positives": num_false,
        "precision": precision,
        "recall": recall,
    }
    curves = [
        [name, *point]
        for name, category in zip(classes, chosen, strict=True)
        if (curve := summary.curves[category]) is not None
        for point in zip(curve.confidences, curve.recall, curve.precision, strict=True)
    ]
    misses = [
        [name, kind, group, *counts]
        for kind, limits, table in [
            ("size", SIZE_LIMITS, summary.by_size),
            ("occlusion", OCCLUSION_LIMITS, summary.by_occlusion),
        ]
        for name, groups in zip(classes, table[chosen], strict=True)
        for group, counts in zip(limits, groups, strict=True)
    ]
    names = [*classes, UNMATCHED]
    with_unmatched = [*chosen, _NUM_CLASSES]
    counts = summary.confusion[np.ix_(with_unmatched, with_unmatched)]
    confusion = np.column_stack([np.array(names, dtype=object), counts])
    causes = np.column_stack([np.array(classes, dtype=object), false_positives])
    tables: dict[str, tuple[Iterable[str], Iterable[Iterable[Any]]]] = {
        PER_CLASS_FILE: (per_class, zip(*per_class.values(), strict=True)),
        "precision_recall.csv": (["class", "confidence", "recall", "precision"], curves),
        "confusion.csv": (["truth", *names], confusion),
        "false_positives.csv": (["class", *CAUSES], causes),
        "misses.csv": (["class", "by", "group", "objects", "missed"], misses),
    }
    for file_name, (header, rows) in tables.items():
        write_text(Path(folder, file_name), csv_text(header, rows))


def _occlusions(gt: GroundTruth, objects: IntArray) -> FloatArray:
    """Share of the box of each of some instances, shape (G,), that closer ones take."""
    boxes = gt.boxes[objects]
    sizes = boxes[:, 2:] - boxes[:, :2]
    filled = [
        mask_from_bitmap(
            np.ones((y1 - y0, x1 - x0), dtype=bool), x0=x0, y0=y0, height=gt.height, width=gt.width
        )
        for x0, y0, x1, y1 in boxes.tolist()
    ]
    is_closer = gt.boxes[:, 3] > boxes[:, 3:]
    return (common_pixels(gt, filled) * is_closer).sum(axis=1) / sizes.prod(axis=1)
