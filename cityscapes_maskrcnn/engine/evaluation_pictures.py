"""Pictures and curves of an evaluation during training: for TensorBoard and the like."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.structures import Instances, ROIMasks
from detectron2.utils import comm

from cityscapes_maskrcnn.data.images import read_image, read_label_image
from cityscapes_maskrcnn.data.labels import THING_CLASSES, train_id_lookup
from cityscapes_maskrcnn.engine.event_writers import RunStorage
from cityscapes_maskrcnn.evaluation.evaluator import CityscapesInstanceEvaluator
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.spread import spread
from cityscapes_maskrcnn.visualization.annotated_images import draw_captioned, scene_mark
from cityscapes_maskrcnn.visualization.drawing import (
    draw_captioned_predictions,
    draw_semantic_labels,
    side_by_side,
)

# Pixels; a picture takes about a megabyte of TensorBoard's file.
_MAX_WIDTH: Final = 1600

logger = logging.getLogger(__name__)


class SampledPredictions(DatasetEvaluator):
    """Keep what a model predicts for a few images, the same ones in every evaluation.

    It scores nothing. The images are spread evenly over those that the main process predicts and
    that have objects.

    Args:
        cfg: ``TRACKING.NUM_PICTURES``, and ``TEST.ANALYSIS_CONFIDENCE``, the lowest score of a
            detection that is drawn.
        dataset_name: a registered dataset.
    """

    def __init__(self, cfg: CfgNode, dataset_name: str) -> None:
        records: Sequence[dict[str, Any]] = DatasetCatalog.get(dataset_name)
        share = -(-len(records) // comm.get_world_size())
        annotated = [
            record
            for record in records[:share]
            if "sem_seg_file_name" in record
            or any(not each.get("iscrowd", 0) for each in record.get("annotations", ()))
        ]
        number = min(cfg.TRACKING.NUM_PICTURES, len(annotated)) if comm.is_main_process() else 0
        chosen = spread(annotated, number)
        self._records = {record["file_name"]: record for record in chosen}
        self._metadata = MetadataCatalog.get(dataset_name)
        self._score_thresh = float(cfg.TEST.ANALYSIS_CONFIDENCE)
        self._found: dict[str, Any] = {}

    def reset(self) -> None:
        """Forget the predictions."""
        self._found.clear()

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep the predictions of the chosen images, on the CPU."""
        for image, output in zip(inputs, outputs, strict=True):
            if image["file_name"] not in self._records:
                continue
            if "instances" in output:
                found = output["instances"]
                self._found[image["file_name"]] = found[found.scores >= self._score_thresh].to(
                    "cpu"
                )
            elif "sem_seg" in output:
                self._found[image["file_name"]] = output["sem_seg"].argmax(dim=0).cpu().numpy()

    def put_pictures(self, storage: RunStorage, prefix: str) -> None:
        """Put one picture an image, ground truth beside prediction, into an event storage.

        Args:
            storage: of the training.
            prefix: of their names.
        """
        for file_name, found in self._found.items():
            name = f"{prefix}/{Path(file_name).stem}"
            try:
                picture = self._draw(self._records[file_name], found)
            except (InputError, OSError) as error:
                # The scores, and a training that is under way, are worth more.
                logger.warning("No picture of the predictions: %s", error)
                continue
            storage.put_image(name, picture.transpose(2, 0, 1))

    def _draw(self, record: dict[str, Any], found: Any) -> npt.NDArray[np.uint8]:
        image = read_image(record["file_name"], "RGB")
        if isinstance(found, Instances):
            panels = [
                draw_captioned("ground truth", image, record, self._metadata),
                self._draw_instances(image, found),
            ]
        else:
            gt_labels = train_id_lookup()[read_label_image(record["sem_seg_file_name"])]
            panels = [
                (caption, draw_semantic_labels(image, labels.astype(np.uint8), self._metadata))
                for caption, labels in (("ground truth", gt_labels), ("prediction", found))
            ]
        picture = side_by_side(panels, scene_mark(record["file_name"]))
        height, width = picture.shape[:2]
        if width > _MAX_WIDTH:
            size = (_MAX_WIDTH, round(height * _MAX_WIDTH / width))
            picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
        return picture

    def _draw_instances(
        self, image: npt.NDArray[np.uint8], found: Instances
    ) -> tuple[str, npt.NDArray[np.uint8]]:
        if isinstance(found.get_fields().get("pred_masks"), ROIMasks):
            frames = found.pred_masks.to_bitmasks(found.pred_boxes, *image.shape[:2])
            found = Instances(
                found.image_size, **{**found.get_fields(), "pred_masks": frames.tensor}
            )
        return draw_captioned_predictions(image, found, self._metadata, self._score_thresh)


class WatchedEvaluator(DatasetEvaluators):
    """An evaluator of a dataset together with what draws its predictions.

    Args:
        evaluator: scores the dataset.
        samples: sees the same predictions.
    """

    def __init__(self, evaluator: DatasetEvaluator, samples: SampledPredictions) -> None:
        super().__init__([evaluator, samples])
        self._samples = samples

    def put_events(self, storage: RunStorage, dataset: str = "") -> None:
        """Put pictures and the official precision-recall curves at IoU 0.5 into a storage.

        Args:
            storage: of the training.
            dataset: a part of their names; empty where there is one dataset only.
        """
        suffix = f"/{dataset}" if dataset else ""
        self._samples.put_pictures(storage, f"predictions{suffix}")
        evaluator = self._evaluators[0]
        summary = getattr(evaluator, "error_summary", None)
        if not isinstance(evaluator, CityscapesInstanceEvaluator) or summary is None:
            return
        num_objects = summary.by_size[:, :, 0].sum(axis=1)
        for name, curve, number in zip(THING_CLASSES, summary.curves, num_objects, strict=True):
            if curve is not None:
                storage.put_pr_curve(f"precision_recall{suffix}/{name}", curve, int(number))
