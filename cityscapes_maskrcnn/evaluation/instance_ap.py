"""The official Cityscapes instance score, computed from masks in memory.

The results equal those of ``evaluateImgLists`` in ``cityscapesscripts``'
``evaluation/evalInstanceLevelSemanticLabeling.py``, bit for bit (without distances, which only the
benchmark server has). That function loops over images, overlaps, classes, ground truth and
predictions with full-frame masks. Here, ground truth and predictions are runs of pixels, and one
pass over the runs counts the overlap of every prediction with everything (:func:`match_image`).
The score then needs only five numbers per prediction.

One difference: where a class has ground truth and predictions but every prediction lies on ignored
regions, the official function stops with an IndexError; here the AP is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.data.labels import (
    CONTIGUOUS_TO_ID,
    ID_TO_CONTIGUOUS,
    LABELS,
    THING_CLASSES,
    VOID_IDS,
)
from cityscapes_maskrcnn.evaluation.masks import RunMask, coco_rles
from cityscapes_maskrcnn.utils.error_summary import PrecisionRecall
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.object_limits import MIN_REGION_PIXELS

PROTOCOL: Final = "Cityscapes instance protocol (official)"
# Written like the official one: another way to 0.55, 0.6, ... has other last bits.
OVERLAPS: Final[tuple[float, ...]] = tuple(np.arange(0.5, 1.0, 0.05).tolist())
ALL_CATEGORIES: Final[tuple[int, ...]] = tuple(range(len(THING_CLASSES)))
# A pixel of the ground truth holds a label id below this, and label id * 1000 + n above it.
FIRST_INSTANCE_ID: Final = 1000

NOT_COUNTED, FALSE, TRUE = -1, 0, 1  # verdicts on predictions
_OTHER, _VOID, _FIRST = 0, 1, 2  # codes of the pixels in GroundTruth.run_codes

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GroundTruth:
    """One image's ground truth, ready for matching.

    Attributes:
        height: pixels.
        width: pixels.
        run_starts: shape (R,), integers: positions (``x * height + y``, see :mod:`.masks`) where
            runs of pixels with the same code begin, ascending from 0.
        run_codes: shape (R,), dtype uint8 (uint16 beyond 254 instances): 2 + k where instance k is,
            1 on void, 0 elsewhere.
        ids: shape (K,), dtype int64: pixel value of every instance or group of the 8 classes,
            ascending. Below 1000 it is a group.
        categories: shape (K,), dtype int64: contiguous class ids, 0 to 7.
        areas: shape (K,), dtype int64: pixels.
        boxes: shape (K, 4), dtype int64: (x0, y0, x1, y1), the last two exclusive.
        rles: K compressed run-lengths of the full frame, as COCO has them in ``counts``.
    """

    height: int
    width: int
    run_starts: npt.NDArray[np.integer[Any]]
    run_codes: npt.NDArray[np.unsignedinteger[Any]]
    ids: IntArray
    categories: IntArray
    areas: IntArray
    boxes: IntArray
    rles: tuple[bytes, ...]

    @property
    def is_group(self) -> npt.NDArray[np.bool_]:
        """Which of the K are groups: several objects annotated as one."""
        return self.ids < FIRST_INSTANCE_ID

    @property
    def is_object(self) -> npt.NDArray[np.bool_]:
        """Which of the K the protocol evaluates: no groups, and none that is too small."""
        return ~self.is_group & (self.areas >= MIN_REGION_PIXELS)

    def instance_mask(self, index: int) -> RunMask:
        """Get the mask of instance ``index`` (0 to K - 1)."""
        runs = np.flatnonzero(self.run_codes == _FIRST + index)
        ends = np.append(self.run_starts, self.height * self.width)[runs + 1]
        return RunMask(
            starts=self.run_starts[runs].astype(np.int64),
            ends=ends.astype(np.int64),
            height=self.height,
            width=self.width,
        )


@dataclass(frozen=True)
class Prediction:
    """One predicted instance.

    Attributes:
        mask: mask in the image's frame; an empty one is not counted.
        category: contiguous class id, 0 to 7.
        confidence: any number except NaN; equal ones give one point of the precision-recall curve.
        box: (x0, y0, x1, y1) in pixels as predicted, for box AP; None: the mask's box.
    """

    mask: RunMask
    category: int
    confidence: float
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class ImageMatches:
    """The part of an image that the score needs: five numbers for each of its P predictions.

    Attributes:
        categories: shape (P,), dtype int64: contiguous class ids.
        confidences: shape (P,), dtype float64.
        overlaps: shape (P,), dtype float64: highest intersection over union with any ground truth
            of its class, including groups and small objects. Above 0.5 there is only one.
        targets: shape (P,), dtype int64: index of that ground truth; -1 if it is not evaluated
            (a group, or below 100 pixels) or there is none.
        ignored: shape (P,), dtype float64: fraction of the prediction on void, groups and small
            ground truth of its class.
        num_ground_truth: shape (8,), dtype int64: number of evaluated objects of each class.
    """

    categories: IntArray
    confidences: FloatArray
    overlaps: FloatArray
    targets: IntArray
    ignored: FloatArray
    num_ground_truth: IntArray


def ground_truth(instance_ids: npt.NDArray[Any]) -> GroundTruth:
    """Get the instances of an image from the pixels of its ``*_gtFine_instanceIds.png``.

    Args:
        instance_ids: shape (height, width), an unsigned integer dtype of up to 16 bits.

    Returns:
        The instances and groups of the 8 classes, and void. Only label ids count as void: a pixel
        of an ignored class with instances (29001, a caravan) is not void, as in the official code.

    Raises:
        InputError: the label id of a pixel is not an official one.
    """
    height, width = instance_ids.shape
    # A label image is a few ten thousand runs of equal pixels: count and translate these, not the
    # two million pixels. A run goes down its column and on in the next.
    # OpenCV's transpose takes a tenth of NumPy's time.
    columns = cv2.transpose(instance_ids).reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(columns[1:] != columns[:-1]) + 1])
    lengths = np.diff(starts, append=height * width)
    values = columns[starts].astype(np.int64)
    present, run_to_present = np.unique(values, return_inverse=True)
    areas = np.bincount(run_to_present, weights=lengths, minlength=len(present)).astype(np.int64)

    label_ids = np.where(present < FIRST_INSTANCE_ID, present, present // 1000)
    unknown = present[~np.isin(label_ids, [label.id for label in LABELS])]
    if len(unknown):
        raise InputError(
            f"ground truth holds the instance id {unknown[0]}, which belongs to no official label"
        )
    chosen = np.flatnonzero(np.isin(label_ids, CONTIGUOUS_TO_ID))
    code_of = np.full(len(present), _OTHER, dtype=np.uint8 if len(chosen) < 255 else np.uint16)
    code_of[np.isin(present, VOID_IDS)] = _VOID
    code_of[chosen] = _FIRST + np.arange(len(chosen))
    run_codes: npt.NDArray[Any] = code_of[run_to_present]

    # Most runs are of other classes: neighbours of the same code are one.
    first = np.flatnonzero(np.append(True, run_codes[1:] != run_codes[:-1]))
    starts, run_codes = starts[first], run_codes[first]
    gt = GroundTruth(
        height=height,
        width=width,
        run_starts=starts,
        run_codes=run_codes,
        ids=present[chosen],
        categories=np.array([ID_TO_CONTIGUOUS[i] for i in label_ids[chosen].tolist()], np.int64),
        areas=areas[chosen],
        boxes=np.zeros((0, 4), dtype=np.int64),
        rles=(),
    )
    masks = [gt.instance_mask(index) for index in range(len(chosen))]
    return replace(
        gt,
        boxes=np.array([mask.box() for mask in masks], dtype=np.int64).reshape(-1, 4),
        rles=tuple(rle["counts"] for rle in coco_rles(masks)),
    )


def match_image(gt: GroundTruth, predictions: Sequence[Prediction]) -> ImageMatches:
    """Match every prediction of an image with the ground truth of its class.

    Args:
        gt: ground truth of the image.
        predictions: predictions for the image, in any order; those with an empty mask are ignored.

    Returns:
        The matches, where P is the number of predictions with a mask.

    Raises:
        InputError: a confidence is NaN, so that the predictions have no order; a class is not one
            of the 8; or a mask has another size than the ground truth.
    """
    kept = [prediction for prediction in predictions if len(prediction.mask.starts)]
    categories = np.array([prediction.category for prediction in kept], dtype=np.int64)
    unknown = categories[(categories < 0) | (categories >= len(THING_CLASSES))]
    if len(unknown):
        raise InputError(
            f"a prediction has the class {unknown[0]}; the 8 Cityscapes classes are 0 to 7"
        )
    confidences = np.array([prediction.confidence for prediction in kept], dtype=np.float64)
    if np.isnan(confidences).any():
        raise InputError("a prediction's confidence is NaN: it cannot be ranked")
    counts = _count_codes(gt, [prediction.mask for prediction in kept])
    areas = counts.sum(axis=1)

    same_class = categories[:, None] == gt.categories[None, :]
    intersections = counts[:, _FIRST:] * same_class
    overlaps = intersections / (gt.areas + areas[:, None] - intersections)
    # A last column stands for "no ground truth at all".
    overlaps = np.concatenate([overlaps, np.zeros((len(kept), 1))], axis=1)
    best = overlaps.argmax(axis=1)
    best_overlap = np.take_along_axis(overlaps, best[:, None], axis=1)[:, 0]
    # The official code counts a group that is also small twice.
    times_ignored = gt.is_group.astype(np.int64) + (gt.areas < MIN_REGION_PIXELS)
    ignored_pixels = counts[:, _VOID] + intersections @ times_ignored
    is_target = np.append(gt.is_object, False)[best] & (best_overlap > 0)
    return ImageMatches(
        categories=categories,
        confidences=confidences,
        overlaps=best_overlap,
        targets=np.where(is_target, best, -1),
        ignored=ignored_pixels / areas,
        num_ground_truth=np.bincount(gt.categories[gt.is_object], minlength=len(THING_CLASSES)),
    )


def common_pixels(gt: GroundTruth, masks: Sequence[RunMask]) -> IntArray:
    """Count the pixels that masks share with every ground truth of an image.

    Args:
        gt: ground truth of the image.
        masks: N masks in its frame; they may overlap.

    Returns:
        Shape (N, K).

    Raises:
        InputError: a mask has another size.
    """
    return _count_codes(gt, masks)[:, _FIRST:]


def _count_codes(gt: GroundTruth, masks: Sequence[RunMask]) -> IntArray:
    """Count the pixels of every code of :class:`GroundTruth` under N masks, shape (N, 2 + K)."""
    for mask in masks:
        if (mask.height, mask.width) != (gt.height, gt.width):
            raise InputError(
                f"a mask is {mask.height} x {mask.width} (height x width), its image"
                f" {gt.height} x {gt.width}"
            )
    num_codes = _FIRST + len(gt.ids)
    none = np.zeros(0, dtype=np.int64)
    starts = np.concatenate([none, *(mask.starts for mask in masks)])
    ends = np.concatenate([none, *(mask.ends for mask in masks)])
    owner = np.repeat(np.arange(len(masks)), [len(mask.starts) for mask in masks])
    # Cut the masks' runs at the borders of the ground truth's.
    first = np.searchsorted(gt.run_starts, starts, side="right") - 1
    pieces = np.searchsorted(gt.run_starts, ends, side="left") - first
    piece_ends = np.cumsum(pieces)
    under = np.arange(pieces.sum()) - np.repeat(piece_ends - pieces - first, pieces)
    begin = gt.run_starts[under].astype(np.int64)
    begin[piece_ends - pieces] = starts
    end = np.append(begin[1:], 0)
    end[piece_ends - 1] = ends
    keys = np.repeat(owner * num_codes, pieces) + gt.run_codes[under]
    counts = np.bincount(keys, weights=end - begin, minlength=len(masks) * num_codes)
    return counts.astype(np.int64).reshape(len(masks), num_codes)


def judge_predictions(matches: ImageMatches, overlap: float) -> IntArray:
    """Judge every prediction of an image as the official protocol does at one IoU threshold.

    Returns:
        Shape (P,): :data:`TRUE` for the prediction with the highest score among those whose IoU
        with an evaluated ground truth is above the threshold; :data:`NOT_COUNTED` for one on
        ignored regions (its IoU with a group or a small ground truth, or its fraction on these and
        on void, is above the threshold); :data:`FALSE` for the others.
    """
    is_match = matches.overlaps > overlap
    verdicts = np.where(is_match | (matches.ignored > overlap), NOT_COUNTED, FALSE)
    on_object = np.flatnonzero(is_match & (matches.targets >= 0))
    verdicts[on_object] = FALSE
    # Descending, so that of several predictions for one target the best comes first.
    order = on_object[np.argsort(-matches.confidences[on_object], kind="stable")]
    verdicts[order[np.unique(matches.targets[order], return_index=True)[1]]] = TRUE
    return verdicts


def precision_recall_curves(
    matches: Sequence[ImageMatches], overlap: float
) -> tuple[PrecisionRecall | None, ...]:
    """Compute the curve of every class at one IoU threshold; None for one without ground truth.

    Args:
        matches: one per image, in any order.
        overlap: one of :data:`OVERLAPS`.
    """
    if not matches:
        return (None,) * len(THING_CLASSES)
    num_ground_truth = np.sum([image.num_ground_truth for image in matches], axis=0).tolist()
    verdicts = np.concatenate([judge_predictions(image, overlap) for image in matches])
    categories = np.concatenate([image.categories for image in matches])
    confidences = np.concatenate([image.confidences for image in matches])
    curves: list[PrecisionRecall | None] = []
    for category, number in enumerate(num_ground_truth):
        counted = (categories == category) & (verdicts != NOT_COUNTED)
        curve = _curve(confidences[counted], verdicts[counted] == TRUE, number) if number else None
        curves.append(curve)
    return tuple(curves)


def _curve(
    confidences: FloatArray, is_true: npt.NDArray[np.bool_], num_ground_truth: int
) -> PrecisionRecall:
    """Draw a curve from the predictions that count, in the official order of operations."""
    order = np.argsort(confidences, kind="stable")
    points, first = np.unique(confidences[order], return_index=True)
    true_below = np.concatenate([[0.0], np.cumsum(is_true[order])])[first]
    true_positives = float(np.count_nonzero(is_true)) - true_below
    return PrecisionRecall(
        confidences=np.append(points, np.inf),
        recall=np.append(true_positives / num_ground_truth, 0.0),
        precision=np.append(true_positives / (len(confidences) - first), 1.0),
    )


def average_precision(matches: Sequence[ImageMatches]) -> FloatArray:
    """Compute the official average precision of every class at every overlap.

    Args:
        matches: one per image, in any order.

    Returns:
        Shape (8, 10), dtype float64: fractions by class and by :data:`OVERLAPS`; NaN for a class
        without evaluated ground truth, 0 for a class with ground truth but no prediction.
    """
    by_overlap = [precision_recall_curves(matches, overlap) for overlap in OVERLAPS]
    by_class = zip(*by_overlap, strict=True)
    # Not an array's transpose: means over another memory layout have other last bits.
    return np.array(
        [[np.nan if curve is None else curve.area() for curve in row] for row in by_class]
    )


def averages(ap: FloatArray, categories: Sequence[int] = ALL_CATEGORIES) -> dict[str, Any]:
    """Average over classes and overlaps as the official result file does.

    Args:
        ap: from :func:`average_precision`.
        categories: the classes to average over: contiguous class ids, 0 to 7. The official script
            gives the same with these in its ``instLabels``.

    Returns:
        The official ``averages``, as fractions: ``{"allAp": float, "allAp50%": float,
        "classes": {name: {"ap": float, "ap50%": float}}}``. A class without ground truth is NaN
        and not part of the means; if all classes are NaN, the means are too.
    """
    ap = ap[list(categories)]
    anything = not np.isnan(ap).all()
    return {
        "allAp": float(np.nanmean(ap)) if anything else float("nan"),
        "allAp50%": float(np.nanmean(ap[:, 0])) if anything else float("nan"),
        "classes": {
            THING_CLASSES[category]: {"ap": float(np.mean(row)), "ap50%": float(row[0])}
            for category, row in zip(categories, ap, strict=True)
        },
    }


def format_averages(official: Mapping[str, Any]) -> str:
    """Format the result of :func:`averages` as a table in percent that names its protocol."""
    rows = [(name, scores["ap"], scores["ap50%"]) for name, scores in official["classes"].items()]
    rows.append(("average", official["allAp"], official["allAp50%"]))
    lines = [f"{PROTOCOL}, percent", f"{'class':<12}{'AP':>8}{'AP50':>8}"]
    lines += [f"{name:<12}{100 * ap:>8.2f}{100 * ap50:>8.2f}" for name, ap, ap50 in rows]
    return "\n".join(lines)
