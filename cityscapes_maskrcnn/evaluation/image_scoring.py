"""Scoring of one image in a worker process; without Detectron2, so that it starts quickly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.evaluation.coco_ap import CocoImage, coco_boxes, coco_image
from cityscapes_maskrcnn.evaluation.error_analysis import ImageErrors, analyse_image
from cityscapes_maskrcnn.evaluation.instance_ap import (
    GroundTruth,
    ImageMatches,
    Prediction,
    match_image,
)
from cityscapes_maskrcnn.evaluation.masks import RunMask
from cityscapes_maskrcnn.evaluation.pasting import paste_masks
from cityscapes_maskrcnn.utils.errors import InputError


def use_one_thread() -> None:
    """Let a worker use one core: there are as many workers as cores are to be used."""
    cv2.setNumThreads(1)


@dataclass(frozen=True)
class CompactInstances:
    """One image's predictions as they go to a worker process: without a full frame.

    Attributes:
        size: height and width of the image in pixels.
        categories: N contiguous class ids.
        scores: N confidences.
        boxes: shape (N, 4), dtype float32: (x0, y0, x1, y1); None if the model has none.
        masks: N masks, or shape (N, M, M), dtype float32: unpasted; None: boxes only.
    """

    size: tuple[int, int]
    categories: list[int]
    scores: list[float]
    boxes: npt.NDArray[np.float32] | None
    masks: list[RunMask] | npt.NDArray[np.float32] | None

    def check_size(self, height: int, width: int) -> None:
        """Verify that an image has the size of its ground truth, in pixels."""
        if self.size != (height, width):
            raise InputError(
                f"the predictions are for {self.size[0]} x {self.size[1]} (height x width), the"
                f" ground truth is {height} x {width}: predictions must come at the original size"
            )

    def predictions(self, height: int, width: int) -> list[Prediction]:
        """Get the predictions, pasting what is unpasted.

        Args:
            height: of the ground truth in pixels.
            width: of the ground truth in pixels.

        Raises:
            InputError: the predictions are of another size, or not finite.
        """
        self.check_size(height, width)
        masks: list[Any]
        if isinstance(self.masks, list):
            masks = self.masks
        else:
            assert self.boxes is not None and self.masks is not None
            masks = list(paste_masks(self.masks, self.boxes, height, width))
        boxes: list[Any] = [None] * len(masks)
        if self.boxes is not None:
            boxes = [tuple(box) for box in self.boxes.tolist()]
        return [
            Prediction(mask, category, score, box)
            for mask, category, score, box in zip(
                masks, self.categories, self.scores, boxes, strict=True
            )
        ]


@dataclass(frozen=True)
class ImageResult:
    """What is kept of an image until the end: some ten kilobytes. Of boxes only COCO's part."""

    matches: ImageMatches | None
    coco: CocoImage | None
    errors: ImageErrors | None


def score_image(
    name: str,
    gt: GroundTruth,
    compact: CompactInstances,
    coco: bool,
    analysis_confidence: float | None,
) -> ImageResult:
    """Match one image for all protocols.

    Args:
        name: of the image, for messages.
        gt: of the image.
        compact: its predictions.
        coco: prepare it for COCO's scores too; predictions without masks are for no others.
        analysis_confidence: see :func:`.error_analysis.analyse_image`; None: no analysis.

    Raises:
        InputError: the predictions are invalid.
    """
    try:
        if compact.masks is None:
            assert compact.boxes is not None
            compact.check_size(gt.height, gt.width)
            boxes = coco_boxes(gt, compact.categories, compact.scores, compact.boxes.tolist())
            return ImageResult(None, boxes, None)
        predictions = compact.predictions(gt.height, gt.width)
        matches = match_image(gt, predictions)
        errors = None
        if analysis_confidence is not None:
            errors = analyse_image(gt, predictions, matches, score_thresh=analysis_confidence)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    return ImageResult(matches, coco_image(gt, predictions) if coco else None, errors)
