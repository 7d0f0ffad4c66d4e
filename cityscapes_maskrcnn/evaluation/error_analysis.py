"""What a model gets wrong, and where: counted at IoU 0.5 and a confidence threshold.

The official score says how good a model is, not why. What is found here agrees with it: the area
under :func:`precision_recall` is the official AP50, and found instances and false positives are
the true and false positives of the official protocol above the threshold.

Words used below:

* An *object* is a ground-truth instance that the protocol evaluates: no group, at least 100 pixels.
* A *shown* prediction has a mask and at least the threshold's confidence.
* A prediction *covers* a ground truth if their IoU exceeds 0.5. Ground truth does not overlap, so
  it covers one at most.
* An object is *found* if a shown prediction of its class covers it, else *missed*.

A false positive has one cause, the first of these that applies:

1. ``duplicate``: it covers an object of its class that a more confident prediction has found.
2. ``wrong class``: it covers a ground truth of another class, be it a group or a small one.
3. ``poor mask``: its highest IoU with ground truth of its class is above 0.1 (and at most 0.5).
4. ``background``: all others.

As in the official protocol a prediction counts neither way if it covers a group or a small ground
truth of its class, or if more than half of it lies on void or such ground truth.

The *occlusion* of an object is the share of its box that closer things take. Of two things on a
street the closer one stands lower in the image, so those ground truths are taken for closer whose
box ends lower, groups and small ones among them. Poles, trees and whatever else has no instances
hide objects too but do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.evaluation.instance_ap import (
    MIN_REGION_PIXELS,
    FloatArray,
    GroundTruth,
    ImageMatches,
    IntArray,
    Prediction,
    common_pixels,
)
from cityscapes_maskrcnn.evaluation.masks import CroppedMask
from cityscapes_maskrcnn.utils.errors import InputError

IOU_THRESHOLD: Final = 0.5
POOR_MASK_IOU: Final = 0.1
CAUSES: Final = ("duplicate", "wrong class", "poor mask", "background")
# COCO's limits, in pixels of the image; what is below the second name's is the first, and so on.
SIZE_LIMITS: Final = {"small": 0, "medium": 32**2, "large": 96**2}
# The limits of the Caltech pedestrian benchmark, shares.
OCCLUSION_LIMITS: Final = {"none": 0.0, "partial": 0.01, "heavy": 0.35}

_NOT_COUNTED, _FALSE, _TRUE = -1, 0, 1  # verdicts
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
        answers: shape (G,), dtype int64: class of the most confident shown prediction that covers
            the object, right or wrong; -1 if none does.
        false_categories: shape (F,), dtype int64: predicted classes of the false positives.
        causes: shape (F,), dtype int64: indices into :data:`CAUSES`.
    """

    categories: IntArray
    areas: IntArray
    occlusions: FloatArray
    found: npt.NDArray[np.bool_]
    answers: IntArray
    false_categories: IntArray
    causes: IntArray


@dataclass(frozen=True)
class PrecisionRecall:
    """The official precision-recall curve of a class at IoU 0.5.

    Attributes:
        confidences: shape (N,), ascending: a point for every different confidence, the predictions
            from there upwards being counted. The last is infinite: no prediction, recall 0 and, by
            convention, precision 1.
        recall: shape (N,), descending, 0 to 1.
        precision: shape (N,), 0 to 1.
    """

    confidences: FloatArray
    recall: FloatArray
    precision: FloatArray

    def area(self) -> float:
        """Integrate with the official step rule: equals the official AP50 to the last bit."""
        padded = np.concatenate([self.recall[:1], self.recall, [0.0]])
        return float(np.dot(self.precision, np.convolve(padded, [-0.5, 0, 0.5], "valid")))


@dataclass(frozen=True)
class ErrorSummary:
    """The errors of all images.

    Attributes:
        confidence_threshold: lowest confidence of a shown prediction.
        curves: one per class; None for a class without objects.
        confusion: shape (9, 9), dtype int64, rows truth, columns prediction, 0 to 7 the classes.
            An object counts once, in the column of its :attr:`ImageErrors.answers`, in column 8 if
            nothing covers it. Row 8 has the false positives that cover no ground truth: poor masks
            and background.
        false_positives: shape (8, 4), dtype int64: by predicted class and :data:`CAUSES`.
        by_size: shape (8, 3, 2), dtype int64: by class and :data:`SIZE_LIMITS`, how many objects
            there are and how many of them are missed.
        by_occlusion: the same by :data:`OCCLUSION_LIMITS`.
    """

    confidence_threshold: float
    curves: tuple[PrecisionRecall | None, ...]
    confusion: IntArray
    false_positives: IntArray
    by_size: IntArray
    by_occlusion: IntArray


def analyse_image(
    truth: GroundTruth,
    predictions: Sequence[Prediction],
    matches: ImageMatches,
    confidence_threshold: float,
) -> ImageErrors:
    """Find the errors in one image.

    Only the masks of false positives are compared with the ground truth once more; what the others
    cover is in ``matches``.

    Args:
        truth: of the image.
        predictions: of the image.
        matches: what :func:`.instance_ap.match_image` gives for the two.
        confidence_threshold: lowest confidence of a prediction that is looked at.

    Returns:
        The errors.

    Raises:
        InputError: the threshold is NaN.
    """
    if np.isnan(confidence_threshold):
        raise InputError("the confidence threshold of the error analysis is NaN")
    masks = [prediction.mask for prediction in predictions if prediction.mask.area()]
    verdicts = _verdicts(matches)
    shown = matches.confidences >= confidence_threshold
    covers = matches.overlaps > IOU_THRESHOLD
    false = np.flatnonzero(shown & (verdicts == _FALSE))

    # What each shown prediction covers, in any class: index of the ground truth, -1 for none.
    covered = np.where(covers, matches.targets, -1)
    is_duplicate = covers[false]
    others = false[~is_duplicate]
    covered[others] = _covered_by(truth, [masks[index] for index in others.tolist()])
    causes = np.select(
        [is_duplicate, covered[false] >= 0, matches.overlaps[false] > POOR_MASK_IOU],
        [_DUPLICATE, _WRONG_CLASS, _POOR_MASK],
        _BACKGROUND,
    )

    answers = np.full(len(truth.ids), -1, dtype=np.int64)
    counted = np.flatnonzero(shown & (verdicts != _NOT_COUNTED) & (covered >= 0))
    # Ascending, so that of several predictions for one object the most confident is written last.
    order = counted[np.argsort(-matches.confidences[counted], kind="stable")][::-1]
    answers[covered[order]] = matches.categories[order]
    found = np.zeros(len(truth.ids), dtype=bool)
    found[matches.targets[shown & (verdicts == _TRUE)]] = True

    objects = np.flatnonzero(~truth.is_group & (truth.areas >= MIN_REGION_PIXELS))
    return ImageErrors(
        categories=truth.categories[objects],
        areas=truth.areas[objects],
        occlusions=_occlusions(truth, objects),
        found=found[objects],
        answers=answers[objects],
        false_categories=matches.categories[false],
        causes=causes.astype(np.int64),
    )


def precision_recall(matches: Sequence[ImageMatches]) -> tuple[PrecisionRecall | None, ...]:
    """Draw the official precision-recall curve of every class at IoU 0.5.

    Args:
        matches: one per image.

    Returns:
        One per class; None for a class without objects.
    """
    if not matches:
        return (None,) * _NUM_CLASSES
    num_objects = np.stack([image.num_ground_truth for image in matches]).sum(axis=0)
    verdicts = np.concatenate([_verdicts(image) for image in matches])
    categories = np.concatenate([image.categories for image in matches])
    confidences = np.concatenate([image.confidences for image in matches])
    curves: list[PrecisionRecall | None] = []
    for category in range(_NUM_CLASSES):
        mine = (categories == category) & (verdicts != _NOT_COUNTED)
        if num_objects[category]:
            is_true = verdicts[mine] == _TRUE
            curves.append(_curve(confidences[mine], is_true, int(num_objects[category])))
        else:
            curves.append(None)
    return tuple(curves)


def summarise_errors(
    matches: Sequence[ImageMatches], errors: Sequence[ImageErrors], confidence_threshold: float
) -> ErrorSummary:
    """Add up the errors of all images.

    Args:
        matches: one per image.
        errors: one per image, in the same order, found with ``confidence_threshold``.
        confidence_threshold: lowest confidence of a shown prediction.

    Returns:
        The sums, and the curves, which do not depend on the threshold.
    """

    def joined(name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        parts = [getattr(image, name) for image in errors]
        return np.concatenate([*parts, np.zeros(0, dtype)]).astype(dtype)

    categories, false_categories = joined("categories", int), joined("false_categories", int)
    causes, missed = joined("causes", int), ~joined("found", bool)
    confusion = np.zeros((_NUM_CLASSES + 1, _NUM_CLASSES + 1), dtype=np.int64)
    # Index -1, nothing covers the object, is the last column.
    np.add.at(confusion, (categories, joined("answers", int)), 1)
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
        confidence_threshold=confidence_threshold,
        curves=precision_recall(matches),
        confusion=confusion,
        false_positives=false_positives,
        by_size=count(joined("areas", int), SIZE_LIMITS),
        by_occlusion=count(joined("occlusions", float), OCCLUSION_LIMITS),
    )


def _verdicts(matches: ImageMatches) -> IntArray:
    """Judge every prediction of an image as the official protocol does at IoU 0.5."""
    covers = matches.overlaps > IOU_THRESHOLD
    verdicts = np.where(covers | (matches.ignored > IOU_THRESHOLD), _NOT_COUNTED, _FALSE)
    on_object = np.flatnonzero(covers & (matches.targets >= 0))
    verdicts[on_object] = _FALSE
    # Descending, so that of several predictions for one object the most confident comes first.
    order = on_object[np.argsort(-matches.confidences[on_object], kind="stable")]
    verdicts[order[np.unique(matches.targets[order], return_index=True)[1]]] = _TRUE
    return verdicts


def _covered_by(truth: GroundTruth, masks: Sequence[CroppedMask]) -> IntArray:
    """Index of the ground truth of any class that each mask covers, -1 where there is none."""
    areas = np.array([mask.area() for mask in masks], dtype=np.int64)
    common = common_pixels(truth, masks)
    overlaps = common / (truth.areas + areas[:, None] - common)
    # A first column stands for no ground truth: it wins where no other exceeds the threshold.
    overlaps = np.concatenate([np.full((len(masks), 1), IOU_THRESHOLD), overlaps], axis=1)
    return overlaps.argmax(axis=1) - 1


def _occlusions(truth: GroundTruth, objects: IntArray) -> FloatArray:
    """Share of the box of each of some instances, shape (G,), that closer ones take."""
    boxes = truth.boxes[objects]
    sizes = boxes[:, 2:] - boxes[:, :2]
    filled = [
        CroppedMask(x0, y0, np.ones((height, width), dtype=bool))
        for (x0, y0), (width, height) in zip(boxes[:, :2].tolist(), sizes.tolist(), strict=True)
    ]
    is_closer = truth.boxes[:, 3] > boxes[:, 3:]
    return (common_pixels(truth, filled) * is_closer).sum(axis=1) / sizes.prod(axis=1)


def _curve(
    confidences: FloatArray, is_true: npt.NDArray[np.bool_], num_objects: int
) -> PrecisionRecall:
    order = np.argsort(confidences, kind="stable")
    points, first = np.unique(confidences[order], return_index=True)
    true_below = np.concatenate([[0.0], np.cumsum(is_true[order])])[first]
    true_positives = float(np.count_nonzero(is_true)) - true_below
    return PrecisionRecall(
        confidences=np.append(points, np.inf),
        recall=np.append(true_positives / num_objects, 0.0),
        precision=np.append(true_positives / (len(confidences) - first), 1.0),
    )
