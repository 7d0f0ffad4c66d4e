"""A trained model, applied to one image file at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.modeling import build_model
from detectron2.structures import Instances

from cityscapes_maskrcnn.data.images import read_image
from cityscapes_maskrcnn.data.labels import THING_CLASSES, THING_COLORS
from cityscapes_maskrcnn.data.mapper import CityscapesMapper
from cityscapes_maskrcnn.data.registration import register_datasets_of
from cityscapes_maskrcnn.engine.checkpoint import load_for_inference
from cityscapes_maskrcnn.engine.inference import model_categories
from cityscapes_maskrcnn.evaluation.instance_ap import ALL_CATEGORIES
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.annotated_images import check_size, ground_truth_of
from cityscapes_maskrcnn.visualization.drawing import (
    draw_ground_truth,
    draw_predictions,
    side_by_side,
)


class Predictor:
    """Find and draw the instances of image files.

    Unlike Detectron2's ``DefaultPredictor`` it takes files, uses evaluation's mapper, so that the
    pictures show what is scored, and refuses weights that lack a part of the model.

    Attributes:
        model: in evaluation mode, with ``MODEL.WEIGHTS``.
        metadata: names and colours of the model's classes.
    """

    def __init__(self, cfg: CfgNode, score_thresh: float = 0.5):
        """Build the model and load ``MODEL.WEIGHTS``.

        Args:
            cfg: the model's config; not changed.
            score_thresh: lowest score of a detection, between 0 and 1.

        Raises:
            InputError: ``score_thresh`` is out of range, or as :func:`.register_datasets_of`,
                :func:`.inference.model_categories` and :func:`.checkpoint.load_for_inference`.
        """
        if not 0 <= score_thresh <= 1:
            raise InputError(f"--score-thresh {score_thresh}: it must lie between 0 and 1")
        register_datasets_of(cfg)
        categories = model_categories(cfg)
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = score_thresh
        cfg.MODEL.RETINANET.SCORE_THRESH_TEST = score_thresh
        self.metadata = _class_metadata(categories)
        self._score_thresh = score_thresh
        # Without INPUT.CACHE: they are anybody's images, and each is read once.
        self._mapper = CityscapesMapper(cfg, is_train=False, cache=None)
        self.model = build_model(cfg).eval()
        load_for_inference(self.model, cfg)

    def __call__(self, image_file: str | os.PathLike[str]) -> Instances:
        """Find the instances of one image.

        Returns:
            On the CPU, with ``pred_boxes``, ``scores``, ``pred_classes`` (contiguous) and, of a
            model with masks, ``pred_masks`` (N, H, W), bool; in pixels of the image file.

        Raises:
            InputError: the file is missing, truncated or no image.
        """
        with torch.no_grad():
            output = self.model([self._mapper({"file_name": str(image_file)})])[0]
        return output["instances"].to("cpu")

    def draw(self, image_file: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
        """Draw the detections in an image, to the right of its ground truth where it has one.

        Returns:
            The picture with captions, shape (H, W, 3), uint8, RGB.

        Raises:
            InputError: the image or its annotation is damaged, or their sizes differ.
        """
        image = read_image(image_file, "RGB")
        panels = []
        record = ground_truth_of(image_file)
        if record is not None:
            check_size(str(image_file), image, record)
            # All official classes, not only those that the model predicts.
            metadata = _class_metadata(ALL_CATEGORIES)
            panels.append(("ground truth", draw_ground_truth(image, record, metadata)))
        prediction = draw_predictions(
            image, self(image_file), self.metadata, score_thresh=self._score_thresh
        )
        panels.append((f"prediction (score >= {self._score_thresh:g})", prediction))
        return side_by_side(panels)


def _class_metadata(categories: Sequence[int]) -> Metadata:
    """Name and colour classes, given by their contiguous ids among the official ones."""
    return Metadata(
        name="cityscapes",
        thing_classes=[THING_CLASSES[category] for category in categories],
        thing_colors=[THING_COLORS[category] for category in categories],
    )
