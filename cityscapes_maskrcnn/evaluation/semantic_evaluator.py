"""Detectron2 evaluator for the pixel-level scores, which writes no images."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from cityscapes_maskrcnn.data.labels import SEMANTIC_LABELS
from cityscapes_maskrcnn.data.tree import check_distinct
from cityscapes_maskrcnn.evaluation.evaluator import ImageEvaluator, logger
from cityscapes_maskrcnn.evaluation.pixel_iou import (
    LABEL_IDS_SUFFIX,
    ImageCounts,
    count_label_file,
    format_pixel_scores,
    instance_ids_file,
    pixel_scores,
)
from cityscapes_maskrcnn.utils.errors import InputError

RESULTS_FILE = "cityscapes_semantic_results.json"
# Detectron2's names of the four averages -> the official script's.
_AVERAGES = {
    "IoU": "averageScoreClasses",
    "iIoU": "averageScoreInstClasses",
    "IoU_sup": "averageScoreCategories",
    "iIoU_sup": "averageScoreInstCategories",
}


class CityscapesSemanticEvaluator(ImageEvaluator[ImageCounts]):
    """Score semantic segmentation with the official pixel-level protocol.

    Every image is compared with its ground truth as soon as it is predicted; a confusion matrix is
    kept of it. Works on any device, on any number of processes and machines, on any part of a split
    and on coarse annotations, whose unlabeled pixels do not count.

    Args:
        dataset_name: a registered dataset whose images have a ``sem_seg_file_name``, a
            ``*_labelIds.png`` with its ``*_instanceIds.png`` beside it, as in ``gtFine`` and
            ``gtCoarse``. Where none has instance ids, the scores that they weight are NaN.
        output_dir: where the main process writes ``cityscapes_semantic_results.json``, the official
            result as fractions (null for NaN), see :func:`.pixel_iou.pixel_scores`; Detectron2 uses
            ``OUTPUT_DIR/inference``. None: no file.
        num_workers: processes that count while the model predicts; 0: this process does it.

    Raises:
        InputError: the dataset has no semantic labels, or other classes, or instance ids of some
            images only.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | os.PathLike[str] | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(dataset_name, output_dir, num_workers)
        classes = tuple(label.name for label in SEMANTIC_LABELS)
        metadata = MetadataCatalog.get(dataset_name)
        if tuple(metadata.get("stuff_classes", classes)) != classes:
            raise InputError(
                f"dataset {dataset_name} has not the 19 Cityscapes classes in the order of their"
                f" train ids: {', '.join(metadata.stuff_classes)}"
            )
        self._label_files: dict[str, Path] = {}
        images = DatasetCatalog.get(dataset_name)
        for image in images:
            file = image.get("sem_seg_file_name")
            if file is None or not file.endswith(LABEL_IDS_SUFFIX):
                raise InputError(
                    f"dataset {dataset_name} has no *{LABEL_IDS_SUFFIX} to score against; name one"
                    " with semantic labels, such as cityscapes_coarse_semantic_pretrain_val"
                )
            self._label_files[image["file_name"]] = Path(file)
        check_distinct((image["file_name"] for image in images), dataset_name)
        instances = list(map(instance_ids_file, self._label_files.values()))
        missing = [file for file in instances if not file.is_file()]
        self._with_instances = len(missing) < len(instances)
        if missing and self._with_instances:
            raise InputError(
                f"{missing[0]}: no such file, one of {len(missing)} that are missing; "
                f"{dataset_name} is scored against instance ids of all of its images, or of none"
            )
        if missing:
            logger.warning("%s has no *_instanceIds.png: iIoU is not measured", dataset_name)

    def _image_names(self) -> Iterable[str]:
        return self._label_files

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Count the pixels of some images.

        Args:
            inputs: Detectron2's dataset dicts; ``file_name`` is used.
            outputs: Detectron2's predictions: ``{"sem_seg": logits}`` at the image's original size,
                shape (19, height, width), floating point, classes in the order of train ids.

        Raises:
            InputError: an image is not of the dataset, its ground truth is missing or unreadable,
                or the prediction does not fit it.
        """
        for image, output in zip(inputs, outputs, strict=True):
            name = image["file_name"]
            self._check_name(name)
            try:
                predicted_ids = logits_to_label_ids(output["sem_seg"])
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
            self._score_image(
                name,
                partial(
                    count_label_file, self._label_files[name], predicted_ids, self._with_instances
                ),
            )

    def _summarise(self, images: list[ImageCounts]) -> OrderedDict[str, dict[str, float]]:
        """Score the dataset.

        Returns:
            ``{"sem_seg": scores}``, named as Detectron2 names them: ``IoU`` and ``iIoU`` (means
            over classes), ``IoU_sup`` and ``iIoU_sup`` (means over categories); ``IoU-<class>`` for
            the 19 classes. NaN for what appears neither in the ground truth nor predicted on it.
        """
        official = pixel_scores(images, self._with_instances)
        self._log_table(format_pixel_scores(official), len(images))
        self._write_json(RESULTS_FILE, official)
        scores = {key: 100 * official[name] for key, name in _AVERAGES.items()}
        for label in SEMANTIC_LABELS:
            scores[f"IoU-{label.name}"] = 100 * official["classScores"][label.name]
        return OrderedDict(sem_seg=scores)


def logits_to_label_ids(logits: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Take the class of the highest logit of every pixel.

    Args:
        logits: shape (19, height, width), floating point, on any device, in order of train ids.

    Returns:
        Shape (height, width), dtype uint8: official label ids.

    Raises:
        InputError: the logits have another shape, or are NaN somewhere.
    """
    if logits.ndim != 3 or len(logits) != len(SEMANTIC_LABELS):
        raise InputError(
            f"the model's sem_seg has shape {tuple(logits.shape)}; expected (19, height, width), a"
            " logit for each of the 19 train ids: set MODEL.SEM_SEG_HEAD.NUM_CLASSES 19"
        )
    # PyTorch's argmax takes four times as long on a CPU.
    highest, train_ids = logits.max(dim=0)
    if highest.isnan().any():
        raise InputError("the model predicts NaN; its weights are broken or training diverged")
    label_ids = torch.tensor([label.id for label in SEMANTIC_LABELS], dtype=torch.uint8)
    # The lookup comes first: a byte per pixel leaves the device, not eight.
    ids: npt.NDArray[np.uint8] = label_ids.to(logits.device)[train_ids].cpu().numpy()
    return ids
