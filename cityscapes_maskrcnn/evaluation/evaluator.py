"""Detectron2's plug for the scores: predictions in, results out, nothing written on the way."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances, ROIMasks

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
from cityscapes_maskrcnn.evaluation.ground_truth_cache import read_ground_truth
from cityscapes_maskrcnn.evaluation.image_evaluator import ImageEvaluator
from cityscapes_maskrcnn.evaluation.instance_ap import (
    FloatArray,
    GroundTruth,
    ImageMatches,
    Prediction,
    average_precision,
    averages,
    format_averages,
    match_image,
)
from cityscapes_maskrcnn.evaluation.masks import CroppedMask, Mask, crop_mask, occupied_span
from cityscapes_maskrcnn.evaluation.pasting import paste_masks
from cityscapes_maskrcnn.evaluation.result_files import ground_truth_file, image_name
from cityscapes_maskrcnn.utils.errors import InputError

RESULTS_FILE = "cityscapes_results.json"
ANALYSIS_FOLDER = "analysis"


@dataclass(frozen=True)
class ImageResult:
    """What is kept of an image until the end: some ten kilobytes."""

    matches: ImageMatches
    coco: CocoImage | None
    errors: ImageErrors | None


class CityscapesInstanceEvaluator(ImageEvaluator[ImageResult]):
    """Score instance segmentation with the official protocol, and beside it COCO's.

    Every image is matched with its ground truth as soon as it is predicted; no mask outlives that.
    The ground truth comes through a cache, see :mod:`.ground_truth_cache`. Works on any device, on
    any number of processes and machines, and on any part of a split.

    Args:
        dataset_name: a registered dataset with labels. Its metadata give ``gt_dir``, such as
            ``cityscapes/gtFine/val``, where each image's instance ids are found.
        output_dir: where the main process writes ``cityscapes_results.json``, the official
            averages as fractions (null for NaN); Detectron2 uses ``OUTPUT_DIR/inference``. None:
            no file.
        num_workers: processes that match while the model predicts; 0: this process does it.
        coco: compute COCO's scores too.
        analysis_confidence: lowest confidence of the predictions whose errors are sorted by cause,
            see :mod:`.error_analysis`; the tables go to ``output_dir/analysis``. None: no analysis.
        draw: called in the main process with that folder when the tables are in it.

    Raises:
        InputError: the dataset has no labels, or other classes.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | os.PathLike[str] | None = None,
        num_workers: int = 0,
        coco: bool = True,
        analysis_confidence: float | None = 0.5,
        draw: Callable[[Path], object] | None = None,
    ) -> None:
        super().__init__(dataset_name, output_dir, num_workers)
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
        self._gt_dir = gt_dir
        self._coco = coco
        self._analysis_confidence = None if output_dir is None else analysis_confidence
        self._draw = draw
        self._truths: dict[str, GroundTruth] | None = None

    def reset(self) -> None:
        """Forget all images, and compare the ground truth with its files again."""
        super().reset()
        self._truths = None

    def _image_names(self) -> Iterable[str]:
        return self.load_ground_truth()

    def load_ground_truth(self) -> dict[str, GroundTruth]:
        """Read the ground truth of the dataset now, by image, and not at the first image."""
        if self._truths is None:
            images = [image["file_name"] for image in DatasetCatalog.get(self._dataset_name)]
            files = [ground_truth_file(self._gt_dir, image) for image in images]
            truths = read_ground_truth(self._gt_dir, files)
            self._truths = dict(zip(map(image_name, images), truths, strict=True))
        return self._truths

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Match the predictions of some images.

        Args:
            inputs: Detectron2's dataset dicts; ``file_name`` is used.
            outputs: Detectron2's predictions: ``{"instances": Instances}`` at the image's original
                size with ``pred_classes`` (N,), ``scores`` (N,), ``pred_boxes`` and ``pred_masks``:
                (N, height, width), or unpasted, see :mod:`.unpasted`.

        Raises:
            InputError: an image is not of the dataset, its ground truth is missing or unreadable,
                or predictions (of an earlier image, with worker processes) are of no use.
        """
        truths = self.load_ground_truth()
        for image, output in zip(inputs, outputs, strict=True):
            name = image_name(image["file_name"])
            if name not in truths:
                raise InputError(f"cannot score {self._dataset_name}: {name} does not belong to it")
            if "instances" not in output:
                raise InputError(
                    f"the model predicts {' and '.join(output) or 'nothing'}, but no instances to"
                    f" score on {self._dataset_name}; name a dataset of its task in DATASETS.TEST"
                )
            try:
                compact = compact_instances(output["instances"])
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
            options = self._coco, self._analysis_confidence
            self._score_image(image["file_name"], _score, name, truths[name], compact, *options)

    def _summarise(self, images: list[ImageResult]) -> OrderedDict[str, dict[str, float]]:
        """Score the dataset.

        Returns:
            ``"segm"``, the official protocol: ``AP``, ``AP50``, ``AP-<class>``, ``AP50-<class>``;
            ``"coco_segm"`` and ``"coco_bbox"``, see :func:`.coco_ap.coco_scores`. NaN for what has
            no ground truth.
        """
        ap = average_precision([image.matches for image in images])
        official = averages(ap)
        self._log_table(format_averages(official), len(images))
        self._write_json(RESULTS_FILE, {"averages": official}, indent=4)
        self._write_analysis(images, ap)
        segm = {"AP": official["allAp"], "AP50": official["allAp50%"]}
        segm |= {f"AP-{name}": score["ap"] for name, score in official["classes"].items()}
        segm |= {f"AP50-{name}": score["ap50%"] for name, score in official["classes"].items()}
        results = {"segm": segm}
        coco_images = [image.coco for image in images if image.coco is not None]
        if self._coco:
            results["coco_segm"] = coco_scores(coco_images, "segm")
            results["coco_bbox"] = coco_scores(coco_images, "bbox")
            both = {"masks": results["coco_segm"], "boxes": results["coco_bbox"]}
            self._log_table(format_coco_scores(both), len(images))
        return OrderedDict(
            (task, {key: 100 * score for key, score in scores.items()})
            for task, scores in results.items()
        )

    def _write_analysis(self, images: list[ImageResult], ap: FloatArray) -> None:
        errors = [image.errors for image in images if image.errors is not None]
        if self._output_dir is None or self._analysis_confidence is None:
            return
        folder = self._output_dir / ANALYSIS_FOLDER
        matches = [image.matches for image in images]
        summary = summarise_errors(matches, errors, self._analysis_confidence)
        try:
            write_error_tables(folder, summary, ap)
            if self._draw is not None:
                self._draw(folder)
        except (OSError, InputError) as error:
            # The scores, and a training that is under way, are worth more than the pictures.
            self._logger.warning("%s: the error analysis is incomplete: %s", folder, error)


@dataclass(frozen=True)
class CompactInstances:
    """One image's predictions as they go to a worker process: without a full frame.

    Attributes:
        size: height and width of the image in pixels.
        categories: N contiguous class ids.
        scores: N confidences.
        boxes: shape (N, 4), dtype float32: (x0, y0, x1, y1); None if the model has none.
        masks: N masks cut down to their boxes, or shape (N, M, M), dtype float32: unpasted.
    """

    size: tuple[int, int]
    categories: list[int]
    scores: list[float]
    boxes: npt.NDArray[np.float32] | None
    masks: list[CroppedMask] | npt.NDArray[np.float32]

    def predictions(self, height: int, width: int) -> list[Prediction]:
        """Get the predictions, pasting what is unpasted.

        Args:
            height: of the ground truth in pixels.
            width: of the ground truth in pixels.

        Raises:
            InputError: the predictions are of another size, or not finite.
        """
        if self.size != (height, width):
            raise InputError(
                f"the predicted masks are {self.size[0]} x {self.size[1]} (height x width), the"
                f" ground truth {height} x {width}: predictions must come at the original size"
            )
        masks: list[Mask] = []
        boxes: list[Any] = [None] * len(self.scores)
        if self.boxes is not None:
            boxes = [tuple(box) for box in self.boxes.tolist()]
        if isinstance(self.masks, list):
            masks += self.masks
        else:
            assert self.boxes is not None
            masks += paste_masks(self.masks, self.boxes, height, width)
        return [
            Prediction(mask, category, score, box)
            for mask, category, score, box in zip(
                masks, self.categories, self.scores, boxes, strict=True
            )
        ]


def compact_instances(instances: Instances) -> CompactInstances:
    """Bring Detectron2's predictions of one image to main memory, without full frames.

    Args:
        instances: on any device, with ``pred_masks`` (N, height, width) or :class:`ROIMasks`,
            ``pred_classes``, ``scores`` and, if the model has them, ``pred_boxes``.

    Raises:
        InputError: there are no masks.
    """
    if not instances.has("pred_masks"):
        raise InputError("the model predicts no masks; set MODEL.MASK_ON True to score them")
    masks, boxes = instances.pred_masks, None
    if instances.has("pred_boxes"):
        boxes = instances.pred_boxes.tensor.float().cpu().numpy()
    size = tuple(instances.image_size)
    if isinstance(masks, ROIMasks):
        compact: Any = masks.tensor.float().cpu().numpy()
    else:
        size = tuple(masks.shape[1:])
        crop = crop_on_cpu if masks.device.type == "cpu" else crop_on_device
        compact = crop(masks.bool())
    classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
    return CompactInstances(size, classes, scores, boxes, compact)


def instances_to_predictions(instances: Instances, height: int, width: int) -> list[Prediction]:
    """Turn Detectron2's predictions of one image into this project's.

    Args:
        instances: see :func:`compact_instances`.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        N predictions.

    Raises:
        InputError: there are no masks, or they have another size.
    """
    return compact_instances(instances).predictions(height, width)


def _score(
    name: str,
    truth: GroundTruth,
    compact: CompactInstances,
    coco: bool,
    analysis_confidence: float | None,
) -> ImageResult:
    """Match one image; runs in a worker process if there are any."""
    errors = None
    try:
        predictions = compact.predictions(truth.height, truth.width)
        matches = match_image(truth, predictions)
        if analysis_confidence is not None:
            errors = analyse_image(truth, predictions, matches, analysis_confidence)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    return ImageResult(matches, coco_image(truth, predictions) if coco else None, errors)


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
