"""Predictions like those of a trained Mask R-CNN, derived from the ground truth."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.evaluation.instance_ap import GroundTruth

MASK_SIZE = 28


@dataclass(frozen=True)
class RawPredictions:
    """What a mask head and a box head give for one image, N instances.

    Attributes:
        boxes: shape (N, 4), dtype float32: (x0, y0, x1, y1) in pixels of the image, inside it.
        probabilities: shape (N, 28, 28), dtype float32, 0 to 1.
        scores: shape (N,), dtype float32, descending.
        categories: shape (N,), dtype int64, 0 to 7.
    """

    boxes: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    categories: npt.NDArray[np.int64]


def predict_from_ground_truth(
    gt: GroundTruth, number: int, random: np.random.Generator
) -> RawPredictions:
    """Imitate a detector.

    Objects are found in turn, small ones less often, until there are ``number`` predictions, so
    that some are found several times. A box is off by a few percent of its size; a mask is the
    object's, over that box, at 28 x 28 with a soft and wavy outline; one class in 20 is wrong, one
    prediction in 10 lies anywhere.

    Args:
        gt: of the image.
        number: of predictions.
        random: where all choices come from.
    """
    boxes = np.zeros((number, 4), dtype=np.float32)
    probabilities = np.zeros((number, MASK_SIZE, MASK_SIZE), dtype=np.float32)
    categories = np.zeros(number, dtype=np.int64)
    weights = np.sqrt(np.minimum(gt.areas, 5000).astype(np.float64))
    for index in range(number):
        if not len(gt.ids) or random.random() < 0.1:
            largest = min(300, gt.height, gt.width)
            width, height = np.exp(random.uniform(np.log(10), np.log(largest), size=2))
            x0 = random.uniform(0, gt.width - width)
            y0 = random.uniform(0, gt.height - height)
            box = np.array([x0, y0, x0 + width, y0 + height])
            chosen, category = None, int(random.integers(8))
        else:
            chosen = int(random.choice(len(gt.ids), p=weights / weights.sum()))
            x0, y0, x1, y1 = gt.boxes[chosen].tolist()
            size = np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
            box = np.array([x0, y0, x1, y1]) + size * random.normal(0, 0.04, size=4)
            category = int(gt.categories[chosen])
        boxes[index] = np.clip(box, 0, [gt.width, gt.height] * 2)
        if (boxes[index, 2:] - boxes[index, :2]).min() < 1:
            boxes[index, 2:] = boxes[index, :2] + 1
        categories[index] = int(random.integers(8)) if random.random() < 0.05 else category
        probabilities[index] = _mask(gt, chosen, boxes[index], random)
    scores = np.sort(random.random(number).astype(np.float32))[::-1].copy()
    return RawPredictions(boxes, probabilities, scores, categories)


def _mask(
    gt: GroundTruth,
    index: int | None,
    box: npt.NDArray[np.float32],
    random: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """The object's mask over a box as 28 x 28 probabilities; an ellipse for no object."""
    cells = (np.arange(MASK_SIZE) + 0.5) / MASK_SIZE
    if index is None:
        inside = ((cells - 0.5) ** 2)[:, None] + ((cells - 0.5) ** 2)[None] < 0.2
    else:
        x = (box[0] + cells * (box[2] - box[0])).astype(np.int64)
        y = (box[1] + cells * (box[3] - box[1])).astype(np.int64)
        inside = gt.instance_mask(index).frame()[
            np.clip(y, 0, gt.height - 1)[:, None], np.clip(x, 0, gt.width - 1)[None]
        ]
    waves = cv2.resize(random.normal(0, 1, size=(6, 6)), (MASK_SIZE, MASK_SIZE))
    logits = 8 * (cv2.blur(inside.astype(np.float64), (3, 3)) - 0.5) + waves
    return (1 / (1 + np.exp(-logits))).astype(np.float32)
