"""A checkpoint as the model that predicts a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import Instances

from cityscapes_maskrcnn.deploy.frame_detections import BgrImage, FrameDetections
from cityscapes_maskrcnn.engine.predictor import Predictor
from cityscapes_maskrcnn.evaluation.instances import compact_instances
from cityscapes_maskrcnn.evaluation.pasting import paste_masks


class CheckpointModel:
    """A :class:`.FrameModel` in PyTorch.

    Args:
        cfg: of the model, with ``MODEL.WEIGHTS``, ``TEST.BATCH_SIZE`` and ``TEST.PRECISION``.
        score_thresh: lowest score of a detection, between 0 and 1.

    Raises:
        InputError: see :class:`.Predictor`.
    """

    def __init__(self, cfg: CfgNode, score_thresh: float) -> None:
        self._predictor = Predictor(cfg, score_thresh)
        self.class_names = self._predictor.metadata.thing_classes
        self.class_colors = self._predictor.metadata.thing_colors
        self.batch_size = cfg.TEST.BATCH_SIZE

    def prepare(self, image: BgrImage, name: str) -> dict[str, Any]:
        """See :meth:`.FrameModel.prepare`."""
        return self._predictor.prepare(image, name)

    def predict(self, prepared: Iterable[dict[str, Any]]) -> Iterator[Instances]:
        """See :meth:`.FrameModel.predict`."""
        return self._predictor(prepared, paste_masks=False)

    def detections(self, output: Instances, height: int, width: int) -> FrameDetections:
        """See :meth:`.FrameModel.detections`."""
        found = compact_instances(
            output, range(len(self.class_names)), with_masks=output.has("pred_masks")
        )
        masks = found.masks
        assert found.boxes is not None
        if isinstance(masks, np.ndarray):
            masks = paste_masks(masks, found.boxes, height, width)
        return FrameDetections(
            classes=np.array(found.categories, dtype=np.int64),
            scores=np.array(found.scores, dtype=np.float32),
            boxes=found.boxes,
            masks=masks,
        )
