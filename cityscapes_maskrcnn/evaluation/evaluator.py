"""Detectron2's plug for the scores: predictions in, results out, nothing written on the way."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.fast_eval_api import COCOeval_opt
from detectron2.structures import Instances
from detectron2.utils import comm

from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.evaluation.coco_ap import (
    CocoImage,
    coco_image,
    coco_scores,
    format_coco_scores,
)
from cityscapes_maskrcnn.evaluation.error_analysis import (
    ImageErrors,
    analyse_image,
    summarise_errors,
)
from cityscapes_maskrcnn.evaluation.error_tables import write_error_tables
from cityscapes_maskrcnn.evaluation.instance_ap import (
    FloatArray,
    ImageMatches,
    Prediction,
    average_precision,
    averages,
    format_averages,
    ground_truth,
    match_image,
)
from cityscapes_maskrcnn.evaluation.masks import CroppedMask, crop_mask, occupied_span
from cityscapes_maskrcnn.evaluation.result_files import (
    averages_to_json,
    ground_truth_file,
    image_name,
    read_instance_ids,
)
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write

RESULTS_FILE = "cityscapes_results.json"
ANALYSIS_FOLDER = "analysis"


@dataclass(frozen=True)
class _ImageResult:
    """What is kept of an image until the end: a few kilobytes."""

    matches: ImageMatches
    coco: CocoImage
    errors: ImageErrors


class CityscapesInstanceEvaluator(DatasetEvaluator):
    """Score instance segmentation with the official protocol, and beside it COCO's.

    Every image is matched with its ground truth as soon as it is predicted; no mask outlives that.
    Works on any device, on any number of processes and machines, and on any part of a split.

    The official protocol reads confidences as text; Detectron2's evaluator printed them with fewer
    digits than they have. Here a float32 score keeps its value.

    Args:
        dataset_name: a registered dataset with labels. Its metadata give ``gt_dir``, such as
            ``cityscapes/gtFine/val``, where each image's instance ids are found.
        output_dir: where the main process writes ``cityscapes_results.json``, the official
            averages as fractions (null for NaN); Detectron2 uses ``OUTPUT_DIR/inference``. None:
            no file.
        analysis_confidence: lowest confidence of the predictions whose errors are sorted by cause,
            see :mod:`.error_analysis`; the tables go to ``output_dir/analysis``.
        draw: called in the main process with that folder when the tables are in it.

    Raises:
        InputError: the dataset has no labels, or other classes.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | os.PathLike[str] | None = None,
        analysis_confidence: float = 0.5,
        draw: Callable[[Path], object] | None = None,
    ) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        gt_dir = metadata.get("gt_dir")
        if gt_dir is None:
            raise InputError(
                f"dataset {dataset_name} has no labels to score against (no gt_dir in its"
                " metadata); the test split is scored by the benchmark's server only"
            )
        if tuple(metadata.get("thing_classes", THING_CLASSES)) != THING_CLASSES:
            raise InputError(
                f"dataset {dataset_name} has not the 8 Cityscapes instance classes in official"
                f" order: {', '.join(metadata.thing_classes)}"
            )
        self._dataset_name = dataset_name
        self._gt_dir = Path(gt_dir)
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._analysis_confidence = analysis_confidence
        self._draw = draw
        self._logger = logging.getLogger(__name__)
        self._images: dict[str, _ImageResult] = {}

    def reset(self) -> None:
        """Forget all images."""
        self._images = {}

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Match the predictions of some images.

        Args:
            inputs: Detectron2's dataset dicts; ``file_name`` is used.
            outputs: Detectron2's predictions: ``{"instances": Instances}`` at the image's original
                size with ``pred_masks`` (N, height, width), ``pred_classes`` (N,), ``scores`` (N,)
                and ``pred_boxes``; without ``"instances"`` nothing was found.

        Raises:
            InputError: the ground truth is missing or unreadable, or the predictions do not fit it.
        """
        for image, output in zip(inputs, outputs, strict=True):
            truth_file = ground_truth_file(self._gt_dir, image["file_name"])
            ids = read_instance_ids(truth_file)
            try:
                truth = ground_truth(ids)
                predictions = (
                    instances_to_predictions(output["instances"], *ids.shape)
                    if "instances" in output
                    else []
                )
                matches = match_image(truth, predictions)
                errors = analyse_image(truth, predictions, matches, self._analysis_confidence)
            except InputError as error:
                raise InputError(f"{truth_file}: {error}") from error
            result = _ImageResult(matches, coco_image(truth, predictions), errors)
            self._images[image_name(image["file_name"])] = result

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Gather all processes' images and score them. Every process has to call this.

        Returns:
            In the main process, in percent: ``"segm"``, the official protocol: ``AP``, ``AP50``,
            ``AP-<class>``, ``AP50-<class>``; ``"coco_segm"`` and ``"coco_bbox"``, see
            :func:`.coco_ap.coco_scores`. NaN for what has no ground truth. Elsewhere nothing.

        Raises:
            InputError: images of the dataset were not predicted, or others were.
        """
        gathered = comm.gather(self._images)
        if not comm.is_main_process():
            return OrderedDict()
        # A sampler may give an image to two processes, so that all have equally many.
        by_name = {name: image for part in gathered for name, image in part.items()}
        self._check_images(by_name)
        # Between equal scores COCO's order is the images': keep it independent of the processes.
        images = [by_name[name] for name in sorted(by_name)]

        ap = average_precision([image.matches for image in images])
        official = averages(ap)
        coco_images = [image.coco for image in images]
        coco = {
            # Detectron2's C++ version takes a tenth of the time.
            "coco_segm": coco_scores(coco_images, "segm", COCOeval_opt),
            "coco_bbox": coco_scores(coco_images, "bbox", COCOeval_opt),
        }
        where = f"{self._dataset_name}, {len(images)} images"
        self._logger.info("%s\n%s", where, format_averages(official))
        table = format_coco_scores({"masks": coco["coco_segm"], "boxes": coco["coco_bbox"]})
        self._logger.info("%s\n%s", where, table)
        if self._output_dir is not None:
            with atomic_write(self._output_dir / RESULTS_FILE, "w") as file:
                file.write(averages_to_json(official))
            self._write_analysis(self._output_dir / ANALYSIS_FOLDER, images, ap)

        segm = {"AP": official["allAp"], "AP50": official["allAp50%"]}
        segm |= {f"AP-{name}": score["ap"] for name, score in official["classes"].items()}
        segm |= {f"AP50-{name}": score["ap50%"] for name, score in official["classes"].items()}
        return OrderedDict(
            (task, {key: 100 * score for key, score in scores.items()})
            for task, scores in {"segm": segm, **coco}.items()
        )

    def _write_analysis(self, folder: Path, images: Sequence[_ImageResult], ap: FloatArray) -> None:
        summary = summarise_errors(
            [image.matches for image in images],
            [image.errors for image in images],
            self._analysis_confidence,
        )
        try:
            write_error_tables(folder, summary, ap)
            if self._draw is not None:
                self._draw(folder)
        except (OSError, InputError) as error:
            # The scores, and a training that is under way, are worth more than the pictures.
            self._logger.warning("%s: the error analysis is incomplete: %s", folder, error)

    def _check_images(self, found: Mapping[str, Any]) -> None:
        """Make sure that exactly the dataset's images were predicted."""
        expected = {
            image_name(image["file_name"]) for image in DatasetCatalog.get(self._dataset_name)
        }
        for names, what in [
            (sorted(expected - found.keys()), "were not predicted"),
            (sorted(found.keys() - expected), "were predicted but do not belong to it"),
        ]:
            if names:
                examples = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                raise InputError(
                    f"cannot score {self._dataset_name}: {len(names)} images {what}: {examples}"
                )


def instances_to_predictions(instances: Instances, height: int, width: int) -> list[Prediction]:
    """Turn Detectron2's predictions of one image into compact ones.

    Args:
        instances: on any device, with ``pred_masks`` (N, height, width), ``pred_classes``,
            ``scores`` and, if the model has them, ``pred_boxes`` (x0, y0, x1, y1).
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        N predictions.

    Raises:
        InputError: there are no masks, or they have another size.
    """
    if not instances.has("pred_masks"):
        raise InputError("the model predicts no masks; set MODEL.MASK_ON True to score them")
    masks = instances.pred_masks
    if len(masks) and tuple(masks.shape[1:]) != (height, width):
        raise InputError(
            f"the predicted masks are {masks.shape[1]} x {masks.shape[2]} (height x width), the"
            f" ground truth {height} x {width}: predictions must come at the original size"
        )
    boxes: list[Any] = [None] * len(masks)
    if instances.has("pred_boxes"):
        boxes = [tuple(box) for box in instances.pred_boxes.tensor.tolist()]
    classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
    crop = crop_on_cpu if masks.device.type == "cpu" else crop_on_device
    return [
        Prediction(mask, category, score, box)
        for mask, category, score, box in zip(
            crop(masks.bool()), classes, scores, boxes, strict=True
        )
    ]


def crop_on_cpu(masks: torch.Tensor) -> list[CroppedMask]:
    """Cut N masks, shape (N, height, width), bool, down to their boxes with NumPy.

    PyTorch's ``any`` takes ten times as long on a CPU.
    """
    return [crop_mask(mask) for mask in masks.numpy()]


def crop_on_device(masks: torch.Tensor) -> list[CroppedMask]:
    """Cut N masks, shape (N, height, width), bool, down to their boxes where they are.

    Only the boxes' insides travel to main memory, not 2 MB a mask.
    """
    rows = masks.any(dim=2).cpu().numpy()
    columns = masks.any(dim=1).cpu().numpy()
    crops = []
    for mask, row, column in zip(masks, rows, columns, strict=True):
        (y0, y1), (x0, x1) = occupied_span(row), occupied_span(column)
        # A copy, because a CPU tensor's array would be a view of the frame.
        crops.append(CroppedMask(x0, y0, mask[y0:y1, x0:x1].cpu().numpy().copy()))
    return crops
