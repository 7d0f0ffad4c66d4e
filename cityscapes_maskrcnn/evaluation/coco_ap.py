"""COCO-style average precision of the same predictions against the same ground truth.

This protocol differs from the official one and gives different scores for the same masks, so it is
never called just "AP". It has no void: a prediction on a void region is a false positive here. It
has no minimum object size either: instances below 100 pixels count. Groups are treated as COCO's
crowds. faster-coco-eval computes the scores in memory; they equal those of pycocotools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster

from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.evaluation.instance_ap import (
    ALL_CATEGORIES,
    GroundTruth,
    ImageMatches,
    Prediction,
    match_image,
)
from cityscapes_maskrcnn.evaluation.masks import coco_rles
from cityscapes_maskrcnn.utils.object_limits import SIZE_LIMITS

PROTOCOL: Final = "COCO-style protocol (pycocotools)"
# Indices in COCOeval.stats.
_STATS: Final = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR100": 8}


@dataclass(frozen=True)
class CocoImage:
    """An image in COCO's format, with run-length encoded masks.

    Attributes:
        height: pixels.
        width: pixels.
        gt_annotations: dicts with ``category_id`` (1 to 8), ``segmentation`` (compressed
            run-lengths), ``bbox`` (x, y, width, height around the mask), ``area`` (of the mask),
            ``iscrowd``.
        detections: dicts with ``category_id``, ``bbox``, ``score``, and, for predictions with a
            mask, ``segmentation`` and ``area`` of the mask.
    """

    height: int
    width: int
    gt_annotations: tuple[dict[str, Any], ...]
    detections: tuple[dict[str, Any], ...]


def coco_image(gt: GroundTruth, predictions: Sequence[Prediction]) -> CocoImage:
    """Convert the ground truth and predictions of an image to COCO's format.

    Args:
        gt: ground truth of the image; its groups become crowds.
        predictions: predictions for the image; those with an empty mask are ignored, as in the
            official protocol. A prediction without a box gets the box of its mask.
    """
    kept = [prediction for prediction in predictions if prediction.mask.area()]
    rles = coco_rles([prediction.mask for prediction in kept])
    detections = []
    for prediction, rle in zip(kept, rles, strict=True):
        x0, y0, x1, y1 = prediction.box or prediction.mask.box()
        detections.append(
            {
                "category_id": prediction.category + 1,
                "segmentation": rle,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": prediction.confidence,
                "area": prediction.mask.area(),
            }
        )
    return CocoImage(gt.height, gt.width, _gt_annotations(gt), tuple(detections))


def coco_boxes(
    gt: GroundTruth,
    categories: Sequence[int],
    scores: Sequence[float],
    boxes: Sequence[tuple[float, float, float, float]],
) -> CocoImage:
    """Convert the ground truth and the predicted boxes, without masks, to COCO's format.

    Args:
        gt: ground truth of the image; its groups become crowds.
        categories: N contiguous class ids, 0 to 7.
        scores: N confidences.
        boxes: N times (x0, y0, x1, y1) in pixels.
    """
    detections = [
        {"category_id": category + 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
        for category, score, (x0, y0, x1, y1) in zip(categories, scores, boxes, strict=True)
    ]
    return CocoImage(gt.height, gt.width, _gt_annotations(gt), tuple(detections))


def _gt_annotations(gt: GroundTruth) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "category_id": category + 1,
            "segmentation": {"size": [gt.height, gt.width], "counts": counts},
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": area,
            "iscrowd": int(is_group),
        }
        for category, counts, (x0, y0, x1, y1), area, is_group in zip(
            gt.categories.tolist(),
            gt.rles,
            gt.boxes.tolist(),
            gt.areas.tolist(),
            gt.is_group.tolist(),
            strict=True,
        )
    )


def match_and_coco(
    gt: GroundTruth, predictions: Sequence[Prediction]
) -> tuple[ImageMatches, CocoImage]:
    """Prepare one image for both protocols."""
    return match_image(gt, predictions), coco_image(gt, predictions)


def coco_scores(
    images: Sequence[CocoImage],
    iou_type: Literal["bbox", "segm"],
    categories: Sequence[int] = ALL_CATEGORIES,
    size_limits: tuple[float, float] = (SIZE_LIMITS["medium"], SIZE_LIMITS["large"]),
) -> dict[str, float]:
    """Compute COCO's scores.

    Args:
        images: in any order.
        iou_type: ``"bbox"`` compares boxes, ``"segm"`` masks. For both, the size ranges of APs, APm
            and APl refer to the area of the ground truth's mask, as in COCO.
        categories: the classes to score: contiguous class ids, 0 to 7, ascending.
        size_limits: areas in pixels between the size ranges, by default COCO's.

    Returns:
        Fractions: AP, AP50, AP75, APs, APm, APl, AR100 and ``AP-<class>`` for those classes. NaN
        where there is no ground truth; 0 where there is some but nothing was predicted.
    """
    gt_annotations = [
        {**annotation, "image_id": index}
        for index, image in enumerate(images)
        for annotation in image.gt_annotations
        if annotation["category_id"] - 1 in categories
    ]
    detections = [
        {**detection, "image_id": index, "iscrowd": 0}
        for index, image in enumerate(images)
        for detection in image.detections
        if detection["category_id"] - 1 in categories
    ]
    if iou_type == "bbox":
        # Outside of a size range a detection without a match is ignored: by its box here.
        for detection in detections:
            detection["area"] = float(detection["bbox"][2] * detection["bbox"][3])
    evaluation = COCOeval_faster(
        _dataset(images, gt_annotations, categories),
        _dataset(images, detections, categories),
        iou_type,
    )
    low, high = size_limits
    evaluation.params.areaRng = [[0, 1e10], [0, low], [low, high], [high, 1e10]]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    scores = {name: _or_nan(evaluation.stats[index]) for name, index in _STATS.items()}
    # Shape (overlaps, recalls, classes, size ranges, detection limits); the first size range is
    # "all", the last limit 100; -1 where there is no ground truth.
    precision: npt.NDArray[np.float64] = evaluation.eval["precision"][:, :, :, 0, -1]
    for index, category in enumerate(categories):
        scores[f"AP-{THING_CLASSES[category]}"] = _or_nan(precision[:, :, index].mean())
    return scores


def format_coco_scores(by_type: Mapping[str, Mapping[str, float]]) -> str:
    """Format scores as a table in percent that names its protocol.

    Args:
        by_type: what is compared ("masks", "boxes") -> result of :func:`coco_scores`.
    """
    lines = [f"{PROTOCOL}, percent", f"{'':<14}" + "".join(f"{name:>10}" for name in by_type)]
    for key in next(iter(by_type.values())):
        values = "".join(f"{100 * scores[key]:>10.2f}" for scores in by_type.values())
        lines.append(f"{key:<14}{values}")
    return "\n".join(lines)


def _dataset(
    images: Sequence[CocoImage], annotations: list[dict[str, Any]], categories: Sequence[int]
) -> COCO:
    """Build a COCO object from memory. Annotation ids start at 1: 0 would mean "no match"."""
    coco = COCO()
    coco.dataset = {
        "images": [
            {"id": index, "height": image.height, "width": image.width}
            for index, image in enumerate(images)
        ],
        "categories": [{"id": each + 1, "name": THING_CLASSES[each]} for each in categories],
        "annotations": [{**item, "id": i} for i, item in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco


def _or_nan(score: float) -> float:
    return float("nan") if score == -1 else float(score)
