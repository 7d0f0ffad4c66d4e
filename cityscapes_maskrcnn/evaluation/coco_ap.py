"""COCO-style average precision on the same predictions and the same ground truth.

A different protocol from the official one, with different numbers on the same masks, so it is never
called just "AP". It has no void: a prediction on a void region is a false positive here. It has no
smallest ground truth either: an instance under 100 pixels counts. Groups are COCO's crowds.
The scores come from pycocotools, in memory.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.evaluation.instance_ap import (
    GroundTruth,
    ImageMatches,
    Prediction,
    match_image,
)
from cityscapes_maskrcnn.evaluation.masks import coco_rles, tight_box

PROTOCOL: Final = "COCO-style protocol (pycocotools)"
# Where pycocotools puts them in COCOeval.stats.
_STATS: Final = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR100": 8}


@dataclass(frozen=True)
class CocoImage:
    """One image in COCO's terms, with run-lengths in place of masks.

    Attributes:
        height: pixels.
        width: pixels.
        truth: annotations with ``category_id`` (1 to 8), ``segmentation`` (compressed run-lengths),
            ``bbox`` (x, y, width, height around the mask), ``area`` (of the mask), ``iscrowd``.
        found: annotations with ``category_id``, ``segmentation``, ``bbox``, ``score``.
    """

    height: int
    width: int
    truth: tuple[dict[str, Any], ...]
    found: tuple[dict[str, Any], ...]


def coco_image(truth: GroundTruth, predictions: Sequence[Prediction]) -> CocoImage:
    """Put one image's ground truth and predictions into COCO's terms.

    Args:
        truth: of the image; its groups become crowds.
        predictions: of the image; those with an empty mask are left out, as in the official
            protocol. Without a box of its own a prediction gets its mask's.
    """
    kept = [prediction for prediction in predictions if prediction.mask.area()]
    rles = coco_rles([prediction.mask for prediction in kept], truth.height, truth.width)
    found = []
    for prediction, rle in zip(kept, rles, strict=True):
        if prediction.box is None:
            box = list(tight_box(prediction.mask))
        else:
            left, top, right, bottom = prediction.box
            box = [left, top, right - left, bottom - top]
        found.append(
            {
                "category_id": prediction.category + 1,
                "segmentation": rle,
                "bbox": box,
                "score": prediction.confidence,
            }
        )
    return CocoImage(truth.height, truth.width, coco_truth(truth), tuple(found))


def match_and_coco(
    truth: GroundTruth, predictions: Sequence[Prediction]
) -> tuple[ImageMatches, CocoImage]:
    """Prepare one image for both protocols."""
    return match_image(truth, predictions), coco_image(truth, predictions)


def coco_truth(truth: GroundTruth) -> tuple[dict[str, Any], ...]:
    """Put one image's ground truth into COCO's terms; see :class:`CocoImage`."""
    return tuple(
        {
            "category_id": category + 1,
            "segmentation": {"size": [truth.height, truth.width], "counts": counts},
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": area,
            "iscrowd": int(is_group),
        }
        for category, counts, (x0, y0, x1, y1), area, is_group in zip(
            truth.categories.tolist(),
            truth.rles,
            truth.boxes.tolist(),
            truth.areas.tolist(),
            truth.is_group.tolist(),
            strict=True,
        )
    )


def coco_scores(
    images: Sequence[CocoImage],
    iou_type: Literal["bbox", "segm"],
    evaluation_class: type[COCOeval] = COCOeval,
) -> dict[str, float]:
    """Compute COCO's scores.

    Args:
        images: in any order.
        iou_type: ``"bbox"`` compares boxes, ``"segm"`` masks. The size ranges of APs, APm and APl
            go by the area of the ground truth's mask for both, as in COCO.
        evaluation_class: pycocotools' COCOeval or one that gives the same, faster.

    Returns:
        Fractions: AP, AP50, AP75, APs, APm, APl, AR100 and ``AP-<class>`` for the 8 classes. NaN
        where there is no ground truth; 0 where there is and nothing was predicted.
    """
    truth = [{**item, "image_id": i} for i, image in enumerate(images) for item in image.truth]
    found = [
        {**item, "image_id": i, "iscrowd": 0, "area": _area(item, iou_type)}
        for i, image in enumerate(images)
        for item in image.found
    ]
    # pycocotools reports its progress with print.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = evaluation_class(_dataset(images, truth), _dataset(images, found), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    scores = {name: _or_nan(evaluation.stats[index]) for name, index in _STATS.items()}
    # Shape (overlaps, recalls, classes, size ranges, detection limits); the first size range is
    # "all", the last limit 100; -1 where there is no ground truth.
    precision: npt.NDArray[np.float64] = evaluation.eval["precision"][:, :, :, 0, -1]
    for index, name in enumerate(THING_CLASSES):
        scores[f"AP-{name}"] = _or_nan(precision[:, :, index].mean())
    return scores


def format_coco_scores(by_type: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out scores as a table in percent that names its protocol.

    Args:
        by_type: what is compared ("masks", "boxes") -> result of :func:`coco_scores`.
    """
    lines = [f"{PROTOCOL}, percent", f"{'':<14}" + "".join(f"{name:>10}" for name in by_type)]
    for key in next(iter(by_type.values())):
        values = "".join(f"{100 * scores[key]:>10.2f}" for scores in by_type.values())
        lines.append(f"{key:<14}{values}")
    return "\n".join(lines)


def _dataset(images: Sequence[CocoImage], annotations: list[dict[str, Any]]) -> COCO:
    """Make a COCO object from memory. Annotation ids start at 1: pycocotools takes 0 for "none"."""
    coco = COCO()
    coco.dataset = {
        "images": [
            {"id": index, "height": image.height, "width": image.width}
            for index, image in enumerate(images)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(THING_CLASSES, start=1)],
        "annotations": [{**item, "id": i} for i, item in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco


def _area(found: Mapping[str, Any], iou_type: str) -> float:
    """Area of a prediction: a prediction without a match is ignored outside of a size range."""
    if iou_type == "bbox":
        return float(found["bbox"][2] * found["bbox"][3])
    return float(coco_mask.area(found["segmentation"]))


def _or_nan(score: float) -> float:
    return float("nan") if score == -1 else float(score)
